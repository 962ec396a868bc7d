package keep

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// Client calls a keeper. It holds no connection between calls, so that it
// serves across a keeper's restart, and is for concurrent use.
type Client struct {
	socket string
	dialer net.Dialer

	mu      sync.Mutex
	watches map[*told]bool
}

// told is what a Watch has passed on of the processes that are not forgotten.
type told struct {
	mu sync.Mutex
	by map[string]kiln.ProcessStatus
}

// Dial returns a client of the keeper at a socket, "DIR/run/keep.sock", once
// that has answered. Without one the error's code is unavailable.
func Dial(socket string) (*Client, error) {
	c := &Client{socket: socket}
	ctx, cancel := context.WithTimeout(context.Background(), clientLimit)
	defer cancel()
	if _, err := c.Ping(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Start runs a process and returns once it runs. The same process again is
// the same start.
func (c *Client) Start(ctx context.Context, p kiln.Process) (kiln.ProcessStatus, error) {
	r, err := c.call(ctx, request{Method: methodStart, Process: &p})
	if err != nil {
		return kiln.ProcessStatus{}, err
	}
	if r.Process == nil {
		return kiln.ProcessStatus{}, fmt.Errorf("start %s: the keeper's answer is empty", p.ID)
	}
	return *r.Process, nil
}

// List returns all processes that are not forgotten, without order.
func (c *Client) List(ctx context.Context) ([]kiln.ProcessStatus, error) {
	r, err := c.call(ctx, request{Method: methodList})
	return r.Processes, err
}

// Forget drops an ended process; one that is unknown is forgotten already, and
// one that runs is a conflict.
func (c *Client) Forget(ctx context.Context, id string) error {
	_, err := c.call(ctx, request{Method: methodForget, ID: id})
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		for t := range c.watches {
			t.forget(id)
		}
	}
	return err
}

// Listen makes the names the whole set that is listened on and returns once
// the gateway has them: "tcp://address:port", "udp://address:port". What can
// be opened is, also when the error tells of others.
func (c *Client) Listen(ctx context.Context, names []string) error {
	_, err := c.call(ctx, request{Method: methodListen, Listeners: names})
	return err
}

// Ping asks the keeper who it is.
func (c *Client) Ping(ctx context.Context) (Info, error) {
	r, err := c.call(ctx, request{Method: methodPing})
	if err == nil && r.Info == nil {
		err = errors.New("ping: the keeper's answer is empty")
	}
	if err != nil {
		return Info{}, err
	}
	return *r.Info, nil
}

// Stop ends the keeper and its gateway, and returns when another keeper can be
// started. It is a conflict while instances live, unless forced: they live on
// then, and their ends will not be known.
func (c *Client) Stop(ctx context.Context, force bool) error {
	if _, err := c.call(ctx, request{Method: methodStop, Force: force}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*endLimit) // it gives the gateway one
	defer cancel()
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		lock, err := lockDir(filepath.Dir(c.socket))
		if err == nil {
			return lock.Close()
		}
		select {
		case <-ctx.Done():
			return kiln.Errorf(kiln.CodeUnavailable, "keep.log in the data directory may say why", "the keeper was told to end: %w", err)
		case <-tick.C:
		}
	}
}

// lockPoll is how often Stop looks whether the keeper has ended.
const lockPoll = 10 * time.Millisecond

// Watch sends every process once and then each change, until ctx ends and the
// channel is closed. It connects again when the keeper was restarted, and
// sends what changed meanwhile. The error is for a keeper that cannot be
// reached at first.
func (c *Client) Watch(ctx context.Context) (<-chan kiln.ProcessStatus, error) {
	conn, in, err := c.open(ctx, request{Method: methodWatch})
	if err != nil {
		return nil, err
	}
	out := make(chan kiln.ProcessStatus)
	t := c.watch()
	go func() {
		defer close(out)
		defer c.unwatch(t)
		for conn != nil {
			t.relay(ctx, conn, in, out)
			conn, in = c.reopen(ctx)
		}
	}()
	return out, nil
}

func (c *Client) watch() *told {
	t := &told{by: map[string]kiln.ProcessStatus{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watches == nil {
		c.watches = map[*told]bool{}
	}
	c.watches[t] = true
	return t
}

func (c *Client) unwatch(t *told) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.watches, t)
}

func (t *told) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.by, id)
}

// news says whether a status differs from what was passed on of the process.
func (t *told) news(p kiln.ProcessStatus) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was, known := t.by[p.ID]
	if known && was.PID == p.PID && was.StartedAt.Equal(p.StartedAt) && (was.Exit == nil) == (p.Exit == nil) {
		return false
	}
	t.by[p.ID] = p
	return true
}

// only forgets all but these.
func (t *told) only(list []kiln.ProcessStatus) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := map[string]bool{}
	for _, p := range list {
		known[p.ID] = true
	}
	maps.DeleteFunc(t.by, func(id string, _ kiln.ProcessStatus) bool { return !known[id] })
}

// relay passes changes on until the connection ends, which it closes. The first
// response has all that the keeper knows.
func (t *told) relay(ctx context.Context, conn net.Conn, in *bufio.Reader, out chan<- kiln.ProcessStatus) {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	for first := true; ; first = false {
		var r response
		if readLine(in, maxResponse, &r) != nil || r.Error != nil {
			return
		}
		if first {
			t.only(r.Processes)
		}
		for _, p := range r.Processes {
			if !t.news(p) {
				continue
			}
			select {
			case out <- p:
			case <-ctx.Done():
				return
			}
		}
	}
}

// reopen connects until it succeeds or ctx ends, with pauses up to a second.
func (c *Client) reopen(ctx context.Context) (net.Conn, *bufio.Reader) {
	for wait := 5 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, time.Second) {
		conn, in, err := c.open(ctx, request{Method: methodWatch})
		if err == nil {
			return conn, in
		}
		pause(ctx, wait)
	}
	return nil, nil
}

// call makes one request and reads its response.
func (c *Client) call(ctx context.Context, req request) (response, error) {
	conn, in, err := c.open(ctx, req)
	if err != nil {
		return response{}, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var r response
	if err := readLine(in, maxResponse, &r); err != nil {
		if ctx.Err() != nil {
			return response{}, fmt.Errorf("%s by the keeper: %w", req.Method, context.Cause(ctx))
		}
		return response{}, c.unavailable(err)
	}
	if r.Error != nil {
		return response{}, r.Error
	}
	if r.Version != protocol {
		return response{}, kiln.Errorf(kiln.CodeRefused, "use the same version of all of Kiln's programs", "the keeper speaks version %d of its protocol, this program %d", r.Version, protocol)
	}
	return r, nil
}

// open connects and sends a request.
func (c *Client) open(ctx context.Context, req request) (net.Conn, *bufio.Reader, error) {
	short, done, err := shortPath(c.socket)
	if err != nil {
		return nil, nil, c.unavailable(err)
	}
	defer done()
	conn, err := c.dialer.DialContext(ctx, "unix", short)
	if err != nil {
		return nil, nil, c.unavailable(err)
	}
	req.Version = protocol
	_ = conn.SetWriteDeadline(time.Now().Add(clientLimit))
	if err := writeLine(conn, req); err != nil {
		_ = conn.Close()
		return nil, nil, c.unavailable(err)
	}
	return conn, bufio.NewReaderSize(conn, 4<<10), nil
}

func (c *Client) unavailable(err error) error {
	hint := "see keep.log in the data directory"
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		hint = "kilnd starts the keeper"
	}
	return kiln.Errorf(kiln.CodeUnavailable, hint, "reach the keeper at %s: %w", c.socket, err)
}
