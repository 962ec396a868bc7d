package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// scrape asks for metrics over TCP with a token, or none.
func (a *away) scrape(t *testing.T, token string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(client.CloseIdleConnections)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+a.address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestMetricsAreForThoseWhoMayLook(t *testing.T) {
	a := serveRemote(t, func(o *Options) {
		o.Metrics = func(reach kiln.Reach) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "reach %v", reach) })
		}
	})
	if code, body := a.scrape(t, ""); code != http.StatusUnauthorized || strings.Contains(body, "reach") {
		t.Errorf("a stranger: %d %s", code, body)
	}
	for _, role := range kiln.Roles() {
		if code, body := a.scrape(t, a.tokens[role]); code != http.StatusOK || body != "reach []" {
			t.Errorf("%s: %d %s", role, code, body)
		}
	}
	text, token := tokenOf("team", kiln.RoleRead)
	token.Reach = kiln.Reach{"staging"}
	a.options.Access.SetTokens([]kiln.Token{token})
	if _, body := a.scrape(t, text); body != "reach [staging]" {
		t.Errorf("a token for staging: %s", body)
	}
	response, err := NewClient(a.socket, "1.4.2").http.Get("http://kiln/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("over the Unix socket: %d", response.StatusCode)
	}
}

// TestRequestsAreCountedByRoute: what a stranger asks for is no label.
func TestRequestsAreCountedByRoute(t *testing.T) {
	var mu sync.Mutex
	var got []string
	told := func(method, route string, code int, took time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if took < 0 {
			t.Errorf("it took %s", took)
		}
		got = append(got, fmt.Sprintf("%s %s %d", method, route, code))
	}
	f := serve(t, func(o *Options) { o.Answered = told })
	f.control.status = func() (control.Status, error) { return control.Status{}, kiln.ErrNoRoom }
	f.control.events = func(_ context.Context, _ control.EventQuery, each func(kiln.Event) error) error {
		return each(kiln.Event{Sequence: 1})
	}
	for _, path := range []string{"version", "status", "nothing/" + strings.Repeat("x", 100), "events"} {
		response, err := f.client.send(t.Context(), http.MethodGet, path, nil, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
	}
	if _, err := f.client.send(t.Context(), "BREW", "version", nil, "", nil); err != nil {
		t.Fatal(err)
	}
	f.stop() // answers are counted once they are written
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(got)
	want := []string{
		"GET /v1/events 200", "GET /v1/status 507", "GET /v1/version 200", "other other 404", "other other 404",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestNotifyTest(t *testing.T) {
	f := serve(t, func(o *Options) {
		o.NotifyTest = func(_ context.Context, name, actor string) ([]NotifyResult, error) {
			if name == "nobody" {
				return nil, kiln.ErrNotFound
			}
			if actor == "" {
				t.Error("no actor")
			}
			return []NotifyResult{{Name: name, Status: 204}}, nil
		}
	})
	got, err := f.client.NotifyTest(t.Context(), "ops")
	if err != nil || len(got.Results) != 1 || got.Results[0].Status != 204 {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := f.client.NotifyTest(t.Context(), "nobody"); !errors.Is(err, kiln.ErrNotFound) {
		t.Error(err)
	}
}

// forgetful is a network that forgets each connection without an end after one
// event.
type forgetful struct{ asked []string }

func (f *forgetful) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path != "/v1/events" {
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}"))}, nil
	}
	f.asked = append(f.asked, r.URL.Query().Get("after"))
	if len(f.asked) == 2 { // it is back, and away once more
		return nil, errors.New("connection refused")
	}
	reader, writer := io.Pipe()
	context.AfterFunc(r.Context(), func() { _ = writer.CloseWithError(r.Context().Err()) })
	go func() {
		_, _ = fmt.Fprintf(writer, "{\"event\":{\"sequence\":%d}}\n", len(f.asked))
		<-time.After(silence - 1)
		_, _ = writer.Write([]byte("\n"))
	}()
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: reader}, nil
}

func TestAFollowedStreamGoesOnAfterSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := &forgetful{}
		c := &Client{base: url.URL{Scheme: "http", Host: "kiln"}, http: &http.Client{Transport: network}}
		began := time.Now()
		var seen []int64
		enough := errors.New("enough")
		err := c.Events(t.Context(), control.EventQuery{After: 0, Follow: true}, func(e kiln.Event) error {
			if seen = append(seen, e.Sequence); len(seen) == 2 {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"0", "1", "1"}, network.asked); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]int64{1, 3}, seen); diff != "" {
			t.Error(diff)
		}
		if took := time.Since(began); took != 2*silence-1 {
			t.Errorf("it was taken up again after %s", took)
		}
		kilntest.Pass(silence) // until the network has ended
	})
}
