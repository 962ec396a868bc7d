// Package rig runs the real executables for tests and benchmarks: it builds
// them once, gives each user a data directory and ports of its own, and sees
// afterwards that nothing is left on the machine.
package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kilnproject/kiln/internal/kilntest"
)

// TB is what a rig needs of a test; a benchmark program brings its own.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Cleanup(f func())
}

// Version is that of the executables.
const Version = "0.1.0-rig"

// Longest bounds a wait for something that comes: only a failure takes so
// long, however busy the machine is.
const Longest = 3 * time.Minute

// Rig is a control plane of its own.
type Rig struct {
	t    TB
	bin  string
	Data string   // data directory
	Work string   // folder for definitions
	HTTP string   // address of the public HTTP listener
	TLS  string   // address of the public HTTPS listener
	Env  []string // of the control plane, beside this process's

	mu     sync.Mutex
	daemon *daemon
}

// bins is where this process built the executables; faulty is where it built
// those that ask for faults (build tag "faults").
var (
	bins   = sync.OnceValues(func() (string, error) { return build("test") })                      //nolint:gochecknoglobals // built once per process
	faulty = sync.OnceValues(func() (string, error) { return build("faults", "-tags", "faults") }) //nolint:gochecknoglobals // see above
)

func build(name string, flags ...string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "bin", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, pkg := range []string{"./cmd/kiln", "./cmd/kilnd", "./test/app"} {
		args := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=" + Version}, flags...)
		cmd := exec.Command("go", append(args, "-o", dir+"/", pkg)...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	return dir, nil
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// New builds the executables and starts a control plane.
func New(t TB) *Rig {
	t.Helper()
	return start(t, bins, false)
}

// NewApart is New with executables of the rig's own, which may be replaced.
func NewApart(t TB) *Rig {
	t.Helper()
	return start(t, bins, true)
}

// NewFaulty is New with a control plane that does at a label of its journal
// what KILN_FAULT in its environment says (package kilntest).
func NewFaulty(t TB) *Rig {
	t.Helper()
	return start(t, faulty, false)
}

func start(t TB, bins func() (string, error), apart bool) *Rig {
	t.Helper()
	bin, err := bins()
	if err != nil {
		t.Fatalf("%v", err)
	}
	// Short, because a Unix socket's path may have 107 bytes.
	data, err := os.MkdirTemp("", "kiln")
	if err != nil {
		t.Fatalf("%v", err)
	}
	r := &Rig{t: t, bin: bin, Data: filepath.Join(data, "d"), Work: filepath.Join(data, "w"), HTTP: freeAddress(t), TLS: freeAddress(t)}
	for _, dir := range []string{r.Data, r.Work} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatalf("%v", err)
		}
	}
	t.Cleanup(func() { _ = os.RemoveAll(data) })
	if apart {
		r.bin = filepath.Join(data, "bin")
		r.build(r.bin, Version, "kiln", "kilnd", "app")
	}
	t.Cleanup(r.end)
	r.Start()
	return r
}

func freeAddress(t TB) string {
	t.Helper()
	port, err := kilntest.FreePort()
	if err != nil {
		t.Fatalf("%v", err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// Build makes a folder with kiln and kilnd of another version, as long as
// Version, and returns it.
func (r *Rig) Build(version string) string {
	r.t.Helper()
	dir := filepath.Join(filepath.Dir(r.Data), version)
	r.build(dir, version, "kiln", "kilnd")
	return dir
}

// build copies executables, and changes the version that the linker wrote into
// them: linking them anew would take half a minute.
func (r *Rig) build(dir, version string, names ...string) {
	r.t.Helper()
	from, err := bins()
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	for _, name := range names {
		var b []byte
		if err == nil {
			b, err = os.ReadFile(filepath.Join(from, name))
		}
		if name != "app" && err == nil && (!bytes.Contains(b, []byte(Version)) || len(version) != len(Version)) {
			err = fmt.Errorf("%s has no version to be changed to %s", name, version)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), bytes.ReplaceAll(b, []byte(Version), []byte(version)), 0o755)
		}
	}
	if err != nil {
		r.t.Fatalf("%v", err)
	}
}

// Bin returns the path of a built executable: "kiln", "kilnd" or "app".
func (r *Rig) Bin(name string) string { return filepath.Join(r.bin, name) }

// Start starts the control plane and waits until it answers.
func (r *Rig) Start() {
	r.t.Helper()
	r.StartWith("--http", r.HTTP, "--https", r.TLS)
}

// StartWith is Start with flags of the caller's instead of the rig's listeners.
func (r *Rig) StartWith(flags ...string) {
	r.t.Helper()
	if err := r.spawn(flags); err != nil {
		r.t.Fatalf("start kilnd: %v", err)
	}
	r.Eventually(Longest, "the control plane answers", func() error {
		_, err := r.Try("status")
		return err
	})
}

// StopDaemon ends the control plane with SIGTERM, as a service manager does,
// and leaves all else alone.
func (r *Rig) StopDaemon() {
	d := r.current()
	_ = syscall.Kill(d.pid, syscall.SIGTERM)
	<-d.ended
}

// Try runs `kiln` in the work folder and returns its standard output; the
// error holds its standard error and exit code.
func (r *Rig) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Bin("kiln"), append([]string{"--data", r.Data, "-C", r.Work}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = &ExitError{Args: args, Code: cmd.ProcessState.ExitCode(), Stderr: errs.String()}
	}
	return out.String(), err
}

// ExitError is a command that did not exit 0.
type ExitError struct {
	Args   []string
	Code   int
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("kiln %s: exit %d\n%s", strings.Join(e.Args, " "), e.Code, e.Stderr)
}

// Kiln runs `kiln` and fails the test when it does not exit 0.
func (r *Rig) Kiln(args ...string) string {
	r.t.Helper()
	out, err := r.Try(args...)
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.Log())
	}
	return out
}

