package local_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local"
	"github.com/kilnproject/kiln/internal/logs"
	"github.com/kilnproject/kiln/internal/probe"
)

// longest bounds every wait for something that comes: only a failure takes so
// long, however busy the machine is.
const longest = 3 * time.Minute

// root skips a test that the machine's or the user's state does not allow.
func root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1")
	}
}

// bed is an engine with doubles around it.
type bed struct {
	*local.Engine
	t       testing.TB
	dir     string
	keeper  *keeper
	gateway *gateway
	real    *processes // instead of the doubles
	images  *images
	stop    func()
}

func newBed(t testing.TB) *bed {
	t.Helper()
	root(t)
	dir, err := os.MkdirTemp("", "kiln-local-")
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, dir: dir, keeper: newKeeper(t), gateway: newGateway(), images: newImages(t, dir)}
	t.Cleanup(b.clean)
	b.boot()
	return b
}

// boot makes an engine on the directory and runs it.
func (b *bed) boot() {
	b.t.Helper()
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(b.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	o := local.Options{
		DataDir: b.dir, Keeper: b.keeper, Gateway: b.gateway, Images: b.images, Prober: probe.Prober{}, Log: log,
		Listen: local.Listen{HTTP: []string{"127.0.0.1:0"}},
	}
	if b.real != nil {
		o.Keeper, o.Gateway, o.Listen.HTTP = b.real.keeper, b.real.gateway, []string{b.real.address}
	}
	e, err := local.New(context.Background(), o)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := e.Serve(ctx); err != nil {
			b.t.Error(err)
		}
	}()
	b.Engine = e
	b.stop = sync.OnceFunc(func() { cancel(); <-done })
}

// reboot ends the engine, as a kill would, and starts another.
func (b *bed) reboot() {
	b.t.Helper()
	b.stop()
	b.boot()
}

func (b *bed) clean() {
	defer b.remove() // also when something did not end
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	if b.Engine != nil {
		changes := b.Watch(ctx)
		_ = b.Apply(ctx, "test", nil, "the test is over")
		_ = b.Apply(ctx, "other", nil, "the test is over")
		for !b.empty("test") || !b.empty("other") {
			select {
			case <-changes:
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				b.t.Error("the environments did not end")
				b.stop()
				return
			}
		}
		for ctx.Err() == nil {
			if _, err := os.ReadDir(filepath.Join(b.dir, "local/instances")); err == nil && len(entries(filepath.Join(b.dir, "local/instances"))) == 0 {
				break
			}
			<-time.After(5 * time.Millisecond)
		}
		b.stop()
		if err := b.Clear(ctx); err != nil {
			b.t.Error(err)
		}
	}
}

// remove ends the processes, looks for what is left, and removes the folder.
func (b *bed) remove() {
	if b.real != nil {
		b.real.end(b.t)
	}
	if left := leftovers(local.Tag(b.dir)); len(left) > 0 && !b.t.Failed() {
		b.t.Errorf("left over: %s", strings.Join(left, ", "))
	}
	if err := os.RemoveAll(b.dir); err != nil {
		b.t.Error(err)
	}
}

func entries(dir string) []os.DirEntry {
	list, _ := os.ReadDir(dir)
	return list
}

func (b *bed) empty(environment string) bool {
	o, err := b.Observe(context.Background(), environment)
	if err != nil {
		return false
	}
	for _, f := range o.Fleets {
		if len(f.Instances) > 0 {
			return false
		}
	}
	return true
}

// leftovers lists what the machine still has of a tag.
func leftovers(tag string) []string {
	var out []string
	for _, command := range [][]string{{"ip", "-o", "link"}, {"nft", "list", "tables"}, {"ip", "-4", "-o", "address"}, {"cat", "/proc/self/mountinfo"}} {
		b, _ := exec.Command(command[0], command[1:]...).Output()
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, tag) && !strings.Contains(line, "k"+tag+"-") {
				out = append(out, strings.TrimSpace(line))
			}
		}
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/kiln-" + tag)
	return append(out, dirs...)
}

// wait returns once cond holds for the environment "test".
func (b *bed) wait(what string, cond func(o kiln.Observation) bool) kiln.Observation {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	changes := b.Watch(ctx)
	for {
		o, err := b.Observe(ctx, "test")
		if err != nil {
			b.t.Fatal(err)
		}
		if cond(o) {
			return o
		}
		select {
		case <-changes:
		case <-time.After(20 * time.Millisecond): // removals and outside effects are no changes
		case <-ctx.Done():
			b.t.Fatalf("waited too long for %s; now %+v", what, o)
		}
	}
}

func (b *bed) apply(fleets ...kiln.Fleet) {
	b.t.Helper()
	if err := b.Apply(context.Background(), "test", fleets, "release 1"); err != nil {
		b.t.Fatal(err)
	}
}

