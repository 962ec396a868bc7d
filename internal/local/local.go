// Package local is the engine on this machine: it runs instances by an OCI
// runtime on sealed roots, each with namespaces, a control group and a routed
// link of its own, keeps as many as are desired, and says to the gateway which
// of them take traffic.
//
// What is desired is on disk before a call returns, and every instance has a
// record on disk before anything of it exists; so an engine that was killed at
// any point adopts what lives, removes what is half made, and goes on.
// Instances are not its children: a keeper starts them and sees them end.
//
// The package never bakes, seals, listens or proxies; it asks for that through
// the interfaces below.
package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local/cgroup"
	"github.com/kilnproject/kiln/internal/local/netns"
	"github.com/kilnproject/kiln/internal/local/nflog"
	"github.com/kilnproject/kiln/internal/local/oci"
	"github.com/kilnproject/kiln/internal/local/subnet"
	"github.com/kilnproject/kiln/internal/logs"
)

// Keeper starts processes that outlive this one and holds the listening
// sockets.
type Keeper interface {
	// Start returns once the process runs.
	Start(ctx context.Context, p kiln.Process) (kiln.ProcessStatus, error)
	List(ctx context.Context) ([]kiln.ProcessStatus, error)
	// Watch streams starts and ends from now on, until ctx ends or the keeper
	// does; the channel is closed then.
	Watch(ctx context.Context) (<-chan kiln.ProcessStatus, error)
	// Forget drops what is known of a process that ended.
	Forget(ctx context.Context, id string) error
	// Listen makes the keeper hold exactly these listeners.
	Listen(ctx context.Context, listeners []string) error
}

// Gateway carries the traffic.
type Gateway interface {
	Set(ctx context.Context, t kiln.Traffic) error
	Measure(ctx context.Context) ([]kiln.Measurement, error)
	// Drain returns when nothing is in flight on the instance, which the
	// table must not have any more, or the limit has passed.
	Drain(ctx context.Context, instance string, limit time.Duration) error
	// Failures streams instances that refused or dropped a connection.
	Failures(ctx context.Context) (<-chan string, error)
}

// Images has sealed roots.
type Images interface {
	// Root seals and mounts an image with the mount points, verified, and
	// returns where. It is asked before each start; repeats are cheap.
	Root(ctx context.Context, manifest kiln.Digest, mountPoints []string) (dir string, config ocispec.ImageConfig, err error)
	// Seal does of that what needs nobody's word that the image may run.
	Seal(ctx context.Context, manifest kiln.Digest, mountPoints []string) error
}

// Prober checks instances.
type Prober interface {
	// Watch checks until ctx ends, and reports nil when the instance is
	// ready, and an error for each failed check while it is not.
	Watch(ctx context.Context, address netip.AddrPort, p kiln.Probe, protocol kiln.Protocol, nudge <-chan struct{}, report func(error))
	Get(ctx context.Context, address netip.AddrPort, path string, protocol kiln.Protocol) (status int, body []byte, err error)
}

// Listen is where the gateway takes public traffic.
type Listen struct {
	HTTP  []string // "address:port"
	HTTPS []string
}

// Options is what an engine needs. RunDir, Group, LogBytes and Parallel have
// defaults.
type Options struct {
	DataDir string // absolute
	// RunDir holds translated mounts; other users may pass through it but not
	// list it. Empty means /run/kiln/<tag>.
	RunDir string
	// Group is the control group that the instances' are below, a path under
	// the root of every hierarchy. Empty means /kiln-<tag>.
	Group   string
	Keeper  Keeper
	Gateway Gateway
	Images  Images
	Prober  Prober
	Listen  Listen
	Log     *slog.Logger
	// Failed is told why an instance did not start or a table was not
	// published, before that is tried again: a full disk may be relieved. It
	// may be nil.
	Failed func(ctx context.Context, err error)
	// LogBytes bounds all logs together; those of the living stay in any case.
	// 0 means 512 MiB.
	LogBytes int64
	// Parallel is how many instances are started at once; 0 means twice the
	// number of processors, which is where runc is fastest.
	Parallel int
}

