package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/ledger"
)

// Ask is JSON for a control plane that may be away.
func (r *Rig) Ask(v any, args ...string) error {
	out, err := r.Try(append(args, "--json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), v)
}

// spareLinks is how many links Kiln keeps ready.
const spareLinks = 8

// Tidy returns nil when what is on the machine, and in the data directory, is
// what the living instances need.
func (r *Rig) Tidy() error {
	var all []kiln.Instance
	if err := r.Ask(&all, "ps"); err != nil {
		return err
	}
	var ids []string
	known := []int{}
	for _, i := range all {
		if i.State != kiln.InstanceDead {
			ids = append(ids, i.ID)
			known = append(append(known, i.PID), Children(i.PID)...)
		}
	}
	errs := []error{
		unknown("records", folders(filepath.Join(r.Data, "local", "instances")), ids),
		unknown("states of the runtime", folders(filepath.Join(r.Data, "run", "oci")), ids),
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/kiln-" + r.Tag())
	for _, dir := range append(groups, "/sys/fs/cgroup/kiln-"+r.Tag()) {
		errs = append(errs, unknown("control groups in "+dir, folders(dir), ids))
	}
	out, err := exec.Command("ip", "-o", "link").Output()
	if n := strings.Count(string(out), "k"+r.Tag()+"-"); n > len(ids)+spareLinks {
		errs = append(errs, fmt.Errorf("%d links for %d instances", n, len(ids)))
	}
	for _, pid := range r.Processes() {
		known = append(known, pid)
	}
	for _, pid := range r.Inhabitants() {
		if line := commandLine(pid); !slices.Contains(known, pid) && line != "" {
			errs = append(errs, fmt.Errorf("process %d is nobody's: %s", pid, line))
		}
	}
	return errors.Join(append(errs, err)...)
}

// Children are the processes that a process has started and not waited for.
func Children(pid int) []int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var out []int
	for field := range strings.FieldsSeq(string(b)) {
		if child, err := strconv.Atoi(field); err == nil {
			out = append(out, child)
		}
	}
	return out
}

func unknown(what string, found, known []string) error {
	for _, one := range found {
		if !slices.Contains(known, one) {
			return fmt.Errorf("%s: %s belongs to no instance", what, one)
		}
	}
	return nil
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

// Resting returns nil when nothing is being rolled out and every environment
// has what is desired.
func (r *Rig) Resting() error {
	var s control.Status
	if err := r.Ask(&s, "status"); err != nil {
		return err
	}
	for _, e := range s.Environments {
		if e.Rollout != nil {
			return fmt.Errorf("the rollout of release %d is at %s", e.Rollout.To, e.Rollout.Step)
		}
		for _, one := range e.Services {
			if one.Ready != one.Desired {
				return fmt.Errorf("%s has %d of %d ready", one.Name, one.Ready, one.Desired)
			}
		}
	}
	return nil
}

// Live is the live release of the rig's only environment.
func (r *Rig) Live() (kiln.Release, error) {
	var s control.Status
	if err := r.Ask(&s, "status"); err != nil {
		return kiln.Release{}, err
	}
	if len(s.Environments) != 1 || s.Environments[0].Live == nil {
		return kiln.Release{}, errors.New("nothing is live")
	}
	return *s.Environments[0].Live, nil
}

// Serves returns nil when each path of a host answers with the VERSION that the
// live release gives to service web.
func (r *Rig) Serves(host string, paths ...string) error {
	live, err := r.Live()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(live.Services, func(one kiln.ReleaseService) bool { return one.Template.Service == "web" })
	want := live.Services[at].Template.Config.Env["VERSION"]
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, path := range paths {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.HTTP+path, http.NoBody)
		if err != nil {
			return err
		}
		request.Host, request.Close = host, true
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return fmt.Errorf("GET %s: %w", path, err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || strings.TrimSpace(string(body)) != want {
			return fmt.Errorf("GET %s: %d %q, and release %d says %q: %w", path, response.StatusCode, body, live.Number, want, err)
		}
	}
	return nil
}

// Chain reads the whole ledger, which no control plane must have open any more,
// and returns what is wrong with it.
func (r *Rig) Chain() []string {
	ctx := context.Background()
	l, err := ledger.Open(ctx, filepath.Join(r.Data, "ledger", "ledger.db"))
	if err != nil {
		return []string{err.Error()}
	}
	defer func() { _ = l.Close() }()
	var wrong []string
	found, err := l.Verify(ctx, "")
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	if found.Events == 0 || found.Rows == 0 {
		wrong = append(wrong, "it is empty")
	}
	for _, f := range found.Faults {
		wrong = append(wrong, f.Record+": "+f.Problem)
	}
	if alive, err := l.Alive(ctx); err != nil || len(alive) > 0 {
		wrong = append(wrong, fmt.Sprintf("%d instances are alive in it: %v", len(alive), err))
	}
	if open, err := l.Unfinished(ctx); err != nil || len(open) > 0 {
		wrong = append(wrong, fmt.Sprintf("%d rollouts are unfinished in it: %v", len(open), err))
	}
	return wrong
}
