// Package e2e drives the real executables on a real machine: real images,
// real namespaces, real traffic.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/test/load"
	"github.com/kilnproject/kiln/test/rig"
)

func newRig(t *testing.T) *rig.Rig {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1: `make test` as root sets it")
	}
	r := rig.New(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("control plane's log:\n%s", r.Log())
		}
	})
	r.App()
	return r
}

// one is a definition of a single web service; extra goes into its block.
func one(version string, count int, extra string) string {
	return fmt.Sprintf(`
gate { no_database = "warn" }

image "app" {
  dockerfile { context = "app" }
}

service "web" {
  image = image.app
  count = %d
  port "http" {
    number   = 8080
    protocol = "http"
  }
  env   = { VERSION = %q }
  ready { http = "/healthz" }
  %s
}

route "web" {
  host = "web.test"
  to   = service.web
}
`, count, version, extra)
}

// underLoad keeps sending GETs while f runs and reports.
func underLoad(t *testing.T, r *rig.Rig, rate int, f func()) load.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	reports := make(chan load.Report)
	go func() {
		reports <- load.Run(ctx, load.Options{
			URL: "http://" + r.HTTP + "/", Host: "web.test", Rate: rate,
			// A machine that stands still for some seconds is no failed request.
			Timeout: rig.Longest, MaxInFlight: 4096,
			Version: func(_ int, h http.Header, _ []byte) string { return h.Get("Version") },
		})
	}()
	f()
	cancel()
	return <-reports
}

func instances(r *rig.Rig) []kiln.Instance {
	var all []kiln.Instance
	r.JSON(&all, "ps")
	return slices.DeleteFunc(all, func(i kiln.Instance) bool { return i.State == kiln.InstanceDead })
}

func ids(all []kiln.Instance) []string {
	var out []string
	for _, i := range all {
		out = append(out, i.ID)
	}
	slices.Sort(out)
	return out
}

func up(r *rig.Rig, args ...string) control.UpResult {
	var result control.UpResult
	r.JSON(&result, append([]string{"up"}, args...)...)
	return result
}

func TestUpReplaceRollback(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", one("v1", 2, ""))
	if got := up(r); got.Release.Number != 1 || got.Nothing {
		t.Fatalf("first up: %+v", got)
	}
	if status, _, body := r.Get("web.test", "/"); status != 200 || body != "v1" {
		t.Fatalf("GET: %d %q", status, body)
	}
	before := ids(instances(r))
	if got := up(r); !got.Nothing || got.Release.Number != 1 {
		t.Errorf("the same again: %+v", got)
	}
	if after := ids(instances(r)); !slices.Equal(before, after) {
		t.Errorf("the same again touched instances: %v, then %v", before, after)
	}

	r.Write("kiln.hcl", one("v2", 2, ""))
	if _, code := r.Refused("plan"); code != 2 {
		t.Errorf("plan with something to do exits %d, want 2", code)
	}
	report := underLoad(t, r, 300, func() { up(r) })
	if report.Failed > 0 || report.Versions["v2"] == nil {
		t.Errorf("replacement under load: %s", report)
	}
	report = underLoad(t, r, 300, func() { r.Kiln("rollback") })
	if report.Failed > 0 {
		t.Errorf("rollback under load: %s", report)
	}
	if _, _, body := r.Get("web.test", "/"); body != "v1" {
		t.Errorf("after the rollback: %q", body)
	}
	if said, _ := r.Refused("up"); !strings.Contains(said, "condemned") || !strings.Contains(said, "--again") {
		t.Errorf("a condemned release came back without a word: %s", said)
	}
	if got := up(r, "--again"); got.Nothing {
		t.Errorf("up --again: %+v", got)
	}
	if _, _, body := r.Get("web.test", "/"); body != "v2" {
		t.Errorf("after up --again: %q", body)
	}
}

func TestCountChangesOnlyTheDifference(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", one("v1", 2, ""))
	up(r)
	before := ids(instances(r))
	r.Write("kiln.hcl", one("v1", 4, ""))
	up(r)
	grown := ids(instances(r))
	if len(grown) != 4 {
		t.Fatalf("instances: %v", grown)
	}
	for _, id := range before {
		if !slices.Contains(grown, id) {
			t.Errorf("%s was touched by a change of the count", id)
		}
	}
	r.Write("kiln.hcl", one("v1", 1, ""))
	up(r)
	r.Eventually(rig.Longest, "one is left", func() error {
		if left := ids(instances(r)); len(left) != 1 || !slices.Contains(grown, left[0]) {
			return fmt.Errorf("instances: %v", left)
		}
		return nil
	})
}

