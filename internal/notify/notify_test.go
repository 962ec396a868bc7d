package notify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// history is a source in memory.
type history struct {
	mu       sync.Mutex
	events   []kiln.Event
	next     int64
	watchers []chan struct{}
}

func (h *history) add(events ...kiln.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range events {
		h.next++
		if e.Sequence = h.next; e.At.IsZero() {
			e.At = time.Now()
		}
		h.events = append(h.events, e)
	}
	for _, w := range h.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// prune removes all events but the newest so many.
func (h *history) prune(keep int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = h.events[len(h.events)-keep:]
}

func (h *history) Events(_ context.Context, _ string, after int64, _ int) ([]kiln.Event, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.events, func(e kiln.Event) bool { return e.Sequence > after })
	if i < 0 {
		return nil, nil
	}
	return slices.Clone(h.events[i:min(len(h.events), i+1000)]), nil
}

func (h *history) AllBut(context.Context, string, int) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.next, nil
}

func (h *history) Watch(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{}, 1)
	h.mu.Lock()
	h.watchers = append(h.watchers, ch)
	h.mu.Unlock()
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.watchers = slices.DeleteFunc(h.watchers, func(c chan struct{}) bool { return c == ch })
		close(ch)
	})
	return ch
}

// world is receivers, and what is told to them.
type world struct {
	*history
	t        *testing.T
	dir      string
	mu       sync.Mutex
	got      []request
	answer   func(r request) int // a status; 0 for no answer
	skipped  int64
	waiting  map[string]int64
	attempts int
}

type request struct {
	host   string
	at     time.Time
	header http.Header
	body   []byte
}

func (r request) message(t *testing.T) Message {
	t.Helper()
	var m Message
	if err := json.Unmarshal(r.body, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func newWorld(t *testing.T) *world {
	return &world{history: &history{}, t: t, dir: filepath.Join(t.TempDir(), "notify"), waiting: map[string]int64{}, answer: func(request) int { return 200 }}
}

func (w *world) Notified(string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attempts++
}

func (w *world) NotifyBehind(name string, waiting, skipped int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[name] = waiting
	w.skipped += skipped
}

func (w *world) NotifyGone(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting, name)
}

// RoundTrip is the network.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	one := request{host: r.URL.Host, at: time.Now(), header: r.Header, body: body}
	w.mu.Lock()
	w.got = append(w.got, one)
	answer := w.answer
	w.mu.Unlock()
	status := answer(one)
	if status == 0 {
		return nil, errors.New("no answer")
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader("")), Header: http.Header{"Retry-After": {"nonsense"}}}, nil
}

func (w *world) notifier() *Notifier {
	n := New(Options{
		Dir: w.dir, Source: w.history, Counter: w, Version: "1.2.3", Log: slog.New(slog.DiscardHandler),
		URLs:   func(context.Context, string) []string { return []string{"http://shop.test/"} },
		Record: func(_ context.Context, e kiln.Event) error { w.add(e); return nil },
	})
	n.http.Transport = w
	n.chance = func() float64 { return 0 }
	return n
}

// run runs a notifier until the function that it returns is called.
func (w *world) run(receivers ...Receiver) (n *Notifier, stop func()) {
	n = w.notifier()
	n.Set(receivers)
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := n.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	synctest.Wait()
	return n, func() { cancel(); <-ended }
}

// told are the kinds that a host was told of, in order.
func (w *world) told(host string) []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	out := []string{}
	for _, r := range w.got {
		if r.host == host {
			out = append(out, r.message(w.t).Data.Subject)
		}
	}
	return out
}

// request is the one at an index, from the end where that is negative.
func (w *world) request(i int) request {
	w.t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if i < 0 {
		i += len(w.got)
	}
	if i < 0 || i >= len(w.got) {
		w.t.Fatalf("there are %d requests", len(w.got))
	}
	return w.got[i]
}

// passed is how many events were passed over, and behind how many wait.
func (w *world) passed() int64 {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.skipped
}

func (w *world) behind(name string) int64 {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waiting[name]
}

func (w *world) newest() int64 {
	synctest.Wait()
	n, _ := w.AllBut(w.t.Context(), "", 0)
	return n
}

func (w *world) answers(f func(request) int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = f
}

func (w *world) same(want, got any) {
	w.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Error(diff)
	}
}

func ops() Receiver {
	return Receiver{Name: "ops", URL: "http://ops/hook", Key: []byte("0123456789abcdef"), Events: []string{"*"}}
}

func event(kind, subject string) kiln.Event {
	return kiln.Event{Environment: "production", Kind: kind, Subject: subject, Message: subject + " happened"}
}

