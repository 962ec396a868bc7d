package local

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local/idmap"
	"github.com/kilnproject/kiln/internal/local/netns"
)

// poolSize is how many links are kept ready.
const poolSize = 8

// idle is how long nothing must have been started before links are prepared,
// so that preparing does not slow down a start.
const idle = 50 * time.Millisecond

// pool prepares links while nothing else is to be done. Each is used once.
type pool struct {
	e     *Engine
	ready chan *netns.Link
	used  chan struct{}
	next  atomic.Uint32
}

func newPool(e *Engine) *pool {
	p := &pool{e: e, ready: make(chan *netns.Link, poolSize), used: make(chan struct{}, 1)}
	var b [4]byte
	_, _ = rand.Read(b[:])
	p.next.Store(binary.BigEndian.Uint32(b[:]))
	return p
}

// take returns a prepared link, or makes one.
func (p *pool) take() (*netns.Link, error) {
	select {
	case l := <-p.ready:
		select {
		case p.used <- struct{}{}:
		default:
		}
		return l, nil
	default:
		return p.make()
	}
}

// make prepares a link under a name that no other has: 7 hex digits after the
// prefix, because the kernel allows 15 characters.
func (p *pool) make() (*netns.Link, error) {
	for {
		l, err := netns.Prepare(fmt.Sprintf("%s%07x", p.e.linkPrefix(), p.next.Add(1)&0xfff_ffff))
		if !errors.Is(err, unix.EEXIST) {
			return l, err
		}
	}
}

func (p *pool) run(ctx context.Context) {
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.used:
			timer.Reset(idle)
		case <-timer.C:
			if p.fill() {
				timer.Reset(idle)
			}
		}
	}
}

// fill prepares links as long as nothing starts, and says whether there is
// more to do.
func (p *pool) fill() bool {
	for len(p.ready) < cap(p.ready) {
		if p.e.busy.Load() > 0 {
			return true
		}
		p.e.mu.Lock()
		cleared := p.e.cleared
		p.e.mu.Unlock()
		if cleared {
			return false
		}
		l, err := p.make()
		if err != nil {
			p.e.Log.Warn("prepare a link", "error", err)
			return false
		}
		p.ready <- l
	}
	return false
}

// close gives up what was prepared.
func (p *pool) close() {
	for {
		select {
		case l := <-p.ready:
			_ = l.Close()
		default:
			return
		}
	}
}

// roots are the sealed roots as the environments' user namespaces see them:
// <dir>/<first ID>/<name of the seal>.
type roots struct {
	dir string

	mu    sync.Mutex
	users map[uint32]*os.File
}

// open mounts a sealed root for the namespace whose IDs start at base, if it
// is not.
func (r *roots) open(base uint32, sealed string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	parent := r.parent(base)
	target := filepath.Join(parent, kiln.DigestOf([]byte(sealed)).Short())
	if idmap.Same(sealed, target) {
		return target, nil
	}
	if err := idmap.Unmount(target); err != nil {
		return "", err
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return "", err
	}
	// Only the namespace's own root may pass.
	if err := errors.Join(os.Chown(parent, 0, int(base)), os.Chmod(parent, 0o710)); err != nil { //nolint:gosec // for the group of the namespace
		return "", err
	}
	user, ok := r.users[base]
	if !ok {
		var err error
		if user, err = idmap.Userns(base); err != nil {
			return "", err
		}
		if r.users == nil {
			r.users = map[uint32]*os.File{}
		}
		r.users[base] = user
	}
	return target, idmap.Mount(sealed, target, user)
}

func (r *roots) parent(base uint32) string {
	return filepath.Join(r.dir, strconv.FormatUint(uint64(base), 10))
}

// collect unmounts the roots of a namespace that are not used. What is used
// is asked while nothing is mounted; without an answer nothing is collected.
func (r *roots) collect(base uint32, inUse func() (used map[string]bool, known bool), log *slog.Logger) {
	r.mu.Lock()
	defer r.mu.Unlock()
	used, known := inUse()
	if !known {
		return
	}
	entries, err := os.ReadDir(r.parent(base))
	if err != nil {
		return
	}
	for _, entry := range entries {
		target := filepath.Join(r.parent(base), entry.Name())
		if used[target] {
			continue
		}
		if err := idmap.Unmount(target); err != nil {
			log.Warn("unmount a root", "error", err)
		}
	}
	if len(used) > 0 {
		return
	}
	if user, ok := r.users[base]; ok {
		_ = user.Close()
		delete(r.users, base)
	}
	_ = os.Remove(r.parent(base))
}

// bases lists the namespaces that have roots on this machine.
func (r *roots) bases() []uint32 {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil
	}
	var out []uint32
	for _, entry := range entries {
		if n, err := strconv.ParseUint(entry.Name(), 10, 32); err == nil {
			out = append(out, uint32(n))
		}
	}
	return out
}

// theseRoots is an answer for collect.
func theseRoots(used map[string]bool) func() (map[string]bool, bool) {
	return func() (map[string]bool, bool) { return used, true }
}

// collectRoots unmounts what an environment, whose IDs start at base, does not
// use any more. Neither e.mu nor the lock of the roots is held.
func (e *Engine) collectRoots(environment string, base uint32) {
	e.roots.collect(base, func() (map[string]bool, bool) {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.rootsInUse(environment, base)
	}, e.Log)
}

// rootsInUse are the roots that instances of an environment have or may get.
// Nothing is known while one is being prepared, which may have been mounted
// already, or when another environment has the IDs. e.mu is held.
func (e *Engine) rootsInUse(environment string, base uint32) (used map[string]bool, known bool) {
	for name, share := range e.plan.Environments {
		if name != environment && share.UIDBase == base {
			return nil, false
		}
	}
	used = map[string]bool{}
	for _, in := range e.instances {
		if in.Environment == environment && in.root != "" {
			used[in.root] = true
		}
	}
	for id, p := range e.prepared {
		if !strings.HasPrefix(string(id), environment+"/") {
			continue
		}
		select {
		case <-p.done:
			used[p.root] = true
		default:
			return nil, false
		}
	}
	return used, true
}

// forgetPrepared drops what was prepared for an environment and is neither
// desired nor there. e.mu is held.
func (e *Engine) forgetPrepared(environment string) {
	living := map[kiln.FleetID]bool{}
	for _, in := range e.instances {
		living[in.Fleet] = true
	}
	env := e.environments[environment]
	for id := range e.prepared {
		if !strings.HasPrefix(string(id), environment+"/") || living[id] {
			continue
		}
		if f, ok := env.fleets[id]; !ok || !f.desired {
			delete(e.prepared, id)
		}
	}
}
