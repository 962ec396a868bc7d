package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/kilnproject/kiln"
)

// Client talks to a gateway's control socket. It is safe for concurrent use.
type Client struct{ http *http.Client }

// NewClient returns a client for a socket; it connects when it is used.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConns: 4, IdleConnTimeout: time.Minute}}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Set has the gateway use a table; it returns when new requests follow it. An
// older generation than the present one is a conflict.
func (c *Client) Set(ctx context.Context, t kiln.Traffic) error {
	b, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("send table %d: %w", t.Generation, err)
	}
	return c.call(ctx, http.MethodPut, "/table", bytes.NewReader(b), nil)
}

// Measure returns what was counted since the gateway's start: each fleet,
// followed by its instances.
func (c *Client) Measure(ctx context.Context) ([]kiln.Measurement, error) {
	var out []kiln.Measurement
	err := c.call(ctx, http.MethodGet, "/measure", nil, &out)
	return out, err
}

// Drain returns when nothing is in flight on an instance, which the table must
// not have any more; what is left after limit is closed.
func (c *Client) Drain(ctx context.Context, instance string, limit time.Duration) error {
	q := url.Values{"instance": {instance}, "limit": {limit.String()}}
	return c.call(ctx, http.MethodPost, "/drain?"+q.Encode(), nil, nil)
}

// Ready returns the gateway's own state.
func (c *Client) Ready(ctx context.Context) (Ready, error) {
	var out Ready
	err := c.call(ctx, http.MethodGet, "/ready", nil, &out)
	return out, err
}

// Failures streams the IDs of instances that refused or dropped a request,
// until ctx ends or the gateway does; the channel is closed then.
func (c *Client) Failures(ctx context.Context) (<-chan string, error) {
	res, err := c.do(ctx, http.MethodGet, "/failures", nil) //nolint:bodyclose // whoever reads it closes it
	if err != nil {
		return nil, err
	}
	out := make(chan string)
	go func() {
		defer close(out)
		defer func() { _ = res.Body.Close() }()
		d := json.NewDecoder(res.Body)
		for {
			var id string
			if d.Decode(&id) != nil {
				return
			}
			select {
			case out <- id:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (c *Client) call(ctx context.Context, method, path string, body io.Reader, out any) error {
	res, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("read the gateway's answer: %w", err)
	}
	return nil
}

// do makes a request; an answer that is an error becomes one.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://gateway"+path, body)
	if err != nil {
		return nil, fmt.Errorf("ask the gateway: %w", err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, kiln.Errorf(kiln.CodeUnavailable, "kiln doctor", "ask the gateway: %w", err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	e := &kiln.Error{}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(e); err != nil || e.Code == "" {
		return nil, kiln.Errorf(kiln.CodeInternal, "", "the gateway answered %s", res.Status)
	}
	return nil, e
}
