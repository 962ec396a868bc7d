package main

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/test/load"
	"github.com/kilnproject/kiln/test/rig"
)

// underLoad sends GETs while f runs, and a little before and after.
func underLoad(r *rig.Rig, rate int, f func()) load.Report {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	reports := make(chan load.Report)
	go func() {
		reports <- load.Run(ctx, load.Options{
			URL: "http://" + r.HTTP + "/", Host: host, Rate: rate,
			Version: func(_ int, h http.Header, _ []byte) string { return h.Get("Version") },
		})
	}()
	<-time.After(time.Second)
	f()
	<-time.After(time.Second)
	cancel()
	return <-reports
}

// benchReplace replaces 500 instances under constant load.
func benchReplace(b *bench) {
	r := rig.New(b)
	r.App()
	define(r, "v1", 500)
	begin := time.Now()
	up(r)
	b.note("500 instances started from nothing, s", "%.1f", time.Since(begin).Seconds())
	var took time.Duration
	report := underLoad(r, 200, func() {
		define(r, "v2", 500)
		begin := time.Now()
		up(r)
		took = time.Since(begin)
	})
	b.note("500 instances replaced under 200 GET/s, s", "%.1f (%s)", took.Seconds(), report)
	b.judge(report.Failed == 0 && report.Versions["v2"] != nil, "failed requests while 500 were replaced", "0", "%d", report.Failed)
}

// benchNothing takes the CPU of client and daemon for an up that finds nothing
// to replace.
func benchNothing(b *bench) {
	r := rig.New(b)
	r.App()
	define(r, "v1", 3)
	up(r)
	var figures []float64
	for range 10 {
		before := cpu(r.DaemonPID())
		cmd := exec.Command(r.Bin("kiln"), "--data", r.Data, "-C", r.Work, "up")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("up: %v\n%s", err, out)
		}
		usage := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		figures = append(figures, usage.Seconds()+cpu(r.DaemonPID())-before)
	}
	median, text := spread(figures)
	b.judge(median < 0.3, "kiln up, nothing changed, CPU s of client and daemon", "< 0.3", "%s", text)
}

// cpu is a process's user and system time in seconds.
func cpu(pid int) float64 {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100
}

// benchChange times a changed line of a COPY source of the example shop, or
// of the test application where the shop's bases cannot be had.
func benchChange(b *bench) {
	r := rig.New(b)
	if out, err := exec.Command("cp", "-R", "examples/shop/.", r.Work).CombinedOutput(); err != nil {
		b.Fatalf("copy the shop: %v %s", err, out)
	}
	up(r)
	page := filepath.Join(r.Work, "web", "page.html")
	original, err := os.ReadFile(page)
	if err != nil {
		b.Fatalf("%v", err)
	}
	var bakes, rests []float64
	for i := range 5 {
		changed := strings.Replace(string(original), "fired to order", "fired to order "+strconv.Itoa(i), 1)
		r.Write("web/page.html", changed)
		begin := time.Now()
		result := up(r)
		total := time.Since(begin)
		bake := result.Phases["bake"]
		bakes = append(bakes, bake.Seconds())
		rests = append(rests, (total - bake).Seconds())
		b.Logf("run %d: total %.2f s, phases %v", i+1, total.Seconds(), result.Phases)
	}
	median, text := spread(bakes)
	b.judge(median < 3, "a changed line: bake, s", "< 3", "%s", text)
	median, text = spread(rests)
	b.judge(median < 1, "a changed line: the rest to live traffic, s", "< 1", "%s", text)
}

// benchRollback goes back and forth between two releases under load.
func benchRollback(b *bench) {
	r := rig.New(b)
	r.App()
	var figures []float64
	failed, sent := 0, 0
	define(r, "v0", 3)
	up(r)
	for i := range 5 {
		newer := "v" + strconv.Itoa(i+1)
		define(r, newer, 3)
		up(r)
		var begin time.Time
		report := underLoad(r, 2000, func() {
			begin = time.Now()
			r.Kiln("rollback")
		})
		failed += report.Failed
		sent += report.Sent
		b.Logf("run %d: %s", i+1, report)
		if last := report.Versions[newer]; last != nil {
			figures = append(figures, last.Last.Sub(begin).Seconds()*1000)
		}
	}
	median, text := spread(figures)
	b.judge(median < 100, "rollback: command to last request of the old version, ms", "< 100", "%s", text)
	b.judge(failed == 0, "rollback: failed requests", "0", "%d of %d", failed, sent)
}

// benchKill kills one of three instances under GET and POST load.
func benchKill(b *bench) {
	r := rig.New(b)
	r.App()
	define(r, "v1", 3)
	up(r)
	own := ownStart(b, r)
	var figures []float64
	gets, posts := 0, 0
	for range 5 {
		victim := slices.MinFunc(ready(r), func(a, b kiln.Instance) int { return a.CreatedAt.Compare(b.CreatedAt) })
		var killed time.Time
		posted := make(chan load.Report)
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			posted <- load.Run(ctx, load.Options{URL: "http://" + r.HTTP + "/echo", Host: host, Method: http.MethodPost, Body: []byte("hello"), Rate: 200})
		}()
		report := underLoad(r, 500, func() {
			killed = time.Now()
			if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
				b.Fatalf("kill: %v", err)
			}
			r.Eventually(20*time.Second, "three are ready again", func() error { return threeWithout(r, victim.ID) })
		})
		cancel()
		gets += report.Failed
		posts += (<-posted).Failed
		for _, i := range ready(r) {
			if i.CreatedAt.After(killed) {
				figures = append(figures, i.ReadyAt.Sub(killed).Seconds()*1000)
			}
		}
	}
	median, text := spread(figures)
	b.judge(gets == 0, "killed under load: failed GET", "0", "%d", gets)
	b.note("killed under load: failed POST (in flight on it)", "%d in 5 kills", posts)
	b.note("the application's own start, ms", "%.1f", own)
	b.judge(median-own < 150, "killed: replacement ready, ms", "< 150 + own start", "%s", text)
}

type notYet string

func (n notYet) Error() string { return string(n) }

func threeWithout(r *rig.Rig, gone string) error {
	all := ready(r)
	for _, i := range all {
		if i.ID == gone {
			return notYet("the victim is still listed")
		}
	}
	if len(all) != 3 {
		return notYet(strconv.Itoa(len(all)) + " ready")
	}
	return nil
}

// ownStart is how long the application takes from its start to an answer
// when nothing is around it, in milliseconds.
func ownStart(b *bench, r *rig.Rig) float64 {
	var figures []float64
	for range 5 {
		cmd := exec.Command(r.Bin("app"))
		cmd.Env = []string{"PORT=18099", "GOMAXPROCS=1"}
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			b.Fatalf("%v", err)
		}
		for {
			response, err := http.Get("http://127.0.0.1:18099/healthz")
			if err == nil {
				_ = response.Body.Close()
				break
			}
			if time.Since(begin) > 5*time.Second {
				b.Fatalf("the application does not start: %v", err)
			}
		}
		figures = append(figures, time.Since(begin).Seconds()*1000)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	median, _ := spread(figures)
	return median
}
