package server

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
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// Client calls the API of one control plane. Its errors are *kiln.Error; one
// with kiln.CodeUnavailable means that no control plane answers. Safe for
// concurrent use.
type Client struct {
	http    *http.Client
	base    url.URL // scheme and host
	place   string  // where the control plane is, for people
	remote  bool
	token   string // empty over the Unix socket
	version string
}

// dialTimeout bounds the making of a connection.
const dialTimeout = 5 * time.Second

// NewClient returns a client of a data directory's socket; nothing is dialled
// yet. The version is the caller's own, told to the server.
func NewClient(socket, version string) *Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &Client{
		base: url.URL{Scheme: "http", Host: "kiln"}, place: socket, version: version,
		http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", socket)
			},
			DisableCompression: true,
		}},
	}
}

// Version asks who answers.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return get[Version](ctx, c, "version", nil)
}

// Status asks for all environments at a glance.
func (c *Client) Status(ctx context.Context) (control.Status, error) {
	return get[control.Status](ctx, c, "status", nil)
}

// Instances lists instances by environment, service and age; an empty
// environment means all.
func (c *Client) Instances(ctx context.Context, environment string) ([]kiln.Instance, error) {
	return pages[kiln.Instance](ctx, c, "instances", environment)
}

// Releases lists releases by environment, the newest first; an empty
// environment means all.
func (c *Client) Releases(ctx context.Context, environment string) ([]kiln.Release, error) {
	return pages[kiln.Release](ctx, c, "releases", environment)
}

// pages asks for a list until its end.
func pages[T any](ctx context.Context, c *Client, path, environment string) ([]T, error) {
	all := []T{}
	query := url.Values{"environment": {environment}, "limit": {strconv.Itoa(pageMost)}}
	for {
		page, err := get[Page[T]](ctx, c, path, query)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Items...)
		if page.Next == "" {
			return all, nil
		}
		query.Set("cursor", page.Next)
	}
}

// Settings asks for the configuration in effect.
func (c *Client) Settings(ctx context.Context) (Settings, error) {
	return get[Settings](ctx, c, "config", nil)
}

// Reload has the configuration read again.
func (c *Client) Reload(ctx context.Context) (Reloaded, error) {
	var result Reloaded
	return result, c.call(ctx, http.MethodPost, "reload", nil, typeJSON, strings.NewReader("{}"), &result)
}

// Plan asks what Up would do.
func (c *Client) Plan(ctx context.Context, request control.UpRequest) (control.PlanResult, error) {
	var result control.PlanResult
	body, err := json.Marshal(request)
	if err != nil {
		return result, err
	}
	return result, c.call(ctx, http.MethodPost, "plan", nil, typeJSON, bytes.NewReader(body), &result)
}

// Up brings an environment to what a tree says. Ending ctx stops it before the
// rollout begins; a rollout that has begun goes on.
func (c *Client) Up(ctx context.Context, request control.UpRequest, progress func(kiln.Progress)) (control.UpResult, error) {
	return operate[control.UpResult](ctx, c, "up", request, progress)
}

// Bake makes the images and the bundle, and no release.
func (c *Client) Bake(ctx context.Context, request control.UpRequest, progress func(kiln.Progress)) (control.BakeResult, error) {
	return operate[control.BakeResult](ctx, c, "bake", request, progress)
}

// Push sends an image to another registry.
func (c *Client) Push(ctx context.Context, request PushRequest, progress func(kiln.Progress)) (PushResult, error) {
	return operate[PushResult](ctx, c, "push", request, progress)
}

// Rollback goes back to an earlier release.
func (c *Client) Rollback(ctx context.Context, request control.RollbackRequest, progress func(kiln.Progress)) (control.RollbackResult, error) {
	return operate[control.RollbackResult](ctx, c, "rollback", request, progress)
}

// Repave bakes environments again from newer bases.
func (c *Client) Repave(ctx context.Context, request control.RepaveRequest, progress func(kiln.Progress)) (control.RepaveResult, error) {
	return operate[control.RepaveResult](ctx, c, "repave", request, progress)
}

