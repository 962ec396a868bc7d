package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/ledger"
)

// spareLinks is how many links Kiln keeps ready.
const spareLinks = 8

// tidy returns nil when what is on the machine is what the listed instances
// need.
func (c *chaos) tidy() error {
	var all []kiln.Instance
	if err := c.ask(&all, "ps"); err != nil {
		return err
	}
	var ids []string
	for _, i := range all {
		if i.State != kiln.InstanceDead {
			ids = append(ids, i.ID)
		}
	}
	var errs []error
	for what, dir := range map[string]string{
		"records": filepath.Join(c.rig.Data, "local", "instances"), "states of the runtime": filepath.Join(c.rig.Data, "run", "oci"),
	} {
		errs = append(errs, unknown(what, names(dir), ids))
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/kiln-" + c.rig.Tag())
	for _, dir := range append(groups, "/sys/fs/cgroup/kiln-"+c.rig.Tag()) {
		errs = append(errs, unknown("control groups in "+dir, folders(dir), ids))
	}
	out, err := exec.Command("ip", "-o", "link").Output()
	if n := strings.Count(string(out), "k"+c.rig.Tag()+"-"); n > len(ids)+spareLinks {
		errs = append(errs, fmt.Errorf("%d links for %d instances", n, len(ids)))
	}
	errs = append(errs, err, c.strangers(all))
	return errors.Join(errs...)
}

// strangers returns an error when processes of the rig are neither Kiln's own
// nor an instance's.
func (c *chaos) strangers(all []kiln.Instance) error {
	known := []int{}
	for _, pid := range c.rig.Processes() {
		known = append(known, pid)
	}
	for _, i := range all {
		known = append(append(known, i.PID), children(i.PID)...)
	}
	for _, pid := range c.rig.Inhabitants() {
		if !slices.Contains(known, pid) && c.rig.Left() != nil {
			return fmt.Errorf("process %d is nobody's: %s", pid, link(pid))
		}
	}
	return nil
}

func link(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(string(b), "\x00", " ")
}

func unknown(what string, found, known []string) error {
	for _, one := range found {
		if !slices.Contains(known, one) {
			return fmt.Errorf("%s: %s belongs to no instance", what, one)
		}
	}
	return nil
}

func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func folders(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out
}

// resting returns nil when nothing is being rolled out and nothing is wrong.
func (c *chaos) resting() error {
	var s control.Status
	if err := c.ask(&s, "status"); err != nil {
		return err
	}
	for _, e := range s.Environments {
		if e.Rollout != nil {
			return fmt.Errorf("the rollout of release %d is at %s", e.Rollout.To, e.Rollout.Step)
		}
	}
	return nil
}

// current returns nil when what answers is the live release's.
func (c *chaos) current() error {
	var s control.Status
	if err := c.ask(&s, "status"); err != nil {
		return err
	}
	live := s.Environments[0].Live
	at := slices.IndexFunc(live.Services, func(one kiln.ReleaseService) bool { return one.Template.Service == "web" })
	want := live.Services[at].Template.Config.Env["VERSION"]
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, path := range []string{"/", "/call?url=http://back:8080/"} {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.rig.HTTP+path, http.NoBody)
		if err != nil {
			return err
		}
		request.Host = host
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return fmt.Errorf("GET %s: %w", path, err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || strings.TrimSpace(string(body)) != want {
			return fmt.Errorf("GET %s: %q, and release %d says %q: %w", path, body, live.Number, want, err)
		}
	}
	return nil
}

// records checks that what was acknowledged is in the history.
func (c *chaos) records() error {
	var all []kiln.Release
	if err := c.ask(&all, "releases"); err != nil {
		return err
	}
	known := map[int]kiln.Release{}
	lives := 0
	for _, r := range all {
		known[r.Number] = r
		if r.State == kiln.ReleaseLive {
			lives++
		}
		if r.State == kiln.ReleasePending {
			c.broken("release %d is %s", r.Number, r.State)
		}
	}
	if lives != 1 {
		c.broken("%d releases are live", lives)
	}
	c.report.Releases = len(c.acknowledged)
	for _, n := range c.acknowledged {
		if r, ok := known[n]; !ok || r.State == kiln.ReleaseFailed {
			c.broken("release %d went live and is %q in the history", n, r.State)
		}
	}
	return nil
}

func (c *chaos) broken(format string, args ...any) {
	c.report.Records = append(c.report.Records, fmt.Sprintf(format, args...))
}

// chain reads the whole ledger.
func (c *chaos) chain() {
	ctx := context.Background()
	l, err := ledger.Open(ctx, filepath.Join(c.rig.Data, "ledger", "ledger.db"))
	if err != nil {
		c.broken("%v", err)
		return
	}
	defer func() { _ = l.Close() }()
	found, err := l.Verify(ctx)
	if err != nil {
		c.broken("%v", err)
	}
	for _, f := range found.Faults {
		c.broken("%s: %s", f.Record, f.Problem)
	}
	alive, err := l.Alive(ctx)
	if err != nil || len(alive) > 0 {
		c.broken("after the end the ledger knows %d instances to be alive: %v", len(alive), err)
	}
	open, err := l.Unfinished(ctx)
	if err != nil || len(open) > 0 {
		c.broken("after the end %d rollouts are unfinished: %v", len(open), err)
	}
	c.log(fmt.Sprintf("%d events and %d releases in the ledger", found.Events, found.Releases), nil)
}