// Engine implements kiln.Engine. Serve must be running for anything to happen.
type Engine struct {
	Options
	tag     string
	paths   paths
	groups  *cgroup.Tree
	shelf   *netns.Shelf
	runtime oci.Runtime
	init    string
	tap     *nflog.Listener
	foreign []subnet.Range

	traffic  *publisher // the gateway's table
	filter   *publisher // the packet filter
	changes  *fanout
	names    *resolver
	keepLogs atomic.Int64  // LogBytes, as it is now
	starts   chan struct{} // one token for each start that may go on at once
	busy     atomic.Int64  // starts that wait or go on
	pool     *pool
	roots    roots

	certificates certificates

	applying     sync.Mutex // held while a desired set is recorded
	recording    sync.Mutex // held while routes.json is written
	publishing   sync.Mutex // held while the filter is replaced
	listening    sync.Mutex // held while the keeper is told where to listen
	blockers     string     // foreign chains that were in the way then
	mu           sync.Mutex
	plan         *subnet.Plan
	environments map[string]*environment
	instances    map[string]*instance // living and dying, by ID
	table        kiln.RouteTable
	prepared     map[kiln.FleetID]*prepared
	public       bool            // HTTP was open once: who asks for a route that is gone is told so
	generation   uint64          // of the last table
	reserved     uint64          // generations up to here are recorded as used
	listeners    []string        // that the keeper has for the last table; nil before the first
	life         context.Context // of Serve; nil before
	begun        chan struct{}   // closed when life is set
	cleared      bool            // nothing is put on the machine any more
	work         sync.WaitGroup  // goroutines of Serve
}

// New opens the data directory, makes the machine ready, adopts what lives
// and removes what is left over. It starts nothing; Serve does.
func New(ctx context.Context, o Options) (*Engine, error) {
	if !filepath.IsAbs(o.DataDir) {
		return nil, kiln.Errorf(kiln.CodeInvalid, "give an absolute path", "data directory %q is not absolute", o.DataDir)
	}
	tag := Tag(o.DataDir)
	if o.RunDir == "" {
		o.RunDir = filepath.Join("/run/kiln", tag)
	}
	if o.Group == "" {
		o.Group = Group(o.DataDir)
	}
	if o.LogBytes <= 0 {
		o.LogBytes = DefaultLogBytes
	}
	if o.Parallel <= 0 {
		o.Parallel = 2 * runtime.NumCPU()
	}
	e := &Engine{
		Options: o, tag: tag, paths: newPaths(o.DataDir, o.RunDir),
		starts:       make(chan struct{}, o.Parallel),
		environments: map[string]*environment{}, instances: map[string]*instance{},
		prepared: map[kiln.FleetID]*prepared{}, changes: newFanout(), begun: make(chan struct{}),
	}
	e.certificates.log = o.Log
	e.keepLogs.Store(o.LogBytes)
	if e.Failed == nil {
		e.Failed = func(context.Context, error) {}
	}
	e.traffic = newPublisher(o.Log.With("what", "traffic"), e.publishTraffic)
	e.filter = newPublisher(o.Log.With("what", "filter"), e.publishFilter)
	e.names = newResolver(e)
	e.pool = newPool(e)
	e.roots.dir = o.RunDir
	if err := e.open(ctx); err != nil {
		if e.tap != nil {
			_ = e.tap.Close()
		}
		return nil, err
	}
	return e, nil
}

// Tag is what names of links, tables and groups of a data directory carry, so
// that several directories share one machine: 6 hex digits.
func Tag(dataDir string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(dataDir)))
	return hex.EncodeToString(sum[:3])
}

// Group is the control group of a data directory's instances where nobody says
// another.
func Group(dataDir string) string { return "/kiln-" + Tag(dataDir) }

// open makes directories and machine ready.
func (e *Engine) open(ctx context.Context) error {
	if err := e.paths.make(); err != nil {
		return err
	}
	var err error
	if e.groups, err = cgroup.Open(strings.Trim(e.Group, "/")); err != nil {
		return err
	}
	if e.init, err = oci.FindInit(); err != nil {
		return err
	}
	if e.foreign, err = foreignIDs(); err != nil {
		return err
	}
	if err := e.openPlan(); err != nil {
		return err
	}
	if err := e.load(); err != nil {
		return err
	}
	e.runtime, err = oci.Pick(ctx, e.RunDir, e.init, trialIDs, e.groups.Path("try"), e.groups.Swap())
	if err != nil {
		return err
	}
	if err := e.recover(ctx); err != nil {
		return fmt.Errorf("adopt what runs: %w", err)
	}
	return e.publishFilter(ctx)
}

// trialIDs is the ID range of the trial of a runtime, which nothing else has.
const trialIDs = 0x7000_0000 - 65536

