package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/kilnproject/kiln"
)

const (
	// attemptLimit bounds one attempt, from the name's resolution to the end of
	// the answer.
	attemptLimit = 10 * time.Second
	answerBytes  = 64 << 10
	// longestAfter bounds what a receiver may ask for with Retry-After.
	longestAfter = 10 * time.Minute
)

// Message is what is posted.
type Message struct {
	Type      string    `json:"type"` // the event's kind
	Timestamp time.Time `json:"timestamp"`
	Data      Data      `json:"data"`
}

// Data is an event.
type Data struct {
	ID          int64  `json:"id"` // the event's sequence; 0 of a test
	Environment string `json:"environment,omitempty"`
	Kind        string `json:"kind"`
	Subject     string `json:"subject"`
	Text        string `json:"text"` // one sentence
	// Release is its number where the event is about one.
	Release int    `json:"release,omitempty"`
	Actor   string `json:"actor,omitempty"`
	// Evidence is what the event carries, by name.
	Evidence map[string]string `json:"evidence,omitempty"`
	Links    Links             `json:"links"`
}

// Links are where to look.
type Links struct {
	// URLs are where the environment answers.
	URLs []string `json:"urls"`
	// Event is the event in the API of the control plane.
	Event string `json:"event,omitempty"`
}

// New returns a Notifier that tells nobody before Set and Run.
func New(o Options) *Notifier {
	dialer := &net.Dialer{Timeout: attemptLimit, Control: func(_, address string, _ syscall.RawConn) error { return dialable(address) }}
	return &Notifier{
		options: o, now: time.Now, chance: rand.Float64, changed: make(chan struct{}, 1),
		http: &http.Client{
			Timeout: attemptLimit,
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSHandshakeTimeout: attemptLimit, ForceAttemptHTTP2: true,
				MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// dialable refuses addresses that belong to this machine's surroundings alone.
// It is asked with the address that a name resolved to.
func dialable(address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", address, err)
	}
	if ip := at.Addr().Unmap(); ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
		return kiln.Errorf(kiln.CodeRefused, "", "%s is not an address that is notified", ip)
	}
	return nil
}

// attempt is how a delivery ended.
type attempt struct {
	status int           // 0 for no answer
	after  time.Duration // when the receiver wants the next one
	err    error         // nil when it was taken
}

// refused says whether the event itself was refused: the next may be taken.
func (a attempt) refused() bool {
	switch a.status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return a.status >= 400 && a.status < 500
}

// backoff is the time before the attempt after one, the first of which is 0.
func (n *Notifier) backoff(attempt int) time.Duration {
	d := longestPause
	if attempt < 16 {
		d = min(d, firstPause<<attempt)
	}
	return d - time.Duration(n.chance()*float64(d)/2)
}

// deliver makes one attempt.
func (n *Notifier) deliver(ctx context.Context, r Receiver, e kiln.Event, count int) attempt {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(n.message(ctx, e)); err != nil {
		return attempt{err: err}
	}
	body := text.Bytes()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL, bytes.NewReader(body))
	if err != nil {
		return attempt{err: withoutURL(err)}
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "kiln/"+n.options.Version)
	if count > 0 {
		request.Header.Set("Kiln-Attempt", strconv.Itoa(count+1))
	}
	if err := sign(request.Header, r.Key, idOf(e), n.now(), body); err != nil {
		return attempt{err: err}
	}
	answer, err := n.http.Do(request)
	if err != nil {
		return attempt{err: withoutURL(err)}
	}
	defer func() { _ = answer.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, answerBytes)) // so that the connection can be used again
	return judge(answer)
}

// judge reads an answer's status: any of 2xx is a yes.
func judge(answer *http.Response) attempt {
	a := attempt{status: answer.StatusCode}
	switch {
	case a.status >= 200 && a.status < 300:
		return a
	case a.status >= 300 && a.status < 400:
		a.err = fmt.Errorf("the receiver answered %d: redirects are not followed", a.status)
	default:
		a.err = fmt.Errorf("the receiver answered %d", a.status)
	}
	if seconds, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil && seconds > 0 {
		a.after = min(time.Duration(min(seconds, 86400))*time.Second, longestAfter)
	}
	return a
}

// withoutURL leaves the URL out of an error: its path or query may be a secret.
func withoutURL(err error) error {
	if inner := (*url.Error)(nil); errors.As(err, &inner) {
		return inner.Err
	}
	return err
}

// idOf is the same for every attempt at an event, and no other's.
func idOf(e kiln.Event) string {
	return fmt.Sprintf("evt_%d_%s", e.Sequence, kiln.DigestJSON(e).Short())
}

// sign sets the headers of Standard Webhooks; without a key there is no
// signature.
func sign(header http.Header, key []byte, id string, now time.Time, body []byte) error {
	header.Set(webhooks.HeaderWebhookID, id)
	header.Set(webhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	if len(key) == 0 {
		return nil
	}
	hook, err := webhooks.NewWebhookRaw(key)
	if err != nil {
		return err
	}
	signature, err := hook.Sign(id, now, body)
	if err != nil {
		return err
	}
	header.Set(webhooks.HeaderWebhookSignature, signature)
	return nil
}

// message is what is said of an event.
func (n *Notifier) message(ctx context.Context, e kiln.Event) Message {
	d := Data{
		ID: e.Sequence, Environment: e.Environment, Kind: e.Kind, Subject: e.Subject, Text: e.Message, Actor: e.Actor, Evidence: e.Data,
		Links: Links{URLs: []string{}},
	}
	if number, ok := strings.CutPrefix(e.Subject, "release "); ok {
		d.Release, _ = strconv.Atoi(number)
	}
	if e.Environment != "" {
		if urls := n.options.URLs(ctx, e.Environment); urls != nil {
			d.Links.URLs = urls
		}
	}
	if e.Sequence > 0 {
		d.Links.Event = fmt.Sprintf("/v1/events?after=%d&limit=1", e.Sequence-1)
	}
	return Message{Type: e.Kind, Timestamp: e.At, Data: d}
}

// Result is how a receiver took a test.
type Result struct {
	Name, URL string // the URL without what may be a secret
	Status    int    // 0 for no answer
	Err       error
	Took      time.Duration
}

// Test sends an event that is not in the history to one receiver, or to all
// for "". It makes one attempt.
func (n *Notifier) Test(ctx context.Context, name, actor string) ([]Result, error) {
	out := []Result{}
	for _, r := range n.receivers() {
		if name != "" && r.Name != name {
			continue
		}
		began := time.Now()
		e := kiln.Event{At: n.now().UTC(), Kind: "notify.test", Subject: r.Name, Message: "this is a test; nothing happened", Actor: actor}
		a := n.deliver(ctx, r, e, 0)
		n.options.Counter.Notified(r.Name, a.err)
		out = append(out, Result{Name: r.Name, URL: shown(r.URL), Status: a.status, Err: a.err, Took: time.Since(began)})
	}
	if name != "" && len(out) == 0 {
		return nil, kiln.Errorf(kiln.CodeNotFound, "kiln config show lists them", "the configuration has no notify %q", name)
	}
	return out, nil
}

// shown is a URL's scheme and host: the rest may be a secret.
func shown(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}
