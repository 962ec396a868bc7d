// Package buildkit runs BuildKit as a library: a solver, a worker with the
// overlay snapshotter and an OCI runtime, and the Dockerfile frontend, all in
// this process and reached over an in-memory connection.
//
// It bakes one Dockerfile at a time per call, any number of calls at once. It
// never pulls from a registry: bases come out of the caller's content store
// by digest. It never uses the host's network for a RUN: the caller gives the
// network.
package buildkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	httpsource "github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
)

// Options configure an engine.
type Options struct {
	// Root is an absolute folder that is the engine's own.
	Root string
	// Runtime is the OCI runtime's program: a name on PATH or a path.
	Runtime string
	// CgroupParent is the absolute cgroup that every RUN is below.
	CgroupParent string
	// Network gives each RUN its network. The engine closes it.
	Network network.Provider
	// Nameservers are written into /etc/resolv.conf of a RUN.
	Nameservers []string
	// Transport carries ADD of http and https addresses.
	Transport http.RoundTripper
	// Parallel bounds the RUNs, copies and exports at one time.
	Parallel int64
	Log      *slog.Logger
}

// Engine is a running BuildKit.
type Engine struct {
	client *client.Client
	log    *slog.Logger
	close  []func() error // run last to first
}

// Start starts an engine. Only one may run on a root, in any process: the
// caller holds a lock. The engine lives until Close, not until ctx ends.
func Start(ctx context.Context, o Options) (_ *Engine, err error) {
	e := &Engine{log: o.Log}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start BuildKit: %w", err), e.Close())
		}
	}()
	if err := os.MkdirAll(o.Root, 0o700); err != nil {
		return nil, err
	}
	redirectLog(o.Log)
	if err := limitProcesses(o.CgroupParent); err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e.close = append(e.close, func() error { cancel(); return nil })
	w, err := newWorker(life, o)
	if err != nil {
		return nil, errors.Join(err, o.Network.Close())
	}
	ctl, err := newController(life, o.Root, w)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	e.close = append(e.close, ctl.Close)
	return e, e.serve(life, ctl)
}

// newWorker makes the worker and replaces its sources that would reach the
// host's network unguarded.
func newWorker(ctx context.Context, o Options) (*base.Worker, error) {
	opt, err := workerOptions(o)
	if err != nil {
		return nil, err
	}
	w, err := base.NewWorker(ctx, opt)
	if err != nil {
		return nil, err
	}
	guarded, err := httpsource.NewSource(httpsource.Opt{CacheAccessor: w.CacheMgr, Transport: o.Transport})
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	w.HTTPSource = guarded
	w.SourceManager.Register(guarded)
	return w, nil
}

func newController(ctx context.Context, root string, w *base.Worker) (_ *control.Controller, err error) {
	var undo []func() error
	defer func() {
		if err != nil {
			for _, f := range undo {
				err = errors.Join(err, f())
			}
		}
	}()
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	workers := &worker.Controller{}
	if err := workers.Add(w); err != nil {
		return nil, err
	}
	cache, err := bboltcachestorage.NewStore(filepath.Join(root, "cache.db"))
	if err != nil {
		return nil, err
	}
	undo = append(undo, cache.Close)
	history, err := boltutil.SafeOpen(filepath.Join(root, "history.db"), 0o600,
		&bolt.Options{FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, err
	}
	undo = append(undo, history.Close)
	return control.NewController(control.Opt{
		SessionManager:   sessions,
		WorkerController: workers,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build),
		},
		CacheManager:   solver.NewCacheManager(ctx, "local", cache, worker.NewCacheResultStorage(workers)),
		CacheStore:     cache,
		HistoryDB:      history,
		LeaseManager:   w.LeaseManager(),
		ContentStore:   w.ContentStore(),
		GarbageCollect: w.GarbageCollect,
		GracefulStop:   ctx.Done(),
	})
}

// serve connects a client to the controller without leaving the process.
func (e *Engine) serve(ctx context.Context, ctl *control.Controller) error {
	srv := grpc.NewServer(
		grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor),
		grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize))
	ctl.Register(srv)
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	e.close = append(e.close, func() error { srv.Stop(); return <-served })
	c, err := client.New(ctx, "passthrough:///kiln",
		client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		return err
	}
	e.client = c
	e.close = append(e.close, c.Close)
	return nil
}

// Close stops the engine. Builds that still run are cut off.
func (e *Engine) Close() error {
	var err error
	for i := len(e.close) - 1; i >= 0; i-- {
		err = errors.Join(err, e.close[i]())
	}
	e.close = nil
	return err
}

// Prune removes the least recently used build cache until at most keepBytes
// remain; zero removes all that no running build uses.
func (e *Engine) Prune(ctx context.Context, keepBytes int64) error {
	opts := []client.PruneOption{client.PruneAll}
	if keepBytes > 0 {
		opts = []client.PruneOption{client.WithKeepOpt(0, 0, keepBytes, 0)}
	}
	if err := e.client.Prune(ctx, nil, opts...); err != nil {
		return fmt.Errorf("prune the build cache: %w", err)
	}
	return nil
}

// Usage returns the bytes of the build cache.
func (e *Engine) Usage(ctx context.Context) (int64, error) {
	records, err := e.client.DiskUsage(ctx)
	if err != nil {
		return 0, fmt.Errorf("measure the build cache: %w", err)
	}
	var sum int64
	for _, r := range records {
		sum += r.Size
	}
	return sum, nil
}