// ready applies fleets and waits until all are ready.
func (b *bed) ready(fleets ...kiln.Fleet) kiln.Observation {
	b.t.Helper()
	b.apply(fleets...)
	return b.wait("readiness", func(o kiln.Observation) bool { return allReady(o, fleets) })
}

func allReady(o kiln.Observation, fleets []kiln.Fleet) bool {
	for _, f := range fleets {
		s, ok := o.Fleet(f.ID())
		if !ok || s.Ready() != f.Count || len(s.Instances) != f.Count {
			return false
		}
	}
	return true
}

// get asks an instance.
func get(t testing.TB, i kiln.Instance, path string) string {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + i.Address.String() + path)
	if err != nil {
		return "error: " + err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "error: " + err.Error()
	}
	return string(body)
}

// web is the usual service.
func web(count int, change ...func(t *kiln.Template)) kiln.Fleet {
	t := kiln.Template{
		Service: "web", Image: kiln.DigestOf([]byte("app")), Platform: "linux/amd64",
		Ports: []kiln.Port{{Name: "http", Number: 80, Protocol: kiln.ProtocolHTTP}},
		Config: kiln.Config{
			User:   "app",
			Ready:  kiln.Probe{HTTP: "/healthz", Interval: 100 * time.Millisecond, Timeout: longest, Failures: 2},
			Limits: kiln.Limits{Memory: 64 << 20, PIDs: 64, Files: 1024, LogBytes: 1 << 20, Umask: 0o22},
			Drain:  time.Second, Grace: 2 * time.Second, StartTimeout: longest,
		},
	}
	for _, f := range change {
		f(&t)
	}
	return kiln.Fleet{Environment: "test", Template: t, Count: count}
}

// images has one root, a plain directory.
type images struct{ dir string }

var buildApp = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "kiln-app-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-o", dir+"/app", "./testdata/app")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(dir + "/app")
})

func newImages(t testing.TB, dir string) *images {
	t.Helper()
	app, err := buildApp()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "image")
	for _, d := range []string{"proc", "dev", "sys", "run", "tmp", "etc", "data", "own"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{
		"app": string(app), "etc/hosts": "", "etc/resolv.conf": "", "etc/hostname": "",
		"etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/data:/bin/sh\n", "etc/group": "app:x:1000:\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(root, "own"), 7, 7); err != nil {
		t.Fatal(err)
	}
	return &images{dir: root}
}

func (i *images) Seal(ctx context.Context, manifest kiln.Digest, points []string) error {
	_, _, err := i.Root(ctx, manifest, points)
	return err
}

func (i *images) Root(context.Context, kiln.Digest, []string) (string, ocispec.ImageConfig, error) {
	return i.dir, ocispec.ImageConfig{Entrypoint: []string{"/app"}, Env: []string{"IMAGE=1", "WHO=image"}}, nil
}

// gateway records tables.
type gateway struct {
	mu       sync.Mutex
	table    kiln.Traffic
	changed  chan struct{}
	refuse   error
	drained  []string
	failures chan string
	slow     func()   // called before a table is taken
	http     []string // every public listener that it was ever told of
}

func newGateway() *gateway {
	return &gateway{changed: make(chan struct{}), failures: make(chan string)}
}

func (g *gateway) Set(_ context.Context, t kiln.Traffic) error {
	g.mu.Lock()
	slow := g.slow
	g.http = append(g.http, t.HTTP...)
	g.mu.Unlock()
	if slow != nil {
		slow()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refuse != nil {
		return g.refuse
	}
	if t.Generation <= g.table.Generation {
		return fmt.Errorf("table %d after table %d", t.Generation, g.table.Generation)
	}
	g.table = t
	close(g.changed)
	g.changed = make(chan struct{})
	return nil
}

// wait returns the first table that satisfies cond.
func (g *gateway) wait(t testing.TB, what string, cond func(kiln.Traffic) bool) kiln.Traffic {
	t.Helper()
	limit := time.After(longest)
	for {
		g.mu.Lock()
		table, changed := g.table, g.changed
		g.mu.Unlock()
		if cond(table) {
			return table
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("waited too long for %s; table %+v", what, brief(table))
		}
	}
}

// brief counts a table's instances.
func brief(t kiln.Traffic) map[kiln.FleetID]int {
	out := map[kiln.FleetID]int{}
	for id, list := range t.Fleets {
		out[id] = len(list)
	}
	return out
}

func (g *gateway) generation() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.table.Generation
}

func (g *gateway) Measure(context.Context) ([]kiln.Measurement, error) { return nil, nil }

func (g *gateway) Drain(_ context.Context, instance string, _ time.Duration) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, list := range g.table.Fleets {
		for _, ep := range list {
			if ep.Instance == instance {
				return fmt.Errorf("drain of %s, which has traffic", instance)
			}
		}
	}
	g.drained = append(g.drained, instance)
	return nil
}

