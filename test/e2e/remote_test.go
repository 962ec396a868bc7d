package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/test/rig"
)

// configure writes the control plane's configuration.
func configure(t *testing.T, r *rig.Rig, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.Data, "kilnd.hcl"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// token makes a token with the command line, and returns it and its block.
func token(t *testing.T, r *rig.Rig, name string, args ...string) (text, block string) {
	t.Helper()
	var made struct{ Token, Block string }
	r.JSON(&made, append([]string{"token", "create", name}, args...)...)
	if err := server.CheckToken(made.Token); err != nil {
		t.Fatal(err)
	}
	return made.Token, made.Block
}

// free is an address of this machine that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// away is the command line on another machine: it has an address, a token and
// a pin, and no data directory.
type away struct {
	r           *rig.Rig
	server      string
	token       string
	fingerprint string
}

func (a away) run(args ...string) (stdout, stderr string, code int) {
	command := exec.Command(a.r.Bin("kiln"), append([]string{"-C", a.r.Work}, args...)...)
	command.Env = append(os.Environ(), "KILN_SERVER="+a.server, "KILN_TOKEN="+a.token, "KILN_FINGERPRINT="+a.fingerprint)
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	_ = command.Run()
	return out.String(), errs.String(), command.ProcessState.ExitCode()
}

func (a away) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := a.run(args...)
	if code != 0 {
		t.Fatalf("kiln %s from away: exit %d\n%s\n%s", strings.Join(args, " "), code, errs, a.r.Log())
	}
	return out
}

// actors are those of events of a kind, in order.
func actors(r *rig.Rig, kind string) []string {
	var out []string
	for line := range strings.Lines(r.Kiln("events", "--last", "0", "--json")) {
		var e kiln.Event
		if json.Unmarshal([]byte(line), &e) == nil && e.Kind == kind {
			out = append(out, e.Actor)
		}
	}
	return out
}