// Down ends an environment.
func (c *Client) Down(ctx context.Context, environment string, progress func(kiln.Progress)) error {
	_, err := operate[struct{}](ctx, c, "down", control.DownRequest{Environment: environment}, progress)
	return err
}

// Shutdown ends every environment, and then the processes of Kiln.
func (c *Client) Shutdown(ctx context.Context, progress func(kiln.Progress)) error {
	_, err := operate[struct{}](ctx, c, "shutdown", struct{}{}, progress)
	return err
}

// NotifyTest sends a test event to one receiver, or to all for "".
func (c *Client) NotifyTest(ctx context.Context, name string) (NotifyResults, error) {
	var result NotifyResults
	body, err := json.Marshal(NotifyTest{Name: name})
	if err != nil {
		return result, err
	}
	return result, c.call(ctx, http.MethodPost, "notify/test", nil, typeJSON, bytes.NewReader(body), &result)
}

// Events calls each for every selected event, in order. While it follows, a
// stream that breaks off is taken up again after the last event.
func (c *Client) Events(ctx context.Context, query control.EventQuery, each func(kiln.Event) error) error {
	var refused error
	take := func(f Frame) error {
		if f.Event == nil {
			return nil
		}
		query.After, query.Last = f.Event.Sequence, 0
		refused = each(*f.Event)
		return refused
	}
	for first := true; ; first = false {
		values := url.Values{
			"environment": {query.Environment}, "follow": {strconv.FormatBool(query.Follow)},
			"after": {strconv.FormatInt(query.After, 10)}, "last": {strconv.Itoa(query.Last)},
		}
		err := c.follow(ctx, "events", values, take)
		// One that was there may be away for a moment more.
		away := errors.Is(err, errBroken) || !first && errors.Is(err, &kiln.Error{Code: kiln.CodeUnavailable})
		if !query.Follow || ctx.Err() != nil || refused != nil || err != nil && !away {
			return err
		}
		if err := c.awaitBack(ctx); err != nil {
			return err
		}
	}
}

const (
	backLimit = 2 * time.Minute // how long a control plane that went away is waited for
	backEvery = 100 * time.Millisecond
	// silence is how long a stream that follows may have nothing at all: a
	// server says every aliveEvery that it is there.
	silence = 4 * aliveEvery
)

// awaitBack returns once a control plane answers again.
func (c *Client) awaitBack(ctx context.Context) error {
	limit := time.Now().Add(backLimit)
	tick := time.NewTicker(backEvery)
	defer tick.Stop()
	for {
		_, err := c.Version(ctx)
		if !errors.Is(err, &kiln.Error{Code: kiln.CodeUnavailable}) || time.Now().After(limit) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Logs calls each for every selected line, in the order of time.
func (c *Client) Logs(ctx context.Context, query kiln.LogQuery, each func(kiln.LogLine) error) error {
	values := url.Values{
		"environment": {query.Environment}, "service": {query.Service}, "instance": {query.Instance},
		"tail": {strconv.Itoa(query.Tail)}, "follow": {strconv.FormatBool(query.Follow)},
	}
	if !query.Since.IsZero() {
		values.Set("since", query.Since.Format(time.RFC3339Nano))
	}
	return c.follow(ctx, "logs", values, func(f Frame) error {
		if len(f.Log) == 0 {
			return nil
		}
		var line kiln.LogLine
		if err := json.Unmarshal(f.Log, &line); err != nil {
			return fmt.Errorf("read a log line: %w", err)
		}
		return each(line)
	})
}

// get asks for one JSON value.
func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var result T
	return result, c.call(ctx, http.MethodGet, path, query, "", nil, &result)
}

// operate starts a long operation and follows it to its end.
func operate[T any](ctx context.Context, c *Client, path string, request any, progress func(kiln.Progress)) (T, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return *new(T), err
	}
	response, err := c.send(ctx, http.MethodPost, path, nil, typeJSON, bytes.NewReader(body)) //nolint:bodyclose // outcome closes it
	if err != nil {
		return *new(T), err
	}
	return outcome[T](ctx, c, response, progress)
}