func TestAReleaseThatFailsTouchesNothing(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", one("v1", 2, ""))
	up(r)
	before := ids(instances(r))

	r.Write("kiln.hcl", strings.Replace(one("v2", 2, `start_timeout = "2s"`), `VERSION = "v2"`, `VERSION = "v2", NEVER_READY = "1"`, 1))
	said, _ := r.Refused("up")
	if !strings.Contains(said, "503") {
		t.Errorf("the failure does not name the probe's answer: %s", said)
	}
	r.Write("kiln.hcl", strings.Replace(one("v3", 2, ""), `VERSION = "v3"`, `VERSION = "v3", EXIT = "7"`, 1))
	said, _ = r.Refused("up")
	if !strings.Contains(said, "7") || !strings.Contains(said, "exiting as told") {
		t.Errorf("the failure names neither exit code nor last log line: %s", said)
	}
	r.Write("kiln.hcl", one("v4", 2, `rollout "blue-green" {
    verify "front" {
      http = "/"
      body = "something else"
    }
  }`))
	if said, _ = r.Refused("up"); !strings.Contains(said, "front") {
		t.Errorf("the failure does not name the check: %s", said)
	}
	r.Eventually(rig.Longest, "only the first release runs", func() error {
		if after := ids(instances(r)); !slices.Equal(before, after) {
			return fmt.Errorf("%v, then %v", before, after)
		}
		return nil
	})
	if _, _, body := r.Get("web.test", "/"); body != "v1" {
		t.Errorf("served: %q", body)
	}
}

func TestAKilledInstanceIsReplaced(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", one("v1", 3, ""))
	up(r)
	victim := instances(r)[0]
	report := underLoad(t, r, 300, func() {
		if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		r.Eventually(rig.Longest, "another took its place", func() error {
			all := instances(r)
			ready := 0
			for _, i := range all {
				if i.State == kiln.InstanceReady && i.ID != victim.ID {
					ready++
				}
			}
			if ready != 3 {
				return fmt.Errorf("%d ready", ready)
			}
			return nil
		})
	})
	if report.Failed > 0 {
		t.Errorf("GETs failed: %s", report)
	}
	r.Eventually(rig.Longest, "the death is in the events", func() error {
		if out := r.Kiln("events"); !strings.Contains(out, victim.ID) || !strings.Contains(out, "SIGKILL") {
			return fmt.Errorf("events: %s", out)
		}
		return nil
	})
}

func TestMemoryIsTheCauseOfDeath(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", strings.Replace(one("v1", 1, `limits { memory = "48MiB" }`), `VERSION = "v1"`, `VERSION = "v1", LEAK = "200"`, 1))
	_, _ = r.Try("up")
	r.Eventually(rig.Longest, "memory is named as the cause", func() error {
		if out := r.Kiln("events"); !strings.Contains(out, "memory") {
			return fmt.Errorf("events: %s", out)
		}
		return nil
	})
}

func TestAnInstanceIsShutIn(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", one("v1", 1, ""))
	up(r)
	// The host, the metadata address, a private and a public address.
	for _, target := range []string{r.HTTP, "169.254.169.254:80", "10.0.0.1:80", "198.51.100.7:443"} {
		if status, _, body := r.Get("web.test", "/dial?to="+target); status == 200 {
			t.Errorf("an instance reached %s: %s", target, body)
		}
	}
	r.Eventually(rig.Longest, "the attempt is an event", func() error {
		if out := r.Kiln("events"); !strings.Contains(out, "198.51.100.7") {
			return fmt.Errorf("events: %s", out)
		}
		return nil
	})
	if status, _, body := r.Get("web.test", "/write?path=/etc/x"); status == 200 {
		t.Errorf("the root is writable: %s", body)
	}
	if status, _, body := r.Get("web.test", "/write?path=/tmp/x"); status != 200 {
		t.Errorf("/tmp is not writable: %s", body)
	}
	_, _, who := r.Get("web.test", "/whoami")
	for _, want := range []string{"CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(who, want) {
			t.Errorf("status lacks %q:\n%s", want, who)
		}
	}
	if strings.Contains(who, "uid_map          0          0 4294967295") {
		t.Errorf("root of the image is root of the host:\n%s", who)
	}
	if status, _, _ := r.Get("web.test", "/lookup?name=example.com"); status == 200 {
		t.Error("the resolver answered a name that was not declared")
	}
}

const pair = `
gate { no_database = "warn" }

image "app" {
  dockerfile { context = "app" }
}

service "front" {
  image = image.app
  port "http" {
    number   = 8080
    protocol = "http"
  }
  env   = { VERSION = "VERSION", BACK = service.back.url }
  ready { http = "/healthz" }
  rollout "blue-green" {
    verify "the new front talks to the new back" {
      http = "/call?url=http://back:8080/"
      body = "VERSION"
    }
  }
}

service "back" {
  image = image.app
  port "http" {
    number   = 8080
    protocol = "http"
  }
  env   = { VERSION = "VERSION" }
  ready { http = "/healthz" }
}

service "worker" {
  image = image.app
  env   = { VERSION = "VERSION", WORKER = "1" }
}

route "front" {
  host = "web.test"
  to   = service.front
}
`