// TestFromAnotherMachine does everything over TCP, with a token.
func TestFromAnotherMachine(t *testing.T) {
	r := newRig(t)
	address := free(t)
	deploy, deployBlock := token(t, r, "ci", "--role", "deploy")
	read, readBlock := token(t, r, "eyes", "--role", "read")
	admin, adminBlock := token(t, r, "ops", "--role", "admin")
	scoped, scopedBlock := token(t, r, "preview", "--role", "deploy", "--environment", "preview-*")
	api := fmt.Sprintf("api {\n  listen = [%q]\n}\n", address)
	configure(t, r, api+deployBlock+readBlock+adminBlock+scopedBlock)
	r.Kiln("config", "check")
	if out := r.Kiln("reload"); !strings.Contains(out, "api.listen: [] -> ["+address+"]") || !strings.Contains(out, "token ci is new: role deploy") {
		t.Errorf("reload: %s", out)
	}
	var settings server.Settings
	r.JSON(&settings, "config", "show")
	if settings.API.Fingerprint == "" || len(settings.Tokens) != 4 || !slices.Equal(settings.API.Listen, []string{address}) {
		t.Fatalf("%+v", settings)
	}
	as := func(token string) away {
		return away{r: r, server: "https://" + address, token: token, fingerprint: settings.API.Fingerprint}
	}

	r.Write("kiln.hcl", one("v1", 1, ""))
	as(deploy).must(t, "up")
	if status, _, body := r.Get("web.test", "/"); status != 200 || body != "v1" {
		t.Errorf("GET: %d %q", status, body)
	}
	r.Write("kiln.hcl", one("v2", 1, ""))
	if _, _, code := as(deploy).run("plan"); code != 2 {
		t.Errorf("plan: exit %d", code)
	}
	as(deploy).must(t, "up")
	as(deploy).must(t, "rollback")
	for _, args := range [][]string{{"status"}, {"ps"}, {"releases"}, {"events"}, {"logs"}, {"logs", "web"}} {
		as(read).must(t, args...)
	}
	if out := as(read).must(t, "releases"); !strings.Contains(out, "token:ci") {
		t.Errorf("releases: %s", out)
	}
	for _, args := range [][]string{{"up"}, {"plan"}, {"rollback"}, {"down", "--yes"}, {"shutdown", "--yes"}, {"reload"}, {"config", "show"}} {
		if _, said, code := as(read).run(args...); code != 6 || !strings.Contains(said, "has role read") {
			t.Errorf("%v with role read: exit %d: %s", args, code, said)
		}
	}
	for _, args := range [][]string{{"shutdown", "--yes"}, {"reload"}, {"config", "show"}} {
		if _, said, code := as(deploy).run(args...); code != 6 || !strings.Contains(said, "needs role admin") {
			t.Errorf("%v with role deploy: exit %d: %s", args, code, said)
		}
	}
	if _, said, code := as(scoped).run("up"); code != 6 || !strings.Contains(said, `environment "default" is not for this token`) {
		t.Errorf("out of reach: exit %d: %s", code, said)
	}
	if out := as(scoped).must(t, "releases", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("out of reach: %s", out)
	}
	stranger, _ := server.NewToken()
	if _, said, code := as(stranger).run("status"); code != 6 || !strings.Contains(said, "the token is not known") {
		t.Errorf("a stranger: exit %d: %s", code, said)
	}
	pinned := as(read)
	pinned.fingerprint = "sha256:" + strings.Repeat("00", 32)
	if _, said, code := pinned.run("status"); code != 6 || !strings.Contains(said, "is not the server that --fingerprint names") {
		t.Errorf("another pin: exit %d: %s", code, said)
	}
	as(deploy).must(t, "down", "--yes")
	for kind, want := range map[string]string{
		"release.created": "token:ci", "release.condemned": "token:ci", "environment.down": "token:ci", "blobs.stored": "token:ci", "config.loaded": "root (0)",
	} {
		if got := actors(r, kind); len(got) == 0 || slices.ContainsFunc(got, func(a string) bool { return a != want }) {
			t.Errorf("%s is by %q, want %q", kind, got, want)
		}
	}
	if len(actors(r, "api.login_failed")) == 0 {
		t.Error("the failed login is not in the history")
	}
	as(admin).must(t, "shutdown", "--yes")
}