// outcome follows a long operation that was begun to its end.
func outcome[T any](ctx context.Context, c *Client, response *http.Response, progress func(kiln.Progress)) (result T, err error) {
	last, err := c.frames(ctx, response, func(f Frame) error {
		if f.Progress != nil && progress != nil {
			progress(*f.Progress)
		}
		return nil
	})
	if err != nil {
		return result, err
	}
	return result, json.Unmarshal(last, &result)
}

func (c *Client) follow(ctx context.Context, path string, query url.Values, each func(Frame) error) error {
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	response, err := c.send(within, http.MethodGet, path, query, "", nil) //nolint:bodyclose // frames closes it
	if err != nil {
		return err
	}
	timer := time.AfterFunc(silence, cancel)
	defer timer.Stop()
	response.Body = heard{response.Body, timer}
	_, err = c.frames(ctx, response, each)
	return err
}

// heard is a stream whose timer begins anew whenever something comes: a
// connection that a network forgot has no end.
type heard struct {
	io.ReadCloser
	timer *time.Timer
}

func (h heard) Read(p []byte) (int, error) {
	n, err := h.ReadCloser.Read(p)
	if n > 0 {
		h.timer.Reset(silence)
	}
	return n, err
}

// errBroken is in the error of a stream that ended without a result.
var errBroken = errors.New("the stream broke off")

// frames reads a stream to its end and returns the result.
func (c *Client) frames(ctx context.Context, response *http.Response, each func(Frame) error) (json.RawMessage, error) {
	defer func() { _ = response.Body.Close() }()
	decoder := json.NewDecoder(response.Body)
	for {
		var f Frame
		switch err := decoder.Decode(&f); {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			return nil, kiln.Errorf(kiln.CodeUnavailable, "kiln status says how things stand; kilnd.log in the data directory says why",
				"the control plane went away in the middle: %w", errors.Join(errBroken, err))
		case f.Error != nil:
			return nil, f.Error
		case f.Result != nil:
			return f.Result, nil
		}
		if err := each(f); err != nil {
			return nil, err
		}
	}
}

// call makes one request with one JSON answer.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, contentType string, body io.Reader, result any) error {
	response, err := c.send(ctx, method, path, query, contentType, body)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return refusedWith(response, path)
	}
	if err := json.NewDecoder(response.Body).Decode(result); err != nil {
		return fmt.Errorf("read the answer of /v1/%s: %w", path, err)
	}
	return nil
}

// refusedWith is the error of an answer that is one.
func refusedWith(response *http.Response, path string) error {
	var f Frame
	if err := json.NewDecoder(response.Body).Decode(&f); err != nil || f.Error == nil {
		return kiln.Errorf(kiln.CodeInternal, "", "/v1/%s answered %s", path, response.Status)
	}
	return f.Error
}

// send makes a request and checks that the two sides understand each other.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, contentType string, body io.Reader) (*http.Response, error) {
	address := c.base
	address.Path, address.RawQuery = "/v1/"+path, query.Encode()
	request, err := http.NewRequestWithContext(ctx, method, address.String(), body)
	if err != nil {
		return nil, err
	}
	request.Header.Set(VersionHeader, c.version)
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if err := kiln.CheckSkew("kiln", c.version, "kilnd", response.Header.Get(VersionHeader)); err != nil {
		_ = response.Body.Close()
		return nil, err
	}
	return response, nil
}

// unreachable says why nobody answered.
func (c *Client) unreachable(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case c.remote:
		return c.unreachableRemote(err)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return kiln.Errorf(kiln.CodeUnavailable, "kiln up starts one in the background, and kilnd runs one in the foreground; --data names another data directory",
			"no control plane runs on %s", c.place)
	case errors.Is(err, os.ErrPermission):
		return kiln.Errorf(kiln.CodeRefused, "run it as root or as a member of the group "+GroupName,
			"you may not use %s", c.place)
	default:
		return kiln.Errorf(kiln.CodeUnavailable, "kilnd.log in the data directory may say why",
			"the control plane does not answer: %w", err)
	}
}
