package bake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake/buildkit"
	"github.com/kilnproject/kiln/internal/bake/fence"
)

// lazyEngine starts BuildKit when it is first needed and stops it when it was
// not for a while, so that a daemon at rest does not carry it.
type lazyEngine struct {
	opts Options
	tag  string // tells this folder's names on the machine from others'

	mu     sync.Mutex
	engine *buildkit.Engine
	users  int
	timer  *time.Timer
	closed bool
}

func newLazyEngine(o Options) *lazyEngine {
	return &lazyEngine{opts: o, tag: kiln.DigestOf([]byte(o.Dir)).Hex()[:6]}
}

func (l *lazyEngine) root() string { return filepath.Join(l.opts.Dir, "buildkit") }

func (l *lazyEngine) cgroup() string {
	if l.opts.Group != "" {
		return l.opts.Group
	}
	return "/kiln-bake-" + l.tag
}

// acquire returns the running engine, starting it if need be. It stays up
// until release was called.
func (l *lazyEngine) acquire(ctx context.Context) (_ *buildkit.Engine, release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil, kiln.Errorf(kiln.CodeUnavailable, "Start kilnd again.", "baking has been shut down")
	}
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if l.engine == nil {
		if l.engine, err = l.start(ctx); err != nil {
			return nil, nil, err
		}
	}
	l.users++
	return l.engine, sync.OnceFunc(l.release), nil
}

func (l *lazyEngine) start(ctx context.Context) (*buildkit.Engine, error) {
	runtimePath, err := exec.LookPath(l.opts.Runtime)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "apt-get install runc", "baking needs the program %s: %w", l.opts.Runtime, err)
	}
	if os.Geteuid() != 0 {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "Run kilnd as root.", "baking a Dockerfile needs root")
	}
	if err := l.sweep(ctx); err != nil {
		return nil, fmt.Errorf("remove what an earlier bake left: %w", err)
	}
	network, err := fence.New(fence.Options{Tag: l.tag, Allow: l.opts.AllowPrivate, Log: l.opts.Log})
	if err != nil {
		return nil, err
	}
	e, err := buildkit.Start(ctx, buildkit.Options{
		Root:         l.root(),
		Runtime:      runtimePath,
		CgroupParent: l.cgroup(),
		Network:      network,
		Nameservers:  []string{fence.Nameserver().String()},
		Transport:    fence.Transport(l.opts.AllowPrivate),
		Parallel:     int64(runtime.NumCPU()),
		Log:          l.opts.Log,
	})
	if err != nil {
		return nil, errors.Join(err, network.Close())
	}
	return e, nil
}

// sweep removes what a killed process left. Nothing of this folder may run.
func (l *lazyEngine) sweep(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return errors.Join(buildkit.Sweep(ctx, l.root(), l.opts.Runtime, l.cgroup()), fence.Sweep(l.tag))
}

func (l *lazyEngine) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users--; l.users > 0 || l.engine == nil || l.closed {
		return
	}
	l.timer = time.AfterFunc(l.opts.Idle, l.idle)
}

// idle stops the engine unless somebody came for it meanwhile.
func (l *lazyEngine) idle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users > 0 || l.engine == nil {
		return
	}
	if err := l.stop(); err != nil {
		l.opts.Log.Warn("stop BuildKit", "error", err)
	}
}

// stop closes the engine and gives its memory back. The lock is held: whoever
// wants the engine now must wait for the old one to be gone.
func (l *lazyEngine) stop() error {
	err := l.engine.Close()
	l.engine = nil
	debug.FreeOSMemory()
	return errors.Join(err, l.sweep(context.Background()))
}

func (l *lazyEngine) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if l.engine == nil {
		return nil
	}
	return l.stop()
}
