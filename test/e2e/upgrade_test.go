package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnproject/kiln/internal/keep"
	"github.com/kilnproject/kiln/test/rig"
)

const (
	next   = "0.2.0-rig"
	tooNew = "0.3.0-rig"
)

// newApart is a rig with executables of its own, and two instances.
func newApart(t *testing.T) *rig.Rig {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1: `make test` as root sets it")
	}
	r := rig.NewApart(t)
	t.Cleanup(func() {
		if t.Failed() {
			keeper, _ := os.ReadFile(filepath.Join(r.Data, "keep.log"))
			t.Logf("control plane's log:\n%s\nkeeper's log:\n%s", r.Log(), keeper[max(0, len(keeper)-4000):])
		}
	})
	r.App()
	r.Write("kiln.hcl", one("v1", 2, ""))
	up(r)
	return r
}

// running is what must not change, or must.
type running struct {
	instances       []int
	keeper, gateway int
	daemon          int
	versions        [2]string // of keeper and control plane
}

func look(t *testing.T, r *rig.Rig) running {
	t.Helper()
	client, err := keep.Dial(filepath.Join(r.Data, "run", "keep.sock"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := client.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pid, err := os.ReadFile(filepath.Join(r.Data, "kilnd.lock"))
	if err != nil {
		t.Fatal(err)
	}
	out := running{keeper: info.PID, gateway: info.GatewayPID}
	out.daemon, _ = strconv.Atoi(strings.TrimSpace(string(pid)))
	version, err := exec.CommandContext(t.Context(), fmt.Sprintf("/proc/%d/exe", out.daemon), "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	out.versions = [2]string{info.Version, strings.TrimPrefix(strings.TrimSpace(string(version)), "kilnd ")}
	for _, i := range instances(r) {
		out.instances = append(out.instances, i.PID)
	}
	slices.Sort(out.instances)
	return out
}

// cleared demands that nothing of an upgrade is left.
func cleared(t *testing.T, r *rig.Rig) {
	t.Helper()
	for _, path := range []string{filepath.Join(r.Data, "upgrade", "upgrade.json"), filepath.Join(filepath.Dir(r.Bin("kiln")), ".kiln-upgrade")} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s was left: %v", path, err)
		}
	}
}

// TestUpgrade is one rig's life: upgrades that fail, one that is killed, and one
// that works.
func TestUpgrade(t *testing.T) {
	r := newApart(t)
	from := r.Build(next)
	t.Run("a keeper that is too old is refused", func(t *testing.T) { keeperIsTooOld(t, r) })
	t.Run("what fails goes back", func(t *testing.T) { upgradeFails(t, r, from) })
	t.Run("what is killed goes back", func(t *testing.T) { upgradeIsKilled(t, r, from) })
	t.Run("what works fails no request", func(t *testing.T) { upgradeWorks(t, r, from) })
}

// keeperIsTooOld starts a control plane beside a keeper of two minor versions
// before.
func keeperIsTooOld(t *testing.T, r *rig.Rig) {
	r.KillDaemon()
	out, err := exec.CommandContext(t.Context(), filepath.Join(r.Build(tooNew), "kilnd"), "--data", r.Data, "--http", r.HTTP, "--https", r.TLS).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "the keeper is too old for kilnd") || !strings.Contains(string(out), "hint: upgrade the keeper first") {
		t.Errorf("%v %s", err, out)
	}
	r.Start()
}

