package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/test/rig"
)

// pushed is a repository that is pushed to from the rig's folder. It is where
// every user of the machine may read.
type pushed struct {
	t    *testing.T
	r    *rig.Rig
	bare string
}

func newPushed(t *testing.T, r *rig.Rig) pushed {
	t.Helper()
	dir, err := os.MkdirTemp("", "kiln-source-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(r.Data), 0o711); err != nil {
		t.Fatal(err)
	}
	p := pushed{t, r, filepath.Join(dir, "shop.git")}
	p.git("init", "-q", "--bare", "-b", "main", p.bare)
	p.git("init", "-q", "-b", "main")
	return p
}

func (p pushed) git(args ...string) string {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), "git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "safe.directory=*"}, args...)...)
	cmd.Dir = p.r.Work
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// push commits a definition to a branch, pushes it, and returns the commit.
func (p pushed) push(definition string) string {
	p.t.Helper()
	p.r.Write("kiln.hcl", definition)
	p.git("add", "-A")
	p.git("commit", "-q", "-m", "next")
	p.git("push", "-q", p.bare, "HEAD")
	return p.git("rev-parse", "HEAD")
}

func onMain(version string) string {
	return one(version, 1, "") + "\nenvironment \"production\" {\n  branch = \"main\"\n}\n\nenvironment \"other\" {}\n"
}

// happened returns the events of a kind.
func happened(r *rig.Rig, kind string) []kiln.Event {
	var out []kiln.Event
	for line := range strings.Lines(r.Kiln("events", "--last", "0", "--json")) {
		var e kiln.Event
		if json.Unmarshal([]byte(line), &e) == nil && e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}

// TestASourceIsFollowed pushes, and rolls back by hand what was pushed.
func TestASourceIsFollowed(t *testing.T) {
	r := newRig(t)
	p := newPushed(t, r)
	live := func(version, commit string) {
		t.Helper()
		r.Eventually(rig.Longest, version+" is live", func() error {
			var status control.Status
			r.JSON(&status, "status")
			for _, e := range status.Environments {
				if e.Name != "production" {
					return fmt.Errorf("environment %s was brought up", e.Name)
				}
				if e.Live != nil && e.Live.Source == (kiln.Source{Commit: commit, Branch: "main"}) && e.Live.Actor == "source shop" && e.Rollout == nil {
					return nil
				}
			}
			return fmt.Errorf("status: %+v", status)
		})
		if _, _, body := r.Get("web.test", "/"); body != version {
			t.Errorf("served: %q, want %s", body, version)
		}
	}
	first := p.push(onMain("v1"))
	configure(t, r, fmt.Sprintf("source \"shop\" {\n  repository = %q\n  interval = \"10s\"\n}\n", p.bare))
	if out := r.Kiln("reload"); !strings.Contains(out, "source: [] -> [shop at "+p.bare) {
		t.Errorf("reload: %s", out)
	}
	live("v1", first)
	second := p.push(onMain("v2"))
	live("v2", second)

	// A person goes back, and that stands: over looks and a restart.
	r.Kiln("rollback", "production")
	r.StopDaemon()
	r.Start()
	moved := len(happened(r, "source.moved"))
	p.git("push", "-q", p.bare, "HEAD:refs/heads/side")
	r.Eventually(rig.Longest, "the source was looked at", func() error {
		if got := len(happened(r, "source.moved")); got <= moved {
			return fmt.Errorf("%d moves", got)
		}
		return nil
	})
	live("v1", first)

	third := p.push(onMain("v3"))
	live("v3", third)
	broken := p.push("service {")
	r.Eventually(rig.Longest, "a definition that does not parse is a problem", func() error {
		var status control.Status
		r.JSON(&status, "status")
		if got := strings.Join(status.Problems, "\n"); !strings.Contains(got, broken[:12]+" of branch main was not brought up") || !strings.Contains(got, "kiln.hcl:1") {
			return fmt.Errorf("problems: %q", got)
		}
		return nil
	})
	live("v3", third)
	failures := happened(r, "source.failed")
	if len(failures) != 1 || failures[0].Data["commit"] != broken || failures[0].Data["problem_01"] == "" || failures[0].Actor != "source shop" {
		t.Errorf("failures: %+v", failures)
	}
	if got := happened(r, "source.released"); len(got) != 3 || got[2].Data["commit"] != third || got[2].Environment != "production" {
		t.Errorf("released: %+v", got)
	}

	// Nothing of a source that is gone stays.
	configure(t, r, "")
	r.Kiln("reload")
	r.Eventually(rig.Longest, "the mirror is gone", func() error {
		if left, err := os.ReadDir(filepath.Join(r.Data, "sources")); err != nil || len(left) > 0 {
			return fmt.Errorf("left: %v %w", left, err)
		}
		return nil
	})
}
