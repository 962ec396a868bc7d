package local

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local/oci"
	"github.com/kilnproject/kiln/internal/logs"
)

var (
	// errEnded says that an instance's end was asked for before it started.
	errEnded = errors.New("no longer wanted")
	// errAway says that the keeper died while it started an instance, or was
	// away: what there is of the instance nobody knows.
	errAway = errors.New("the keeper is away")
)

// A cause of death shows so many log lines, and of each at most so many bytes.
const (
	lastLines = 20
	lastBytes = 400
)

// prepared is what the instances of one template share. done is closed when
// the rest is set.
type prepared struct {
	done chan struct{}
	err  error
	oci  *oci.Template
	root string // the translated mount; empty with the host's root
}

// start makes an instance and its process. When it returns an error other
// than of ctx, parts may exist; bury removes them.
func (e *Engine) start(ctx context.Context, in *instance) error {
	select {
	case e.starts <- struct{}{}:
		defer func() { <-e.starts }()
	case <-in.end:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-in.end:
		return errEnded
	default:
	}
	p, err := e.prepare(ctx, in.Environment, in.template)
	if err != nil {
		return err
	}
	link, err := e.pool.take()
	if err != nil {
		return err
	}
	defer func() { _ = link.Close() }()
	if err := e.address(ctx, in, p, link.Name); err != nil {
		return err
	}
	caller := e.traffic.mark()
	if err := link.Connect(in.Address, e.plan.Source()); err != nil {
		return err
	}
	config, err := p.oci.Config(oci.Instance{
		ID: in.ID, Network: link.Path(), Cgroup: e.groups.Path(in.ID), Dir: e.paths.instance(in.ID),
	})
	if err != nil {
		return err
	}
	if err := e.writeBundle(in, config); err != nil {
		return err
	}
	e.introduce(ctx, in, caller)
	return e.launch(ctx, in)
}

// introduce waits until the gateway knows the instance as a caller: names are
// looked up and other services called from the first line of a program on,
// long before it is ready. A gateway that is away for a while learns of it
// when it comes back, and holds nobody up.
func (e *Engine) introduce(ctx context.Context, in *instance, caller uint64) {
	ctx, cancel := context.WithTimeout(ctx, tableLimit)
	defer cancel()
	if err := e.traffic.wait(ctx, caller); err != nil && ctx.Err() == nil {
		e.Log.Debug("the gateway does not know the instance yet", "instance", in.ID, "error", err)
	}
}

