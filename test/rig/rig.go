// Package rig runs the real executables for tests and benchmarks: it builds
// them once, gives each user a data directory and ports of its own, and sees
// afterwards that nothing is left on the machine.
package rig

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	Data string // data directory
	Work string // folder for definitions
	HTTP string // address of the public HTTP listener
	TLS  string // address of the public HTTPS listener

	daemon *exec.Cmd
}

// bins is where this process built the executables.
var bins = sync.OnceValues(build) //nolint:gochecknoglobals // built once per process

func build() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "bin", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, pkg := range []string{"./cmd/kiln", "./cmd/kilnd", "./test/app"} {
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+Version, "-o", dir+"/", pkg)
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
func New(t TB) *Rig { return newRig(t, false) }

// NewApart is New with executables of the rig's own, which may be replaced.
func NewApart(t TB) *Rig { return newRig(t, true) }

func newRig(t TB, apart bool) *Rig {
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
	log, err := os.OpenFile(filepath.Join(r.Data, "kilnd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatalf("%v", err)
	}
	defer func() { _ = log.Close() }()
	r.daemon = exec.Command(r.Bin("kilnd"), append([]string{"--data", r.Data}, flags...)...)
	r.daemon.Stdout, r.daemon.Stderr = log, log
	r.daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := r.daemon.Start(); err != nil {
		r.t.Fatalf("start kilnd: %v", err)
	}
	r.Eventually(Longest, "the control plane answers", func() error {
		_, err := r.Try("status")
		return err
	})
}

// KillDaemon ends the control plane with SIGKILL and leaves all else alone.
func (r *Rig) KillDaemon() {
	_ = r.daemon.Process.Kill()
	_ = r.daemon.Wait()
}

// StopDaemon ends the control plane with SIGTERM, as a service manager does,
// and leaves all else alone.
func (r *Rig) StopDaemon() {
	_ = r.daemon.Process.Signal(syscall.SIGTERM)
	_ = r.daemon.Wait()
}

// DaemonPID is the control plane's process id.
func (r *Rig) DaemonPID() int { return r.daemon.Process.Pid }

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

// Tag is what the names of this rig's links, tables and cgroups are made of.
func (r *Rig) Tag() string {
	sum := sha256.Sum256([]byte(r.Data))
	return hex.EncodeToString(sum[:])[:6]
}

// end shuts everything down and reports what is left on the machine.
func (r *Rig) end() {
	if _, err := r.Try("shutdown", "--yes"); err != nil {
		r.t.Logf("shutdown: %v\n%s", err, r.Log())
	}
	_ = r.daemon.Process.Kill()
	_ = r.daemon.Wait()
	if left := r.Left(); len(left) > 0 {
		r.t.Logf("left behind on the machine:\n%s", strings.Join(left, "\n"))
	}
}

// Left lists the links, tables, mounts, cgroups and processes of this rig.
func (r *Rig) Left() []string {
	var left []string
	for _, probe := range [][]string{{"ip", "-o", "link"}, {"nft", "list", "tables"}, {"cat", "/proc/mounts"}, {"ps", "-eo", "pid,args"}, {"find", "/sys/fs/cgroup", "-maxdepth", "3", "-type", "d"}} {
		out, _ := exec.Command(probe[0], probe[1:]...).Output()
		for line := range strings.Lines(string(out)) {
			if (strings.Contains(line, r.Tag()) || strings.Contains(line, r.Data)) && !strings.Contains(line, "kilnd --data") {
				left = append(left, strings.TrimSpace(line))
			}
		}
	}
	return left
}