func TestCallsStayWithinTheRelease(t *testing.T) {
	r := newRig(t)
	for _, version := range []string{"one", "two"} {
		r.Write("kiln.hcl", strings.ReplaceAll(pair, `"VERSION"`, `"`+version+`"`))
		up(r)
		if _, _, body := r.Get("web.test", "/call?url=http://back:8080/"); body != version {
			t.Errorf("front %s got %q from its back", version, body)
		}
		r.Eventually(rig.Longest, "only this release's worker runs", func() error {
			out := r.Kiln("logs", "worker")
			if !strings.Contains(out, "working as "+version) {
				return fmt.Errorf("logs: %s", out)
			}
			n := 0
			for _, i := range instances(r) {
				if i.Service == "worker" && i.State == kiln.InstanceReady {
					n++
				}
			}
			if n != 1 {
				return fmt.Errorf("%d workers", n)
			}
			return nil
		})
	}
}

func TestTrafficOutlivesTheControlPlane(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", one("v1", 2, ""))
	up(r)
	before := ids(instances(r))
	report := underLoad(t, r, 300, func() {
		r.KillDaemon()
		for range 20 {
			r.Get("web.test", "/")
		}
		r.Start()
	})
	if report.Failed > 0 {
		t.Errorf("while the control plane was dead: %s", report)
	}
	if after := ids(instances(r)); !slices.Equal(before, after) {
		t.Errorf("instances were not adopted: %v, then %v", before, after)
	}
	victim := instances(r)[0]
	if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.Eventually(rig.Longest, "an adopted instance is replaced when it dies", func() error {
		now := ids(instances(r))
		if slices.Contains(now, victim.ID) || len(now) != 2 {
			return fmt.Errorf("instances: %v", now)
		}
		return nil
	})
}

func TestAGatewayThatDiesRefusesNobody(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", one("v1", 2, ""))
	up(r)
	gateway := r.Processes()["gateway"]
	if gateway == 0 {
		t.Fatal("no gateway runs")
	}
	report := underLoad(t, r, 200, func() {
		if err := syscall.Kill(gateway, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		r.Eventually(rig.Longest, "another gateway runs", func() error {
			if pid := r.Processes()["gateway"]; pid == 0 || pid == gateway {
				return fmt.Errorf("gateway: %d", pid)
			}
			return nil
		})
		for range 20 {
			r.Get("web.test", "/")
		}
	})
	for cause, n := range report.Failures {
		if strings.Contains(cause, "refused") {
			t.Errorf("%d connections were refused: %s", n, cause)
		}
	}
}

func TestAHostBelongsToOneEnvironment(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", one("v1", 1, "")+"\nenvironment \"production\" {}\n\nenvironment \"staging\" {}\n")
	up(r, "production")
	said, _ := r.Refused("up", "staging")
	if !strings.Contains(said, "web.test") || !strings.Contains(said, "production") {
		t.Errorf("the refusal names neither host nor owner: %s", said)
	}
}

func TestDirtyTreesAreMarkedAndBoundBranchesRefuseThem(t *testing.T) {
	r := newRig(t)
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", r.Work, "-c", "user.name=t", "-c", "user.email=t@localhost"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	definition := one("v1", 1, "") + "\nenvironment \"test\" {}\n\nenvironment \"production\" {\n  branch = \"main\"\n}\n"
	r.Write("kiln.hcl", definition)
	git("init", "-q", "-b", "main")
	git("add", "-A")
	git("commit", "-q", "-m", "one")
	r.Write("kiln.hcl", definition+"# changed\n")
	if said, _ := r.Refused("up", "production"); !strings.Contains(said, "commit") {
		t.Errorf("refusal: %s", said)
	}
	up(r, "test")
	for _, command := range []string{"status", "releases"} {
		if out := r.Kiln(command); !strings.Contains(out, "dirty") {
			t.Errorf("kiln %s does not say dirty: %s", command, out)
		}
	}
}

func TestDownLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", strings.Replace(one("v1", 2, `grace = "1s"`), `VERSION = "v1"`, `VERSION = "v1", IGNORE_TERM = "1"`, 1))
	up(r)
	r.Kiln("down", "--yes")
	r.Eventually(rig.Longest, "no instance is left", func() error {
		if left := instances(r); len(left) > 0 {
			return fmt.Errorf("instances: %v", ids(left))
		}
		return nil
	})
	if status, _, _ := r.Get("web.test", "/"); status != http.StatusNotFound {
		t.Errorf("the host still answers: %d", status)
	}
	r.Kiln("shutdown", "--yes")
	r.Eventually(rig.Longest, "the machine is as before", func() error {
		if left := r.Left(); len(left) > 0 {
			return fmt.Errorf("left:\n%s", strings.Join(left, "\n"))
		}
		return nil
	})
	if err := os.RemoveAll(r.Data); err != nil {
		t.Errorf("the data directory cannot be removed: %v", err)
	}
}

func TestReleasesAreReadByOtherTools(t *testing.T) {
	r := newRig(t)
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("needs skopeo")
	}
	r.Write("kiln.hcl", one("v1", 1, ""))
	result := up(r)
	layout := filepath.Join(r.Data, "store")
	out, err := exec.Command("skopeo", "inspect", "--raw", "oci:"+layout+":"+string(result.Images["app"].Name)).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	var manifest struct{ Layers []json.RawMessage }
	if err := json.Unmarshal(out, &manifest); err != nil || len(manifest.Layers) == 0 {
		t.Errorf("manifest: %v %s", err, out)
	}
}
