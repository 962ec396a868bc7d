package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/gateway/http1"
	"github.com/kilnproject/kiln/internal/handoff"
)

// Options is what a gateway needs.
type Options struct {
	// Dir is the gateway's own directory: the last table, certificates, the
	// access log. It is made when missing.
	Dir string
	Log *slog.Logger
	// Control is the listening control socket; nil means file descriptor 3.
	Control net.Listener
	// Listeners gives the sockets to serve on; nil means the keeper's, over
	// file descriptor 4.
	Listeners Listeners
	// Limits bound what clients and instances may do; the zero value means
	// DefaultLimits.
	Limits Limits
	ACME   ACME
}

// Limits bound what one client or instance may do.
type Limits struct {
	Head     http1.Limits
	HeadTime time.Duration // to send a request's head, once begun
	Idle     time.Duration // between requests
	Body     time.Duration // without progress of a request's body
	Answer   time.Duration // until an instance's answer begins
	Stream   time.Duration // without progress of an answer's body
	Write    time.Duration // without a client's taking of what there is of an answer
	// Connections is how many clients are served at once; half of them at
	// most from one address. A request over HTTP/2 counts as one client more,
	// a tunnel as two: each has descriptors of its own.
	Connections int
	// Stop is how long requests in flight may go on when the gateway ends.
	Stop time.Duration
	// Lull is how long idle connections stay open then: what a client is just
	// about to send on one is answered, and told that it was the last.
	Lull time.Duration
	// Abandoned is how long a gateway goes on without a keeper before it looks
	// whether its directory is gone too, and between looks.
	Abandoned time.Duration
}

// DefaultLimits suit public servers with ordinary clients.
func DefaultLimits() Limits {
	return Limits{
		Head:        http1.DefaultLimits(),
		HeadTime:    10 * time.Second,
		Idle:        75 * time.Second,
		Body:        30 * time.Second,
		Answer:      60 * time.Second,
		Stream:      15 * time.Minute,
		Write:       5 * time.Minute, // clients that keep to a rate pause for long after a burst
		Connections: maxConnections(),
		Stop:        10 * time.Second,
		Lull:        time.Second,
		Abandoned:   time.Minute,
	}
}

// gateway is the running process.
type gateway struct {
	dir      string
	log      *accessLog
	slog     *slog.Logger
	limits   Limits
	start    time.Time
	registry *registry
	hangups  *hangups
	pieces   pieces
	room     *budget // for what clients send
	conns    conns
	failures failures
	ports    listeners
	tls      *tlsState
	http2    *http2State
	dns      *resolver

	setting sync.Mutex // one table at a time
	table   atomic.Pointer[table]
	day     atomic.Pointer[dated]

	soft context.Context    // done when the gateway is to end
	quit context.CancelFunc // ends soft
	late atomic.Bool        // no new request may begin
	hard context.Context    // done when everything must end
}

// now is the gateway's time: nanoseconds since its start.
func (g *gateway) now() int64 { return int64(time.Since(g.start)) }

// ending says that the gateway is to end: every answer is the last of its
// connection.
func (g *gateway) ending() bool { return g.soft.Err() != nil }

type dated struct {
	second int64
	text   string
}

// date is the value of a Date field.
func (g *gateway) date() string {
	second := g.now() / int64(time.Second)
	if d := g.day.Load(); d != nil && d.second == second {
		return d.text
	}
	d := &dated{second, time.Now().UTC().Format(http.TimeFormat)}
	g.day.Store(d)
	return d.text
}

// Run serves until ctx ends, then lets requests in flight finish for
// Limits.Stop. It serves the last table from the start, without waiting for
// anyone, and goes on when the keeper dies, unless its directory is gone as
// well: then it ends, and that is no error.
func Run(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Limits == (Limits{}) {
		o.Limits = DefaultLimits()
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return fmt.Errorf("make the gateway's directory: %w", err)
	}
	if err := inherit(&o); err != nil {
		return err
	}
	hard, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	g, err := newGateway(ctx, hard, o)
	if err != nil {
		return err
	}
	g.quit = quit
	return g.run(ctx, kill, o)
}

// inherit takes what Options does not give from the keeper.
func inherit(o *Options) error {
	if o.Control == nil {
		f := os.NewFile(3, "control")
		l, err := net.FileListener(f)
		if err != nil {
			return fmt.Errorf("take the control socket: %w", err)
		}
		_ = f.Close()
		o.Control = l
	}
	if o.Listeners == nil {
		c, err := handoff.Conn(os.NewFile(4, "handoff"))
		if err != nil {
			return fmt.Errorf("take the listeners' socket: %w", err)
		}
		o.Listeners = received{c}
	}
	return nil
}

func newGateway(soft, hard context.Context, o Options) (*gateway, error) {
	start := time.Now()
	g := &gateway{
		dir: o.Dir, slog: o.Log, limits: o.Limits, start: start,
		registry: newRegistry(), soft: soft, hard: hard, room: newBudget(maxRoom),
		log: newAccessLog(o.Dir, start, o.Log),
	}
	var err error
	if g.hangups, err = newHangups(); err != nil {
		return nil, err
	}
	g.tls = newTLS(g, o.ACME)
	g.http2 = newHTTP2(g)
	g.dns = newResolver(g)
	g.table.Store(g.compile(kiln.Traffic{}))
	t, err := readTable(filepath.Join(o.Dir, tableFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		o.Log.Error("the last table is not used", "error", err)
	default:
		if err := g.use(t); err != nil {
			o.Log.Error("the last table is not used", "error", err)
		}
	}
	return g, nil
}

// run runs all parts and waits for them.
func (g *gateway) run(ctx context.Context, kill context.CancelFunc, o Options) error {
	logging, stopLog := context.WithCancel(context.WithoutCancel(ctx))
	var logged sync.WaitGroup
	logged.Go(func() { g.log.run(logging) })
	group, ctx := errgroup.WithContext(ctx)
	group.Go(g.hangups.run)
	group.Go(func() error { g.sweep(g.hard); return nil })
	group.Go(func() error { return g.receive(ctx, o.Listeners) })
	group.Go(func() error { return g.control(ctx, o.Control) })
	group.Go(func() error { g.tls.run(g.hard); return nil })
	group.Go(func() error {
		<-ctx.Done()
		g.stop() //nolint:contextcheck // ctx is over: it goes by g.hard
		kill()
		g.ports.wait()
		g.hangups.close()
		return nil
	})
	err := group.Wait()
	g.registry.close()
	stopLog()
	logged.Wait()
	return err
}

// stop ends listening, waits for what clients are just about to send, closes
// idle connections, and waits for the others.
func (g *gateway) stop() {
	g.ports.closeAll()
	ctx, cancel := context.WithTimeout(g.hard, g.limits.Stop)
	defer cancel()
	lull, served := time.NewTimer(g.limits.Lull), g.ports.served()
	defer lull.Stop()
	if t := g.table.Load(); len(t.hosts) == 0 && len(t.private) == 0 {
		lull.Reset(0) // nobody has anything to ask for
	}
	select {
	case <-served:
	case <-lull.C:
	}
	g.late.Store(true)
	g.conns.each((*conn).dismiss)
	_ = g.http2.base.Shutdown(ctx) // it has no listeners: it says goodbye on its connections
	select {
	case <-served:
	case <-ctx.Done():
		g.conns.each(func(c *conn) { _ = c.nc.Close() })
	}
}