func TestWhatIsPosted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add(event("release.live", "before"))
		_, stop := w.run(ops())
		defer stop()
		e := event("release.live", "release 4")
		e.Actor, e.Data = "ann (1000)", map[string]string{"cause": "a < b & c"}
		w.add(e)
		w.same([]string{"release 4"}, w.told("ops")) // a receiver that is new is not told what was before
		r := w.request(0)
		e.Sequence, e.At = 2, r.message(t).Timestamp
		w.same(Message{Type: "release.live", Timestamp: e.At, Data: Data{
			ID: 2, Environment: "production", Kind: "release.live", Subject: "release 4", Text: "release 4 happened", Release: 4, Actor: "ann (1000)",
			Evidence: e.Data, Links: Links{URLs: []string{"http://shop.test/"}, Event: "/v1/events?after=1&limit=1"},
		}}, r.message(t))
		id, stamp := r.header.Get("webhook-id"), r.header.Get("webhook-timestamp")
		if want := fmt.Sprint(r.at.Unix()); stamp != want || !strings.HasPrefix(id, "evt_2_") {
			t.Errorf("id %s, timestamp %s, want %s", id, stamp, want)
		}
		mac := hmac.New(sha256.New, []byte("0123456789abcdef"))
		_, _ = fmt.Fprintf(mac, "%s.%s.%s", id, stamp, r.body)
		w.same("v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)), r.header.Get("webhook-signature"))
		w.same("application/json", r.header.Get("Content-Type"))
	})
}

func TestOnlyWhatWasAskedFor(t *testing.T) {
	all := kiln.Event{Kind: "config.loaded"}
	for _, c := range []struct {
		r    Receiver
		e    kiln.Event
		want bool
	}{
		{Receiver{Events: []string{"release.*"}}, event("release.live", ""), true},
		{Receiver{Events: []string{"release.*"}}, event("rollout.begun", ""), false},
		{Receiver{Events: []string{"instance.died", "*.failed"}}, event("release.failed", ""), true},
		{Receiver{Events: []string{"*"}}, all, true},
		{Receiver{Events: []string{"*"}, Environments: kiln.Reach{"prod*"}}, event("release.live", ""), true},
		{Receiver{Events: []string{"*"}, Environments: kiln.Reach{"staging"}}, event("release.live", ""), false},
		{Receiver{Events: []string{"*"}, Environments: kiln.Reach{"*"}}, all, false},
		{Receiver{}, all, false},
	} {
		if got := c.r.wants(c.e); got != c.want {
			t.Errorf("%+v wants %s of %q: %v", c.r, c.e.Kind, c.e.Environment, got)
		}
	}
}

func TestNothingIsLostOrRepeatedOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, stop := w.run(ops())
		w.add(event("a.a", "1"), event("a.a", "2"))
		w.told("ops")
		stop()
		w.add(event("a.a", "3"))
		_, stop = w.run(ops())
		w.add(event("a.a", "4"))
		w.same([]string{"1", "2", "3", "4"}, w.told("ops"))
		stop()

		// A crash after the receiver took it, and before that was written.
		file := filepath.Join(w.dir, "ops.json")
		if err := os.WriteFile(file, []byte(`{"sequence":3}`), 0o600); err != nil {
			t.Fatal(err)
		}
		_, stop = w.run(ops())
		w.same([]string{"1", "2", "3", "4", "4"}, w.told("ops"))
		w.same(w.request(3).header.Get("webhook-id"), w.request(4).header.Get("webhook-id"))
		stop()

		// What nobody can have written is not followed.
		for _, text := range []string{`{"sequence":99}`, `{"seq`, ``, `{"sequence":-1}`} {
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, stop = w.run(ops())
			w.same(5, len(w.told("ops")))
			stop()
		}
		w.add(event("a.a", "5"))
		_, stop = w.run(ops())
		defer stop()
		w.same(6, len(w.told("ops")))
	})
}

func TestOneThatIsAwayDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answers(func(r request) int {
			if r.host == "ops" {
				return 0
			}
			return 204
		})
		_, stop := w.run(ops(), Receiver{Name: "chat", URL: "http://chat/", Events: []string{"*"}})
		defer stop()
		w.add(event("a.a", "1"), event("a.a", "2"))
		w.same([]string{"1", "2"}, w.told("chat"))
		w.same([]string{"1"}, w.told("ops"))
		if w.behind("ops") != 2 || w.behind("chat") != 0 {
			t.Errorf("waiting: %d and %d", w.behind("ops"), w.behind("chat"))
		}
		kilntest.Pass(firstPause + 2*firstPause + 4*firstPause)
		w.same(4, len(w.told("ops"))) // at 0, 1, 3 and 7 seconds
		kilntest.Pass(time.Hour)
		asked := len(w.told("ops"))
		kilntest.Pass(longestPause)
		w.same(asked+1, len(w.told("ops")))
		w.answers(func(request) int { return 200 })
		kilntest.Pass(longestPause)
		got := w.told("ops")
		w.same([]string{"1", "2"}, got[len(got)-2:])
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, r := range w.got {
			if signed := r.header.Get("webhook-signature") != ""; signed != (r.host == "ops") {
				t.Errorf("ops alone has a key, and what %s is told is signed: %v", r.host, signed)
			}
		}
	})
}

func TestAnEventThatIsRefusedIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answers(func(r request) int {
			if r.message(t).Data.Subject == "bad" {
				return 422
			}
			return 200
		})
		_, stop := w.run(ops())
		defer stop()
		w.add(event("a.a", "bad"), event("a.a", "good"))
		kilntest.Pass(time.Hour)
		want := append(slices.Repeat([]string{"bad"}, refusals), "good", "ops")
		w.same(want, w.told("ops")) // the last says what was passed over
		last := w.request(-1).message(t)
		w.same(kindSkipped, last.Type)
		w.same("ops was not told of 1 events, from 1 to 1: the receiver refused them: the receiver answered 422", last.Data.Text)
		w.same(int64(1), w.passed())
	})
}

// TestTooManyRequestsIsNoRefusal: the same event is taken later.
func TestTooManyRequestsIsNoRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answers(func(request) int { return http.StatusTooManyRequests })
		_, stop := w.run(ops())
		defer stop()
		w.add(event("a.a", "1"))
		kilntest.Pass(10 * time.Hour)
		w.answers(func(request) int { return 200 })
		kilntest.Pass(longestPause)
		w.same(int64(0), w.passed())
		w.same(int64(0), w.behind("ops"))
	})
}

func TestWhatIsMissedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answers(func(request) int { return 500 })
		_, stop := w.run(ops())
		defer stop()
		w.add(event("a.a", "old"))
		kilntest.Pass(keptFor)
		w.add(event("a.a", "new"))
		w.answers(func(request) int { return 200 })
		kilntest.Pass(longestPause)
		got := w.told("ops")
		w.same([]string{"new", "ops"}, got[len(got)-2:])
		w.same(int64(1), w.passed())

		w.answers(func(request) int { return 503 })
		w.add(event("a.a", "first"))
		synctest.Wait()
		for range keptBack + 4 {
			w.add(event("a.a", "more"))
		}
		before := len(w.told("ops"))
		w.answers(func(request) int { return 200 })
		kilntest.Pass(2 * longestPause)
		// All but six, and twice that some were passed over: the first time made
		// one more event that waits.
		w.same(keptBack+5-6+2, len(w.told("ops"))-before)
		w.same(int64(1+6), w.passed())
	})
}

func TestWhatTheHistoryLostIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, stop := w.run(ops())
		stop()
		for range 5 {
			w.add(event("a.a", "x"))
		}
		w.prune(2)
		_, stop = w.run(ops())
		defer stop()
		w.same([]string{"x", "x", "ops"}, w.told("ops"))
		w.same("ops was not told of 3 events, from 1 to 3: the history no longer has them", w.request(2).message(t).Data.Text)
	})
}

// TestLossesOfLossesMakeNoEvents: otherwise each would make another.
func TestLossesOfLossesMakeNoEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answers(func(request) int { return 400 })
		_, stop := w.run(ops())
		defer stop()
		w.add(event("a.a", "1"))
		kilntest.Pass(24 * time.Hour)
		w.same(int64(2), w.newest()) // the event, and that it was passed over
		w.same(int64(2), w.passed())
	})
}

func TestReceiversChangeWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n, stop := w.run(ops())
		defer stop()
		w.add(event("a.a", "1"))
		w.told("ops")
		moved := ops()
		moved.URL = "http://moved/"
		n.Set([]Receiver{moved})
		synctest.Wait()
		w.add(event("a.a", "2"))
		w.same([]string{"2"}, w.told("moved"))
		n.Set(nil)
		synctest.Wait()
		w.add(event("a.a", "3"))
		w.told("moved")
		if _, err := os.Stat(filepath.Join(w.dir, "ops.json")); !errors.Is(err, os.ErrNotExist) {
			t.Error("the cursor of one that is gone stays:", err)
		}
		n.Set([]Receiver{ops()})
		synctest.Wait()
		w.add(event("a.a", "4"))
		w.same([]string{"1", "4"}, w.told("ops"))
	})
}

