package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kilnproject/kiln/test/rig"
)

// benchRest weighs Kiln's processes a minute after the shop went live.
func benchRest(b *bench) {
	r := rig.New(b)
	if out, err := exec.Command("cp", "-R", "examples/shop/.", r.Work).CombinedOutput(); err != nil {
		b.Fatalf("copy the shop: %v %s", err, out)
	}
	up(r)
	<-time.After(75 * time.Second)
	total := int64(0)
	for name, pid := range r.Processes() {
		pss := rig.PSS(pid)
		total += pss
		b.note("at rest: "+name+", MB PSS", "%.1f", mb(pss))
	}
	b.judge(mb(total) < 100, "at rest: all three, MB PSS", "< 100", "%.1f", mb(total))
	var figures []float64
	for range 20 {
		begin := time.Now()
		if err := exec.Command(r.Bin("kiln"), "version").Run(); err != nil {
			b.Fatalf("kiln version: %v", err)
		}
		figures = append(figures, time.Since(begin).Seconds()*1000)
	}
	median, text := spread(figures)
	b.judge(median < 20, "kiln version, ms", "< 20", "%s", text)
}

// benchMemory compares what Kiln holds for 100 and for 500 instances: its
// processes and the inits of the instances.
func benchMemory(b *bench) {
	r := rig.New(b)
	r.App()
	user, kernel := [2]int64{}, [2]int64{}
	for i, count := range []int{100, 500} {
		define(r, "v1", count)
		up(r)
		<-time.After(10 * time.Second)
		user[i], kernel[i] = ownMemory(r), slab()
	}
	b.judge(float64(user[1]-user[0])/400 < 300e3, "own user-space memory per instance, KB PSS", "< 300", "%.0f", float64(user[1]-user[0])/400/1000)
	b.note("kernel memory per instance (slab, stacks, page tables), KB", "%.0f", float64(kernel[1]-kernel[0])/400/1000)
}

// ownMemory sums Kiln's processes and the init of every instance.
func ownMemory(r *rig.Rig) int64 {
	total := int64(0)
	for _, pid := range r.Processes() {
		total += rig.PSS(pid)
	}
	for _, i := range ready(r) {
		total += rig.PSS(i.PID)
	}
	return total
}

// slab is the kernel's own memory in bytes.
func slab() int64 {
	raw, _ := os.ReadFile(filepath.Join("/proc", "meminfo"))
	total := int64(0)
	for line := range strings.Lines(string(raw)) {
		for _, key := range []string{"Slab:", "KernelStack:", "PageTables:", "Percpu:"} {
			if rest, ok := strings.CutPrefix(line, key); ok {
				kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				total += kib << 10
			}
		}
	}
	return total
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }

// benchGateway runs the comparison with nginx, a program of its own.
func benchGateway(b *bench) {
	cmd := exec.Command("go", "run", "./test/bench/gateway")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		b.Fatalf("gateway: %v", err)
	}
	b.note("gateway beside nginx", "see its table above")
}