// TestReload changes the configuration under traffic.
func TestReload(t *testing.T) {
	r := newRig(t)
	api, http2 := free(t), free(t)
	first, block := token(t, r, "a", "--role", "read")
	listen := fmt.Sprintf("api {\n  listen = [%q]\n}\n", api)
	configure(t, r, listen+block)
	r.Kiln("reload")
	var settings server.Settings
	r.JSON(&settings, "config", "show")
	a := away{r: r, server: "https://" + api, token: first, fingerprint: settings.API.Fingerprint}
	a.must(t, "status")
	r.Write("kiln.hcl", one("v1", 1, ""))
	up(r)

	// A stream of a token that is revoked ends with the reload, and the next
	// request is refused.
	follow := exec.Command(r.Bin("kiln"), "events", "-f")
	follow.Env = append(os.Environ(), "KILN_SERVER="+a.server, "KILN_TOKEN="+a.token, "KILN_FINGERPRINT="+a.fingerprint)
	var said bytes.Buffer
	follow.Stderr = &said
	lines, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(lines).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	second, other := token(t, r, "b", "--role", "read")
	configure(t, r, listen+other)
	if out := r.Kiln("reload"); !strings.Contains(out, "token a is revoked") {
		t.Error(out)
	}
	if _, said, code := a.run("status"); code != 6 || !strings.Contains(said, "revoked") {
		t.Errorf("a revoked token: exit %d: %s", code, said)
	}
	// It hears so on its stream, or when it asks again for the rest of it.
	if err := follow.Wait(); err == nil || !strings.Contains(said.String(), "was revoked") {
		t.Errorf("its stream: %v: %s", err, &said)
	}

	// What is wrong is printed with its place, and changes nothing.
	a.token = second
	configure(t, r, listen+other+"lisen {\n}\n")
	problem, code := r.Refused("reload")
	if code != 3 || !strings.Contains(problem, "kilnd.hcl:8:1") || !strings.Contains(problem, `Did you mean "listen"?`) {
		t.Errorf("exit %d: %s", code, problem)
	}
	a.must(t, "status")
	if got := actors(r, "config.refused"); !slices.Equal(got, []string{"root (0)"}) {
		t.Errorf("refusals by %q", got)
	}
	if _, code = r.Refused("config", "check"); code != 3 {
		t.Errorf("config check: exit %d", code)
	}
	if err := os.Chmod(filepath.Join(r.Data, "kilnd.hcl"), 0o666); err != nil {
		t.Fatal(err)
	}
	if problem, code = r.Refused("reload"); code != 6 || !strings.Contains(problem, "chmod go-w") {
		t.Errorf("exit %d: %s", code, problem)
	}
	if err := os.Chmod(filepath.Join(r.Data, "kilnd.hcl"), 0o600); err != nil {
		t.Fatal(err)
	}

	// An address that another has: the API's listener does not move either.
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	configure(t, r, fmt.Sprintf("api {\n  listen = [%q, %q]\n}\n", free(t), busy.Addr())+other)
	if problem, code = r.Refused("reload"); code != 5 || !strings.Contains(problem, "address already in use") {
		t.Errorf("exit %d: %s", code, problem)
	}
	a.must(t, "status")
	_ = busy.Close()

	// SIGHUP does the same. The log's level shows that it is done.
	configure(t, r, listen+other+"storage {\n  keep_events = 5000\n}\n")
	if err := syscall.Kill(r.DaemonPID(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r.Eventually(20*time.Second, "the configuration is another", func() error {
		r.JSON(&settings, "config", "show")
		if settings.KeepEvents != 5000 {
			return errors.New("it is not")
		}
		return nil
	})
	if got := actors(r, "config.loaded"); got[len(got)-1] != "SIGHUP" {
		t.Errorf("loaded by %q", got)
	}

	// Public listeners move: the rig gave them as flags, which win; without
	// flags they follow the file.
	r.KillDaemon()
	configure(t, r, listen+other+fmt.Sprintf("listen {\n  http  = [%q]\n  https = []\n}\n", r.HTTP))
	r.StartWith()
	if status, _, body := r.Get("web.test", "/"); status != 200 || body != "v1" {
		t.Errorf("GET: %d %q", status, body)
	}
	a.must(t, "status")
	configure(t, r, listen+other+fmt.Sprintf("listen {\n  http  = [%q, %q]\n  https = []\n}\n", r.HTTP, http2))
	report := underLoad(t, r, 200, func() { r.Kiln("reload") })
	if report.Failed > 0 {
		t.Errorf("a listener was added under load: %s", report)
	}
	old := r.HTTP
	r.HTTP = http2
	if status, _, body := r.Get("web.test", "/"); status != 200 || body != "v1" {
		t.Errorf("GET of the new listener: %d %q", status, body)
	}
	configure(t, r, listen+other+fmt.Sprintf("listen {\n  http  = [%q]\n  https = []\n}\n", http2))
	r.Kiln("reload")
	if conn, err := net.Dial("tcp", old); err == nil {
		_ = conn.Close()
		t.Error("the listener that went still listens")
	}
	busy, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	configure(t, r, listen+other+fmt.Sprintf("listen {\n  http  = [%q]\n  https = []\n}\n", busy.Addr()))
	if problem, code = r.Refused("reload"); code != 5 || !strings.Contains(problem, busy.Addr().String()) {
		t.Errorf("exit %d: %s", code, problem)
	}
	if status, _, _ := r.Get("web.test", "/"); status != 200 {
		t.Errorf("GET after a refused move: %d", status)
	}
}