// TestCursorsOfOthersGo: and one that is being written does not.
func TestCursorsOfOthersGo(t *testing.T) {
	w := newWorld(t)
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ops.json", ".new-ops.json", "gone.json", ".new-gone.json", "other"} {
		if err := os.WriteFile(filepath.Join(w.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.notifier().retain([]Receiver{ops()}, nil)
	left, err := filepath.Glob(filepath.Join(w.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	w.same([]string{filepath.Join(w.dir, ".new-ops.json"), filepath.Join(w.dir, "ops.json")}, left)
}

func TestTest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answers(func(r request) int {
			if r.host == "chat" {
				return 404
			}
			return 200
		})
		n, stop := w.run(ops(), Receiver{Name: "chat", URL: "https://chat/secret?token=1", Events: []string{"a.a"}})
		defer stop()
		results, err := n.Test(t.Context(), "", "ann")
		if err != nil || len(results) != 2 || results[0].Status != 200 || results[0].Err != nil {
			t.Fatal(results, err)
		}
		if r := results[1]; r.Status != 404 || r.Err == nil || r.URL != "https://chat" {
			t.Errorf("%+v", r)
		}
		if results, err = n.Test(t.Context(), "chat", "ann"); err != nil || len(results) != 1 || results[0].Name != "chat" {
			t.Error(results, err)
		}
		if _, err = n.Test(t.Context(), "nobody", "ann"); !errors.Is(err, kiln.ErrNotFound) {
			t.Error(err)
		}
		w.same("notify.test", w.request(0).message(t).Type)
		w.same(int64(0), w.newest())
	})
}

// The rest needs a network.

func real(t *testing.T, handler http.HandlerFunc) (*Notifier, Receiver) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	w := newWorld(t)
	n := w.notifier()
	n.http.Transport = New(n.options).http.Transport
	t.Cleanup(n.http.CloseIdleConnections)
	r := ops()
	r.URL = server.URL + "/secret-path"
	return n, r
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	var paths []string
	n, r := real(t, func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.Path)
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	a := n.deliver(t.Context(), r, event("a.a", "1"), 0)
	if a.err == nil || a.status != http.StatusTemporaryRedirect || len(paths) != 1 {
		t.Errorf("%+v after %v", a, paths)
	}
}

func TestAnAnswerWithoutEndIsCut(t *testing.T) {
	n, r := real(t, func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	})
	n.http.Timeout = 0 // it is the bound on the bytes that ends it
	if a := n.deliver(t.Context(), r, event("a.a", "1"), 0); a.err != nil {
		t.Error(a.err)
	}
}

func TestAReceiverThatHangsIsGivenUp(t *testing.T) {
	end := make(chan struct{})
	n, r := real(t, func(http.ResponseWriter, *http.Request) { <-end })
	t.Cleanup(func() { close(end) })
	if n.http.Timeout != attemptLimit {
		t.Errorf("an attempt may take %s", n.http.Timeout)
	}
	n.http.Timeout = 50 * time.Millisecond
	a := n.deliver(t.Context(), r, event("a.a", "1"), 0)
	if a.err == nil || a.status != 0 {
		t.Errorf("%+v", a)
	}
	if strings.Contains(a.err.Error(), "secret-path") {
		t.Errorf("the error has the URL: %v", a.err)
	}
}

func TestWhereCloudsKeepCredentialsNobodyIsNotified(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:80": true, "10.0.0.1:443": true, "[2001:db8::1]:443": true,
		"169.254.169.254:80": false, "[fe80::1%eth0]:80": false, "[::ffff:169.254.169.254]:80": false, "0.0.0.0:80": false, "[::]:80": false, "224.0.0.1:80": false, "nonsense": false,
	} {
		if err := dialable(address); (err == nil) != want {
			t.Errorf("%s: %v", address, err)
		}
	}
	n := newWorld(t).notifier()
	n.http.Transport = New(n.options).http.Transport
	r := ops()
	r.URL = "http://169.254.169.254/latest"
	if a := n.deliver(t.Context(), r, event("a.a", "1"), 0); a.err == nil || !strings.Contains(a.err.Error(), "not an address that is notified") {
		t.Errorf("%+v", a)
	}
}

func TestBackoff(t *testing.T) {
	n := newWorld(t).notifier()
	n.chance = func() float64 { return 0.999 }
	for attempt, most := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 3: 8 * time.Second, 9: longestPause, 1 << 40: longestPause} {
		if d := n.backoff(attempt); d > most || d < most/2 {
			t.Errorf("after attempt %d: %s, want %s to %s", attempt, d, most/2, most)
		}
	}
}
