package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kilnproject/kiln/test/blame"
	"github.com/kilnproject/kiln/test/load"
	"github.com/kilnproject/kiln/test/rig"
)

// benchAdopt kills the control plane of 200 instances and starts it again.
func benchAdopt(b *bench) {
	r := rig.New(b)
	r.App()
	define(r, "v1", 200)
	up(r)
	before := processes(r)
	var figures []float64
	for range 5 {
		r.KillDaemon()
		begin := time.Now()
		r.Start() // until it answers
		took := time.Since(begin)
		if n := len(ready(r)); n != 200 {
			b.Fatalf("%d instances are ready after the restart", n)
		}
		figures = append(figures, took.Seconds())
	}
	median, text := spread(figures)
	b.judge(median < 1, "control plane killed: 200 instances adopted, s", "< 1", "%s", text)
	changed := 0
	after := processes(r)
	for id, pid := range before {
		if after[id] != pid {
			changed++
		}
	}
	b.judge(changed == 0 && len(after) == len(before), "control plane killed: instances restarted", "0", "%d", changed)
}

// processes are the process ids of all ready instances.
func processes(r *rig.Rig) map[string]int {
	out := map[string]int{}
	for _, i := range ready(r) {
		out[i.ID] = i.PID
	}
	return out
}

// benchBoot takes from the machine what a restart takes, and starts the control
// plane where there is no git, as at boot.
func benchBoot(b *bench) {
	r := rig.New(b)
	if out, err := exec.Command("cp", "-R", "examples/shop/.", r.Work).CombinedOutput(); err != nil {
		b.Fatalf("copy the shop: %v %s", err, out)
	}
	up(r)
	r.Env = []string{"PATH=" + onlyRuntime(b, r)}
	var figures []float64
	for range 5 {
		if err := r.LoseMachine(); err != nil {
			b.Fatalf("%v", err)
		}
		begin := time.Now()
		go r.Start() //nolint:contextcheck // it has its own bounds
		r.Eventually(rig.Longest, "the shop answers", func() error { return answers(r, "shop.localhost") })
		figures = append(figures, time.Since(begin).Seconds())
		r.Eventually(rig.Longest, "everything rests", r.Resting)
	}
	median, text := spread(figures)
	b.judge(median < 3, "cold boot: the shop serves, s", "< 3", "%s", text)
}

// onlyRuntime is a folder with the programs that instances need, and no other.
func onlyRuntime(b *bench, r *rig.Rig) string {
	dir := filepath.Join(r.Work, ".programs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatalf("%v", err)
	}
	for _, name := range []string{"runc", "crun", "catatonit", "tini-static", "docker-init"} {
		if path, err := exec.LookPath(name); err == nil {
			if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
				b.Fatalf("%v", err)
			}
		}
	}
	return dir
}

func answers(r *rig.Rig, host string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.HTTP+"/", http.NoBody)
	if err != nil {
		return err
	}
	request.Host, request.Close = host, true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// benchGatewayDeath kills the gateway under load, with and without a control
// plane.
func benchGatewayDeath(b *bench) {
	r := rig.New(b)
	r.App()
	define(r, "v1", 3)
	up(r)
	for _, alone := range []bool{false, true} {
		what := "gateway killed"
		if alone {
			what += ", no control plane"
			r.KillDaemon()
		}
		var figures, calm []float64
		failures := map[string]int{}
		for range 5 {
			calm = append(calm, gatewayDeath(b, r, map[string]int{}, func(int) error { return nil }))
			figures = append(figures, gatewayDeath(b, r, failures, func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }))
		}
		_, text := spread(calm)
		b.note(what+": an answer at another moment, ms", "%s", text)
		median, text := spread(figures)
		b.judge(median < 100, what+": answers again, ms", "< 100", "%s", text)
		b.judge(failures["refused"] == 0, what+": refused connections", "0", "%d in 5 kills", failures["refused"])
		b.note(what+": failed GET", "%s", counts(failures))
	}
	r.Start()
}

func counts(failures map[string]int) string {
	var out []string
	for _, cause := range slices.Sorted(maps.Keys(failures)) {
		out = append(out, fmt.Sprintf("%d x %s", failures[cause], cause))
	}
	if out == nil {
		return "none"
	}
	return strings.Join(out, ", ")
}

// gatewayDeath kills the gateway once and returns after how many milliseconds
// a request was answered that was sent after the kill.
func gatewayDeath(b *bench, r *rig.Rig, failures map[string]int, kill func(pid int) error) float64 {
	var outcomes []load.Outcome
	var killed time.Time
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan load.Report)
	go func() {
		done <- load.Run(ctx, load.Options{
			URL: "http://" + r.HTTP + "/", Host: host, Rate: 2000, MaxInFlight: 8192, Each: func(o load.Outcome) { outcomes = append(outcomes, o) },
		})
	}()
	<-time.After(time.Second)
	gateway := r.Processes()["gateway"]
	killed = time.Now()
	if err := kill(gateway); err != nil {
		b.Fatalf("kill the gateway: %v", err)
	}
	<-time.After(2 * time.Second)
	cancel()
	b.Logf("%s", <-done)
	first := time.Hour
	for _, o := range outcomes {
		if o.Failure != "" {
			failures[blame.Cause(o.Failure)]++
		} else if o.At.After(killed) {
			first = min(first, o.At.Add(o.Took).Sub(killed))
		}
	}
	return float64(first) / float64(time.Millisecond)
}