// address gives the instance its address, records it, and has the filter know
// it where it must before the first packet.
func (e *Engine) address(ctx context.Context, in *instance, p *prepared, link string) error {
	e.mu.Lock()
	share, changed, err := e.share(in.Environment)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	address, more, err := e.plan.Take(share, time.Now())
	if err == nil && (changed || more) {
		err = e.savePlan()
	}
	if err != nil {
		e.mu.Unlock()
		return err
	}
	in.Address, in.link, in.root = address, link, p.root
	in.stop, in.hasInit = int(p.oci.StopSignal()), p.oci.Init()
	resolver := share.Resolver
	e.mu.Unlock()

	dir := e.paths.instance(in.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := e.saveRecord(in); err != nil {
		return err
	}
	if err := writeNames(dir, in.ID, address, resolver); err != nil {
		return err
	}
	if changed || more || len(in.template.Config.Egress) > 0 {
		if err := e.filter.publish(ctx); err != nil {
			return fmt.Errorf("open the filter for %s: %w", in.ID, err)
		}
	}
	return nil
}

// writeNames writes the three files that an instance sees in /etc. Everybody
// in it may read them.
func writeNames(dir, id string, address, resolver netip.Addr) error {
	for name, content := range map[string]string{
		"hostname":    id + "\n",
		"hosts":       fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", address, id),
		"resolv.conf": fmt.Sprintf("nameserver %s\noptions timeout:2 attempts:2\n", resolver),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil { //nolint:gosec // see above
			return err
		}
	}
	return nil
}

func (e *Engine) writeBundle(in *instance, config []byte) error {
	return os.WriteFile(filepath.Join(e.paths.instance(in.ID), "config.json"), config, 0o600)
}

// launch has the keeper run the runtime.
func (e *Engine) launch(ctx context.Context, in *instance) error {
	dir := e.paths.instance(in.ID)
	pidFile := filepath.Join(dir, "pid")
	status, err := e.Keeper.Start(ctx, kiln.Process{
		ID:      in.ID,
		Command: append(e.runtime.Run(e.paths.runtime, dir), "--detach", "--pid-file", pidFile, in.ID),
		Dir:     dir, PIDFile: pidFile,
		LogDir: e.paths.log(in.Environment, in.ID), LogBytes: in.template.Config.Limits.LogBytes,
	})
	if errors.Is(err, &kiln.Error{Code: kiln.CodeUnavailable}) {
		return fmt.Errorf("%w: %w", errAway, err)
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	in.PID = status.PID
	e.mu.Unlock()
	if status.Exit != nil {
		e.exited(in.ID, *status.Exit)
		return nil
	}
	if err := e.checkLimit(in); err != nil {
		return err
	}
	return e.saveRecord(in)
}

// checkLimit makes sure that the memory limit took effect: a runtime on an
// unusual machine may have put the instance elsewhere.
func (e *Engine) checkLimit(in *instance) error {
	want := in.template.Config.Limits.Memory
	if want == 0 {
		return nil
	}
	got, err := e.groups.MemoryLimit(in.ID)
	if err != nil {
		if _, alive := e.findExit(in); !alive {
			return nil // it ended meanwhile, and its group may be gone
		}
		return fmt.Errorf("check the memory limit: %w", err)
	}
	const page = 64 << 10 // the kernel rounds down to pages
	if got > want || got < want-page {
		return fmt.Errorf("check the memory limit: it is %d bytes and should be %d", got, want)
	}
	return nil
}

// prepare returns what instances of a template share, made once. The root is
// asked for each time: one that is no longer what was verified is made again, or
// refused. A failure is not kept.
func (e *Engine) prepare(ctx context.Context, environment string, t kiln.Template) (*prepared, error) {
	id := kiln.FleetIDOf(environment, t)
	for {
		e.mu.Lock()
		p, ok := e.prepared[id]
		if !ok {
			p = &prepared{done: make(chan struct{})}
			e.prepared[id] = p
		}
		e.mu.Unlock()
		if !ok {
			p.err = e.compose(ctx, environment, t, p)
			if p.err != nil {
				e.mu.Lock()
				if e.prepared[id] == p {
					delete(e.prepared, id)
				}
				e.mu.Unlock()
			}
			close(p.done)
			return p, p.err
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if p.err == nil {
			_, err := e.rooted(ctx, environment, t)
			return p, err
		}
		if !errors.Is(p.err, context.Canceled) {
			return p, p.err
		}
	}
}

func (e *Engine) compose(ctx context.Context, environment string, t kiln.Template, p *prepared) error {
	r, err := e.rooted(ctx, environment, t)
	if err != nil {
		return err
	}
	if r.dir != r.sealed {
		p.root = r.dir
	}
	p.oci, err = oci.Prepare(oci.Options{
		Template: t, Image: r.image, Sealed: r.sealed, Root: r.dir, UIDBase: r.base, Init: e.init, Swap: e.groups.Swap(),
	})
	return err
}

// root is an image's root as the instances of an environment have it. For the
// same image it is in the same folders each time.
type root struct {
	sealed, dir string // of the machine, and of the environment's user namespace
	image       ocispec.ImageConfig
	base        uint32 // of the namespace's IDs
}

// rooted mounts the sealed root of a template's image where its instances find
// it, as far as it is not there as it was verified.
func (e *Engine) rooted(ctx context.Context, environment string, t kiln.Template) (r root, err error) {
	if r.sealed, r.image, err = e.Images.Root(ctx, t.Image, oci.MountPoints(t)); err != nil {
		return r, err
	}
	e.mu.Lock()
	share, changed, err := e.share(environment)
	if err == nil && changed {
		err = e.savePlan()
	}
	e.mu.Unlock()
	if err != nil {
		return r, err
	}
	r.base, r.dir = share.UIDBase, r.sealed
	if !t.Config.HostRoot {
		r.dir, err = e.roots.open(r.base, r.sealed)
	}
	return r, err
}

// lastLog is what an instance said last.
func (e *Engine) lastLog(in *instance) []string {
	lines, err := logs.Last(e.paths.log(in.Environment, in.ID), lastLines)
	if err != nil {
		e.Log.Warn("read the last lines", "instance", in.ID, "error", err)
	}
	out := make([]string, 0, len(lines))
	for _, l := range lines {
		out = append(out, clip(strings.TrimRight(l.Text, "\r")))
	}
	return out
}

// clip shortens a line to lastBytes, between characters: the log has all of
// it, and what dies again and again must not fill the history.
func clip(line string) string {
	if len(line) <= lastBytes {
		return line
	}
	n := lastBytes
	for n > 0 && !utf8.RuneStart(line[n]) {
		n--
	}
	return line[:n] + "..."
}
