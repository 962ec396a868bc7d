package local_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local"
)

// BenchmarkStart100 compares 100 instances started and ready with 100 bare
// starts by the runtime with the same configuration, in turns.
func BenchmarkStart100(b *testing.B) {
	const n = 100
	bed := newBed(b)
	one := bed.ready(tiny(1)).Fleets[0].Instances[0]
	config, err := os.ReadFile(filepath.Join(bed.dir, "local/instances", one.ID, "config.json"))
	if err != nil {
		b.Fatal(err)
	}
	var ours, bare time.Duration
	for b.Loop() {
		bed.ready(tiny(1))
		<-time.After(200 * time.Millisecond)
		began := time.Now()
		bed.apply(tiny(n + 1))
		bed.gateway.wait(b, "all", func(tr kiln.Traffic) bool { return len(tr.Fleets[tiny(1).ID()]) == n+1 })
		ours += time.Since(began)
		bed.ready(tiny(1))
		bare += startBare(b, bed, config, n)
	}
	b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "kiln-ms")
	b.ReportMetric(float64(bare.Milliseconds())/float64(b.N), "runc-ms")
	b.ReportMetric(float64(ours)/float64(bare), "ratio")
}

func tiny(count int) kiln.Fleet {
	return web(count, func(t *kiln.Template) { t.Config.Ready.Interval = 2 * time.Second })
}

// startBare starts n containers by the runtime alone, as many at once as the
// engine does.
func startBare(b *testing.B, bed *bed, config []byte, n int) time.Duration {
	b.Helper()
	dir := filepath.Join(bed.dir, "bare")
	for i := range n {
		bundle := filepath.Join(dir, strconv.Itoa(i))
		if err := os.MkdirAll(bundle, 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(bundle, "config.json"), bareConfig(b, bed, config, i), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	run := func(args ...string) {
		cmd := exec.Command("runc", append([]string{"--root", filepath.Join(dir, "state")}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Errorf("%v: %v: %s", args, err, out)
		}
	}
	began := time.Now()
	each(n, func(i int) {
		id := "bare-" + strconv.Itoa(i)
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			b.Error(err)
			return
		}
		defer null.Close()
		cmd := exec.Command("runc", "--root", filepath.Join(dir, "state"), "run", "--no-new-keyring", "--detach", "--bundle", filepath.Join(dir, strconv.Itoa(i)), id)
		cmd.Stdout, cmd.Stderr = null, null
		if err := cmd.Run(); err != nil {
			b.Errorf("start %s: %v", id, err)
		}
	})
	took := time.Since(began)
	each(n, func(i int) { run("delete", "--force", "bare-"+strconv.Itoa(i)) })
	return took
}

func each(n int, f func(i int)) {
	var all sync.WaitGroup
	tokens := make(chan struct{}, 4)
	for i := range n {
		tokens <- struct{}{}
		all.Go(func() { f(i); <-tokens })
	}
	all.Wait()
}

// bareConfig is an instance's configuration with a network namespace and a
// group of its own.
func bareConfig(b *testing.B, bed *bed, config []byte, i int) []byte {
	b.Helper()
	var s specs.Spec
	if err := json.Unmarshal(config, &s); err != nil {
		b.Fatal(err)
	}
	s.Linux.CgroupsPath = "/kiln-" + local.Tag(bed.dir) + "/bare-" + strconv.Itoa(i)
	for k := range s.Linux.Namespaces {
		if s.Linux.Namespaces[k].Type == specs.NetworkNamespace {
			s.Linux.Namespaces[k].Path = ""
		}
	}
	out, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	return out
}
