// Package load sends a steady stream of requests and tells what became of
// each. It is open-loop: requests leave at their time whether or not earlier
// ones were answered, so that a slow server cannot hide behind its slowness.
package load

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"time"
)

// Options say what to send. URL, Rate and one bound (Duration or the
// context) are needed.
type Options struct {
	URL      string
	Host     string // Host header; empty means the URL's
	Method   string // empty means GET
	Body     []byte
	Rate     int           // requests a second
	Duration time.Duration // 0 means until the context ends
	Timeout  time.Duration // of one request; 0 means 10 s
	// Version extracts what Report.Versions is keyed by; nil leaves it empty.
	Version func(status int, header http.Header, body []byte) string
	// MaxInFlight bounds concurrency; what would exceed it counts as failed.
	// 0 means 1,024.
	MaxInFlight int
	// Each is told of every request that has ended, one at a time; nil is not.
	Each func(Outcome)
}

// Report is what became of the requests.
type Report struct {
	Sent     int              `json:"sent"`
	OK       int              `json:"ok"` // answered with 200 to 399
	Failed   int              `json:"failed"`
	Failures map[string]int   `json:"failures"` // by cause
	Versions map[string]*Seen `json:"versions,omitempty"`
	P50      time.Duration    `json:"p50"`
	P99      time.Duration    `json:"p99"`
	Max      time.Duration    `json:"max"`
	Took     time.Duration    `json:"took"`
}

// Seen is when a version answered.
type Seen struct {
	Count int       `json:"count"`
	First time.Time `json:"first"`
	// Last is when the last request that it answered was sent.
	Last time.Time `json:"last"`
}

// Outcome is what became of one request.
type Outcome struct {
	At      time.Time // when it was sent
	Took    time.Duration
	Failure string // "" when it was answered with 200 to 399
	// Dialed is when its connection was made, where that was before it was
	// sent; zero for a connection of its own.
	Dialed  time.Time
	Version string
}

// Run sends until the duration has passed or ctx ends, waits for the last
// answers, and reports.
func Run(ctx context.Context, o Options) Report {
	o = o.defaults()
	transport := &http.Transport{
		MaxIdleConns: o.MaxInFlight, MaxIdleConnsPerHost: o.MaxInFlight, DisableCompression: true,
		DialContext: o.dial,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: o.Timeout, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	outcomes := make(chan Outcome, o.MaxInFlight)
	done := make(chan Report)
	start := time.Now()
	go func() { done <- o.collect(outcomes) }()
	o.send(ctx, client, start, outcomes)
	close(outcomes)
	r := <-done
	r.Took = time.Since(start)
	return r
}

func (o Options) defaults() Options {
	if o.Method == "" {
		o.Method = http.MethodGet
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = 1024
	}
	o.Rate = max(o.Rate, 1)
	return o
}

// send starts every request at its time and returns when all have ended.
func (o Options) send(ctx context.Context, client *http.Client, start time.Time, outcomes chan<- Outcome) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, o.MaxInFlight)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for sent := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		elapsed := time.Since(start)
		if o.Duration > 0 && elapsed >= o.Duration {
			return
		}
		for due := int(elapsed.Seconds() * float64(o.Rate)); sent < due; sent++ {
			select {
			case slots <- struct{}{}:
				wg.Go(func() {
					outcomes <- o.one(client)
					<-slots
				})
			default:
				outcomes <- Outcome{At: time.Now(), Failure: "too many in flight"}
			}
		}
	}
}

// one sends one request. It has no context: a request that left is waited for.
//
//nolint:contextcheck // see above
func (o Options) one(client *http.Client) (out Outcome) {
	out.At = time.Now()
	defer func() { out.Took = time.Since(out.At) }()
	request, err := http.NewRequestWithContext(context.Background(), o.Method, o.URL, bytes.NewReader(o.Body))
	if err != nil {
		out.Failure = err.Error()
		return out
	}
	request.Host = o.Host
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if one, ok := got.Conn.(*aged); ok && got.Reused {
			out.Dialed = one.made
		}
	}}
	response, err := client.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
	if err != nil {
		out.Failure = cause(err)
		return out
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	switch {
	case err != nil:
		out.Failure = "body: " + cause(err)
	case response.StatusCode >= 400:
		out.Failure = fmt.Sprintf("status %d", response.StatusCode)
	case o.Version != nil:
		out.Version = o.Version(response.StatusCode, response.Header, body)
	}
	return out
}

// aged is a connection that knows when it was made.
type aged struct {
	net.Conn
	made time.Time
}

func (o Options) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: o.Timeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &aged{c, time.Now()}, nil
}

// cause shortens an error to what it has in common with others of its kind.
func cause(err error) string {
	for {
		inner, ok := err.(interface{ Unwrap() error })
		if !ok || inner.Unwrap() == nil {
			return err.Error()
		}
		err = inner.Unwrap()
	}
}

func (o Options) collect(outcomes <-chan Outcome) Report {
	r := Report{Failures: map[string]int{}, Versions: map[string]*Seen{}}
	var took []time.Duration
	for one := range outcomes {
		if o.Each != nil {
			o.Each(one)
		}
		r.Sent++
		if one.Failure != "" {
			r.Failed++
			r.Failures[one.Failure]++
			continue
		}
		r.OK++
		took = append(took, one.Took)
		if one.Version != "" {
			r.see(one)
		}
	}
	if len(took) > 0 {
		slices.Sort(took)
		r.P50, r.P99, r.Max = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	}
	return r
}

func (r *Report) see(o Outcome) {
	s := r.Versions[o.Version]
	if s == nil {
		s = &Seen{First: o.At, Last: o.At}
		r.Versions[o.Version] = s
	}
	s.Count++
	if o.At.Before(s.First) {
		s.First = o.At
	}
	if o.At.After(s.Last) {
		s.Last = o.At
	}
}

// String is the report in one line and a line for each failure.
func (r Report) String() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%d requests in %.1f s: %d answered, %d failed; p50 %.1f ms, p99 %.1f ms, slowest %.0f ms",
		r.Sent, r.Took.Seconds(), r.OK, r.Failed, ms(r.P50), ms(r.P99), ms(r.Max))
	for cause, n := range r.Failures {
		fmt.Fprintf(&b, "\n  %d x %s", n, cause)
	}
	return b.String()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
