package server

import (
	"encoding/base64"
	"encoding/json"
	"net/http"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// Page is a part of a list.
type Page[T any] struct {
	Items []T `json:"items"`
	// Next is the cursor of the page after this one; empty at the end.
	Next string `json:"next,omitempty"`
}

// The bounds of a page.
const (
	pageDefault = 100
	pageMost    = 1000
)

// cursorOf writes the place of the last item of a page. It names the item, not
// a number of items, so that what is added or removed meanwhile shifts nothing.
func cursorOf(place any) string {
	b, err := json.Marshal(place)
	if err != nil {
		panic(err) // places are of strings and numbers
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// limit reads how many items a page shall have.
func (p *params) limit() int {
	n := p.integer("limit")
	if n > pageMost || p.values.Has("limit") && n == 0 {
		p.fail("limit", "a number from 1 to 1000")
	}
	if n == 0 {
		n = pageDefault
	}
	return int(n)
}

// cursor reads the place after which a page begins.
func (p *params) cursor(place any) {
	text := p.values.Get("cursor")
	if text == "" {
		return
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || json.Unmarshal(b, place) != nil {
		p.fail("cursor", "next of the page before")
	}
}

// pageOf makes a page of one more item than it may have, which says whether
// there is another.
func pageOf[T any](items []T, limit int, place func(T) any) Page[T] {
	if len(items) <= limit {
		return Page[T]{Items: orEmpty(items)}
	}
	items = items[:limit]
	return Page[T]{Items: items, Next: cursorOf(place(items[limit-1]))}
}

func (a *api) releases(r *http.Request) (any, error) {
	p := params{values: r.URL.Query()}
	q := control.ReleaseQuery{Environment: p.values.Get("environment"), Reach: callOf(r).reach, Limit: p.limit() + 1}
	p.cursor(&q.After)
	if p.err != nil {
		return nil, p.err
	}
	items, err := a.Control.ReleasePage(r.Context(), q)
	if err != nil {
		return nil, err
	}
	return pageOf(items, q.Limit-1, func(r kiln.Release) any { return control.ReleaseKey{Environment: r.Environment, Number: r.Number} }), nil
}

func (a *api) instances(r *http.Request) (any, error) {
	p := params{values: r.URL.Query()}
	q := control.InstanceQuery{Environment: p.values.Get("environment"), Reach: callOf(r).reach, Limit: p.limit() + 1}
	p.cursor(&q.After)
	if p.err != nil {
		return nil, p.err
	}
	items, err := a.Control.InstancePage(r.Context(), q)
	if err != nil {
		return nil, err
	}
	return pageOf(items, q.Limit-1, func(i kiln.Instance) any { return control.KeyOf(i) }), nil
}