func (g *gateway) Failures(ctx context.Context) (<-chan string, error) {
	out := make(chan string)
	go func() {
		defer close(out)
		for {
			select {
			case id := <-g.failures:
				out <- id
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// keeper runs processes itself, as the reaper of what they leave behind.
type keeper struct {
	t         testing.TB
	mu        sync.Mutex
	known     map[string]kiln.ProcessStatus
	watchers  map[chan kiln.ProcessStatus]bool
	listeners []string
	taken     string          // a listener that another process has
	before    func(id string) // called before a process starts
	listed    func()          // called once a list was made, before it is returned
	away      int             // so many starts and forgettings find no keeper
}

// isAway says whether a call finds no keeper.
func (k *keeper) isAway() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.away == 0 {
		return nil
	}
	k.away--
	return kiln.Errorf(kiln.CodeUnavailable, "", "the keeper is away")
}

func newKeeper(t testing.TB) *keeper {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	return &keeper{t: t, known: map[string]kiln.ProcessStatus{}, watchers: map[chan kiln.ProcessStatus]bool{}}
}

func (k *keeper) Start(ctx context.Context, p kiln.Process) (kiln.ProcessStatus, error) {
	if k.before != nil {
		k.before(p.ID)
	}
	if err := k.isAway(); err != nil {
		return kiln.ProcessStatus{}, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return kiln.ProcessStatus{}, err
	}
	cmd := exec.CommandContext(ctx, p.Command[0], p.Command[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.Dir, w, w
	read := make(chan struct{})
	go pump(r, p, read)
	err = cmd.Run()
	_ = w.Close()
	if err != nil {
		<-read
		last, _ := logs.Last(p.LogDir, 3)
		return kiln.ProcessStatus{}, fmt.Errorf("%w: %v", err, last)
	}
	b, err := os.ReadFile(p.PIDFile)
	if err != nil {
		return kiln.ProcessStatus{}, err
	}
	s := kiln.ProcessStatus{ID: p.ID, StartedAt: time.Now()}
	if _, err := fmt.Sscan(string(b), &s.PID); err != nil {
		return s, err
	}
	k.tell(s)
	go k.reap(s, read)
	return s, nil
}

func pump(r *os.File, p kiln.Process, done chan struct{}) {
	defer close(done)
	defer r.Close()
	w := logs.NewWriter(p.LogDir, p.LogBytes)
	defer w.Close()
	lines := bufio.NewScanner(r)
	var batch logs.Batch
	for lines.Scan() {
		batch.Add(time.Now(), p.ID, "stdout", lines.Bytes())
		w.Write(&batch)
		batch.Reset()
	}
}

func (k *keeper) reap(s kiln.ProcessStatus, read chan struct{}) {
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(s.PID, &ws, 0, nil); err != unix.EINTR {
			break
		}
	}
	<-read
	s.Exit = &kiln.Exit{At: time.Now(), Code: ws.ExitStatus()}
	if ws.Signaled() {
		s.Exit.Signal, s.Exit.Code = int(ws.Signal()), 128+int(ws.Signal())
	}
	k.tell(s)
}

func (k *keeper) tell(s kiln.ProcessStatus) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known[s.ID] = s
	for w := range k.watchers {
		w <- s
	}
}

func (k *keeper) List(context.Context) ([]kiln.ProcessStatus, error) {
	k.mu.Lock()
	list, listed := slices.Collect(maps.Values(k.known)), k.listed
	k.mu.Unlock()
	if listed != nil {
		listed()
	}
	return list, nil
}

func (k *keeper) Watch(ctx context.Context) (<-chan kiln.ProcessStatus, error) {
	w := make(chan kiln.ProcessStatus, 10_000)
	k.mu.Lock()
	k.watchers[w] = true
	k.mu.Unlock()
	context.AfterFunc(ctx, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.watchers, w)
		close(w)
	})
	return w, nil
}

func (k *keeper) Forget(_ context.Context, id string) error {
	if err := k.isAway(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.known, id)
	return nil
}

func (k *keeper) Listen(_ context.Context, listeners []string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listeners = slices.DeleteFunc(slices.Clone(listeners), func(name string) bool { return name == k.taken })
	if len(k.listeners) < len(listeners) {
		return kiln.Errorf(kiln.CodeConflict, "", "listen on %s: another process holds it", k.taken)
	}
	return nil
}

// holds returns the listeners of TCP outside the instances' networks.
func (k *keeper) holds() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(k.listeners), func(name string) bool { return !strings.HasPrefix(name, "tcp://127.") })
}

// waitExit returns once the keeper knows that the process ended.
func (k *keeper) waitExit(t testing.TB, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	changes, err := k.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	ended := k.known[id].Exit != nil
	k.mu.Unlock()
	if ended {
		return
	}
	for s := range changes {
		if s.ID == id && s.Exit != nil {
			return
		}
	}
	t.Fatalf("%s did not end", id)
}
