package server

import (
	"errors"
	"mime"
	"net/http"
	"strings"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// events answers with a stream of frames, with one page, or with server-sent
// events, as the request accepts.
func (a *api) events(w http.ResponseWriter, r *http.Request) {
	switch accepted(r.Header.Values("Accept")) {
	case typeSSE:
		a.streamAs(typeSSE, a.followEvents)(w, r)
	case typeJSON:
		a.answer(a.eventPage)(w, r)
	default:
		a.stream(a.followEvents)(w, r)
	}
}

// accepted is the first media type of a request's that events come in.
func accepted(values []string) string {
	for _, value := range values {
		for one := range strings.SplitSeq(value, ",") {
			switch name, _, _ := mime.ParseMediaType(one); name {
			case typeSSE, typeJSON, typeStream:
				return name
			}
		}
	}
	return typeStream
}

// eventQuery reads which events a request wants. A client of server-sent
// events that connects again says the last that it has in a header.
func eventQuery(r *http.Request) (control.EventQuery, *params) {
	p := &params{values: r.URL.Query()}
	q := control.EventQuery{
		Environment: p.values.Get("environment"), Reach: callOf(r).reach,
		After: p.integer("after"), Last: int(p.integer("last")), Follow: p.boolean("follow"),
	}
	if q.Environment != "" && !q.Reach.Covers(q.Environment) {
		p.err = kiln.Errorf(kiln.CodeRefused, "use a token whose block in kilnd.hcl names the environment", "environment %q is not for this token", q.Environment)
	}
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		p.values.Set("Last-Event-ID", last)
		q.After, q.Last = p.integer("Last-Event-ID"), 0
	}
	return q, p
}

func (a *api) followEvents(r *http.Request, s *stream) (any, error) {
	q, p := eventQuery(r)
	if p.err != nil {
		return nil, p.err
	}
	if s.as == typeSSE {
		q.Follow = true // such a stream has no end that a browser would heed
	}
	if q.Follow {
		s.open()
	}
	ctx, cancel := untilClosing(r.Context())
	defer cancel()
	return struct{}{}, a.Control.Events(ctx, q, func(e kiln.Event) error { return s.send(Frame{Event: &e}) })
}

var errEnough = errors.New("the page is full")

// eventPage is a page of the history. Its cursor is a sequence number.
func (a *api) eventPage(r *http.Request) (any, error) {
	q, p := eventQuery(r)
	limit := p.limit()
	p.cursor(&q.After)
	if q.Follow {
		p.fail("follow", "Accept: "+typeStream+" or "+typeSSE)
	}
	if p.err != nil {
		return nil, p.err
	}
	page := Page[kiln.Event]{Items: []kiln.Event{}}
	if p.values.Has("cursor") {
		q.Last = 0
	}
	err := a.Control.Events(r.Context(), q, func(e kiln.Event) error {
		if len(page.Items) == limit {
			page.Next = cursorOf(page.Items[limit-1].Sequence)
			return errEnough
		}
		page.Items = append(page.Items, e)
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	return page, nil
}