func upgradeWorks(t *testing.T, r *rig.Rig, from string) {
	before := look(t, r)
	report := underLoad(t, r, 300, func() { r.Kiln("upgrade", "--from", from) })
	if report.Failed > 0 || report.OK == 0 {
		t.Errorf("upgrade under load: %s", report)
	}
	t.Logf("%s", report)
	after := look(t, r)
	if !slices.Equal(before.instances, after.instances) || before.keeper != after.keeper {
		t.Errorf("instances %v and keeper %d, then %v and %d", before.instances, before.keeper, after.instances, after.keeper)
	}
	if after.versions != [2]string{next, next} || before.gateway == after.gateway || before.daemon == after.daemon {
		t.Errorf("%+v, then %+v", before, after)
	}
	for pid, name := range map[int]string{after.keeper: "kiln", after.gateway: "kiln", after.daemon: "kilnd"} {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || exe != r.Bin(name) {
			t.Errorf("process %d runs %s: %v", pid, exe, err)
		}
	}
	cleared(t, r)
	for _, version := range []string{rig.Version, next, tooNew} {
		if out, err := exec.CommandContext(t.Context(), filepath.Join(r.Build(version), "kiln"), "--data", r.Data, "status").CombinedOutput(); err != nil {
			t.Errorf("kiln %s with kilnd %s: %v %s", version, next, err, out)
		}
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(r.Build("0.4.0-rig"), "kiln"), "--data", r.Data, "status").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "hint: upgrade kilnd first") {
		t.Errorf("two minor versions apart: %v %s", err, out)
	}

	// The new version does what Kiln does, and the keeper knows its children's ends.
	if err := syscall.Kill(after.instances[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.Eventually(rig.Longest, "the killed instance is replaced", func() error {
		if now := look(t, r).instances; len(now) != 2 || slices.Contains(now, after.instances[0]) {
			return fmt.Errorf("instances %v", now)
		}
		return nil
	})
	r.Write("kiln.hcl", one("v2", 2, ""))
	up(r)
	if _, _, body := r.Get("web.test", "/"); body != "v2" {
		t.Errorf("served: %q", body)
	}
}

// wrap makes a folder with the new programs, of which one does as a script says
// when it is not rehearsed.
func wrap(t *testing.T, from, name, script string) string {
	t.Helper()
	dir := t.TempDir()
	for _, program := range []string{"kiln", "kilnd"} {
		if err := os.Link(filepath.Join(from, program), filepath.Join(dir, program)); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *--rehearse*) exec %s/%s \"$@\" ;; esac\n%s\n", from, name, script)
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func upgradeFails(t *testing.T, r *rig.Rig, from string) {
	before := look(t, r)
	notExecutable := wrap(t, from, "kiln", "")
	if err := os.Chmod(filepath.Join(notExecutable, "kiln"), 0o644); err != nil {
		t.Fatal(err)
	}
	dead := wrap(t, from, "kilnd", "")
	if err := os.WriteFile(filepath.Join(dead, "kilnd"), []byte("#!/bin/sh\necho error: no luck today >&2; exit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	report := underLoad(t, r, 300, func() {
		for name, c := range map[string]struct {
			from, words string
			keeper      bool // it is another process then
		}{
			"not there":                         {t.TempDir(), "no such file", false},
			"not executable":                    {notExecutable, "is not an executable file", false},
			"too new":                           {r.Build(tooNew), "kilnd is too old", false},
			"does not start":                    {dead, "no luck today", false},
			"a keeper that ends at once":        {wrap(t, from, "kiln", "exit 0"), "did not come up", true},
			"a control plane that ends at once": {wrap(t, from, "kilnd", "echo error: out of luck >&2; exit 3"), "out of luck", false},
			"a control plane that hangs":        {wrap(t, from, "kilnd", "exec sleep 1000"), "does not answer after 2s", false},
		} {
			was := look(t, r)
			said, _ := r.Refused("upgrade", "--from", c.from, "--wait", "2s")
			if !strings.Contains(said, c.words) {
				t.Errorf("%s: %s", name, said)
			}
			now := look(t, r)
			if now.versions != before.versions || !slices.Equal(now.instances, before.instances) || (now.keeper != was.keeper) != c.keeper {
				t.Errorf("%s: %+v, before %+v\n%s", name, now, was, said)
			}
			cleared(t, r)
		}
	})
	if report.Failed > 0 || report.OK == 0 {
		t.Errorf("under load: %s", report)
	}
	t.Logf("%s", report)
}

// upgradeIsKilled kills kiln upgrade while the control plane that it started
// hangs, and resumes it.
func upgradeIsKilled(t *testing.T, r *rig.Rig, from string) {
	before := look(t, r)
	from = wrap(t, from, "kilnd", fmt.Sprintf("echo $$ >%s/hanging; exec sleep 1000", r.Work))
	report := underLoad(t, r, 300, func() {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		upgrade := exec.CommandContext(ctx, r.Bin("kiln"), "--data", r.Data, "upgrade", "--from", from)
		if err := upgrade.Start(); err != nil {
			t.Fatal(err)
		}
		var hanging int
		r.Eventually(rig.Longest, "the new control plane hangs", func() error {
			pid, err := os.ReadFile(filepath.Join(r.Work, "hanging"))
			if err == nil {
				hanging, err = strconv.Atoi(strings.TrimSpace(string(pid)))
			}
			return err
		})
		cancel()
		_ = upgrade.Wait()
		if err := syscall.Kill(hanging, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		said, _ := r.Refused("upgrade", "--resume", "--wait", "2s")
		if !strings.Contains(said, before.versions[1]+" runs on") {
			t.Errorf("resumed: %s", said)
		}
		if now := look(t, r); now.versions != before.versions || !slices.Equal(now.instances, before.instances) || now.keeper != before.keeper {
			t.Errorf("%+v, before %+v", now, before)
		}
		cleared(t, r)
	})
	if report.Failed > 0 || report.OK == 0 {
		t.Errorf("under load: %s", report)
	}
}
