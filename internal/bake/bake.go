// Package bake makes images: from Dockerfiles through an embedded BuildKit,
// from Debian packages, and from references of registries. What it makes goes
// into the content-addressed store and nowhere else; it never opens a path of
// a caller's, never runs what it baked outside a sandbox, and starts nothing
// for images whose inputs were baked before.
//
// The same inputs give the same digest on any day: every file and the image
// itself carry the time Epoch, and no attestation, host name or clock goes in.
package bake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake/debian"
	"github.com/kilnproject/kiln/internal/bake/registry"
	"github.com/kilnproject/kiln/internal/confine"
)

// Epoch is the modification time of everything baked, in Unix seconds:
// 2000-01-01T00:00:00Z. It is not 0 because archive formats such as zip, and
// with them Python's packaging, cannot write times before 1980.
const Epoch = 946684800

// format changes when the same inputs would give another image, so that what
// an older Kiln baked is not taken for it.
const format = 1

// Options configure a Baker.
type Options struct {
	// Dir is the baker's own folder: BuildKit's state, records of what was
	// baked. One process at a time has it.
	Dir   string
	Store Store
	// Runtime is the OCI runtime of a RUN, a name on PATH or a path; "runc"
	// when empty. It must be able to run on the machine's cgroups.
	Runtime string
	// Idle is how long BuildKit stays started after its last bake; 2 minutes
	// when zero.
	Idle time.Duration
	// Group is the control group that every RUN is below, a path under the
	// root of each hierarchy; one named after Dir when empty.
	Group string
	// AllowPrivate are private ranges that a RUN and an ADD may reach, such
	// as those of a package mirror.
	AllowPrivate []netip.Prefix
	// Parallel bounds the images baked at one time; the number of processors
	// when zero.
	Parallel int
	// Worker does the work of package strip in processes without privileges.
	Worker confine.Program
	// OwnRegistry is what carries requests to a registry that needs no network;
	// see registry.Options.
	OwnRegistry func(*http.Request) http.RoundTripper
	Log         *slog.Logger // discards when nil
}

// Baker bakes images. Its methods may be called concurrently.
type Baker struct {
	opts     Options
	lock     *os.File
	index    index
	engine   *lazyEngine
	debian   *debian.Builder
	registry *registry.Client
	close    func() error
}

// New takes the folder, and removes what a killed predecessor left: processes
// of a RUN, mounts, cgroups, links and rules. It fails with a conflict when
// another process has the folder.
func New(ctx context.Context, o Options) (*Baker, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the baker's folder: %w", err)
	}
	o.Dir = dir
	if o.Runtime == "" {
		o.Runtime = "runc"
	}
	if o.Idle <= 0 {
		o.Idle = 2 * time.Minute
	}
	if o.Parallel <= 0 {
		o.Parallel = runtime.NumCPU()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the baker's folder: %w", err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	b := &Baker{
		opts:     o,
		lock:     lock,
		index:    index{dir: o.Dir, store: o.Store},
		debian:   debian.New(debian.Options{Dir: filepath.Join(o.Dir, "debian"), Store: o.Store, Epoch: Epoch, Worker: o.Worker, Log: o.Log}),
		registry: registry.New(registry.Options{Store: o.Store, Own: o.OwnRegistry}),
	}
	b.engine = newLazyEngine(o)
	b.close = sync.OnceValue(func() error { return errors.Join(b.engine.close(), b.lock.Close()) }) //nolint:contextcheck // it goes on after New
	if err := b.engine.sweep(ctx); err != nil {
		o.Log.Warn("sweep what an earlier bake left", "error", err)
	}
	return b, nil
}

// Bake bakes every image of the request, in order of dependency and in
// parallel where it can be. It is all or nothing: on an error the images that
// were finished stay known for the next time.
//
// The caller holds the store from before Bake until the images are named by
// what it keeps.
func (b *Baker) Bake(ctx context.Context, req kiln.BakeRequest) (kiln.BakeResult, error) {
	if err := checkGraph(req.Images); err != nil {
		return kiln.BakeResult{}, err
	}
	release, err := b.opts.Store.Hold(ctx)
	if err != nil {
		return kiln.BakeResult{}, err
	}
	defer release()
	return newJob(b, req).run(ctx)
}

// Lookup says which images of the request were baked before, and for each
// other one why it must be baked, as a sentence without its stop. It resolves
// nothing and starts nothing.
func (b *Baker) Lookup(ctx context.Context, req kiln.BakeRequest) (map[string]kiln.Baked, map[string]string, error) {
	if err := checkGraph(req.Images); err != nil {
		return nil, nil, err
	}
	release, err := b.opts.Store.Hold(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	return newJob(b, req).lookup(ctx)
}

// Prune removes build cache until at most keepBytes remain, least recently
// used first. The records of what was baked stay: they are small.
func (b *Baker) Prune(ctx context.Context, keepBytes int64) error {
	e, release, err := b.engine.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	return e.Prune(ctx, keepBytes)
}

// Usage returns the bytes on disk below the baker's folder.
func (b *Baker) Usage(ctx context.Context) (int64, error) { return diskUsage(ctx, b.opts.Dir) }

// Close stops BuildKit, cutting off what it still bakes, and gives the folder
// back. Further calls do nothing.
func (b *Baker) Close() error { return b.close() }