// Refused runs `kiln`, wants it to fail, and returns what it said and its exit
// code.
func (r *Rig) Refused(args ...string) (string, int) {
	r.t.Helper()
	_, err := r.Try(args...)
	var exit *ExitError
	if !errors.As(err, &exit) {
		r.t.Fatalf("kiln %s should have failed", strings.Join(args, " "))
		return "", 0
	}
	return exit.Stderr, exit.Code
}

// JSON runs `kiln ... --json` and decodes its output into v.
func (r *Rig) JSON(v any, args ...string) {
	r.t.Helper()
	out := r.Kiln(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		r.t.Fatalf("kiln %s --json: %v in %s", strings.Join(args, " "), err, out)
	}
}

// Log returns the end of the control plane's log.
func (r *Rig) Log() string {
	b, _ := os.ReadFile(filepath.Join(r.Data, "kilnd.log"))
	return string(b[max(0, len(b)-4000):])
}

// Write writes a file of the work folder.
func (r *Rig) Write(path, content string) {
	r.t.Helper()
	path = filepath.Join(r.Work, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatalf("%v", err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		r.t.Fatalf("%v", err)
	}
}

// App puts the test application and a Dockerfile for it into folder app of
// the work folder.
func (r *Rig) App() {
	r.t.Helper()
	b, err := os.ReadFile(r.Bin("app"))
	if err != nil {
		r.t.Fatalf("%v", err)
	}
	r.Write("app/app", string(b))
	r.Write("app/Dockerfile", "FROM scratch\nCOPY --chmod=755 app /app\nCMD [\"/app\"]\n")
}

// Get sends a GET to the public listener with the given Host.
func (r *Rig) Get(host, path string) (int, http.Header, string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Longest)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.HTTP+path, http.NoBody)
	if err != nil {
		r.t.Fatalf("%v", err)
	}
	request.Host = host
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatalf("GET %s: %v\n%s", path, err, r.Log())
		return 0, nil, ""
	}
	defer func() { _ = response.Body.Close() }()
	var body bytes.Buffer
	_, _ = body.ReadFrom(response.Body)
	return response.StatusCode, response.Header, strings.TrimSpace(body.String())
}

// Eventually asks until there is no error, and fails after the limit.
func (r *Rig) Eventually(limit time.Duration, what string, f func() error) {
	r.t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("waited %s until %s: %v\n%s", limit, what, err, r.Log())
			return
		}
		<-tick.C
	}
}

// end shuts everything down and reports what is left on the machine.
func (r *Rig) end() {
	if r.current() == nil {
		return // it could not be started
	}
	_, away := r.Try("status")
	select {
	case <-r.Ended(): // a test shut it down, or an upgrade started another
	default:
		away = nil
	}
	if away == nil {
		if _, err := r.Try("shutdown", "--yes"); err != nil {
			r.t.Logf("shutdown: %v\n%s", err, r.Log())
		}
		r.KillDaemon()
	}
	if left := r.Left(); len(left) > 0 {
		r.t.Logf("left behind on the machine:\n%s", strings.Join(left, "\n"))
	}
}