// Serve keeps every environment as it is desired until ctx ends. Instances run
// on then.
func (e *Engine) Serve(ctx context.Context) error {
	life, stop := context.WithCancel(ctx)
	defer stop()
	e.firstTraffic(life)
	e.mu.Lock()
	if e.life != nil {
		e.mu.Unlock()
		return errors.New("the engine runs already")
	}
	e.life = life
	close(e.begun)
	for _, loop := range []func(context.Context){
		e.traffic.run, e.filter.run, e.names.run, e.pool.run, e.followKeeper, e.followGateway, e.followAttempts, e.followFilter, e.followCertificates, e.boundLogs,
	} {
		e.work.Go(func() { loop(life) })
	}
	for _, env := range e.environments {
		e.work.Go(func() { e.tendEnvironment(life, env) })
	}
	for _, in := range e.instances {
		e.work.Go(func() { e.tend(life, in) })
	}
	e.mu.Unlock()
	e.traffic.mark()
	<-life.Done()
	e.work.Wait()
	e.pool.close()
	return nil
}

// goAlong runs a goroutine as part of Serve, if it runs. e.mu is held.
//
//nolint:contextcheck // what it runs outlives the call that began it
func (e *Engine) goAlong(f func(ctx context.Context)) {
	if life := e.life; life != nil && life.Err() == nil {
		e.work.Go(func() { f(life) })
	}
}

// Clear removes what the engine has on the machine when no instance runs: its
// filter, its addresses, its links, groups and mounts. The data directory
// stays, and the engine is of no use any more.
func (e *Engine) Clear(ctx context.Context) error {
	e.mu.Lock()
	n := len(e.instances)
	e.cleared = n == 0
	e.mu.Unlock()
	if n > 0 {
		return kiln.Errorf(kiln.CodeConflict, "end the environments first: kiln down", "%d instances run", n)
	}
	return e.clear(ctx)
}

var _ kiln.Engine = (*Engine)(nil)

// Logs implements kiln.Engine.
func (e *Engine) Logs(ctx context.Context, w io.Writer, query kiln.LogQuery) error {
	return logs.Read(ctx, w, e.paths.logs, query)
}

// DefaultLogBytes bounds all logs together, and boundEvery is how often.
const (
	DefaultLogBytes = 512 << 20
	boundEvery      = time.Minute
)

// LogUsage returns the bytes of all logs.
func (e *Engine) LogUsage() (int64, error) { return logs.Usage(e.paths.logs) }

// CollectLogs removes logs of dead instances, the longest silent first, until
// all take at most keep bytes, and returns what it freed.
func (e *Engine) CollectLogs(keep int64) (int64, error) {
	return logs.Prune(e.paths.logs, keep, func(_, instance string) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		_, alive := e.instances[instance]
		return alive
	})
}

// boundLogs keeps all logs within their bound until ctx ends.
func (e *Engine) boundLogs(ctx context.Context) {
	timer := time.NewTicker(boundEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if _, err := e.CollectLogs(e.keepLogs.Load()); err != nil {
			e.Log.Warn("bound the logs", "error", err)
		}
	}
}

// SetLogBytes changes the bound of all logs together, for what there is, too;
// 0 means the default.
func (e *Engine) SetLogBytes(n int64) error {
	if n <= 0 {
		n = DefaultLogBytes
	}
	if e.keepLogs.Swap(n) == n {
		return nil
	}
	_, err := e.CollectLogs(n)
	return err
}

// Measure implements kiln.Engine.
func (e *Engine) Measure(ctx context.Context) ([]kiln.Measurement, error) {
	return e.Gateway.Measure(ctx)
}

// Watch implements kiln.Engine.
func (e *Engine) Watch(ctx context.Context) <-chan kiln.Change { return e.changes.watch(ctx) }

// paths are the engine's places in the data directory.
type paths struct {
	root, desired, instances, logs, runtime, run string
}

func newPaths(dataDir, runDir string) paths {
	root := filepath.Join(dataDir, "local")
	return paths{
		root: root, desired: filepath.Join(root, "desired"), instances: filepath.Join(root, "instances"),
		logs: filepath.Join(root, "logs"), runtime: filepath.Join(dataDir, "run", "oci"), run: runDir,
	}
}

func (p paths) make() error {
	for _, dir := range []string{p.desired, p.instances, p.logs, p.runtime} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	// The runtime enters a root as a user of the namespace, who must be able
	// to pass, and nothing more.
	for _, dir := range []string{filepath.Dir(p.run), p.run} {
		if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // see above
			return err
		}
	}
	return os.Chmod(p.run, 0o711) //nolint:gosec // see above
}

func (p paths) instance(id string) string { return filepath.Join(p.instances, id) }

func (p paths) log(environment, id string) string { return filepath.Join(p.logs, environment, id) }
