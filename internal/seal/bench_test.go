package seal

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// debianTar returns a Debian base as a tar: the one that KILN_BENCH_ROOT
// names, or a new one by mmdebstrap.
func debianTar(b *testing.B) []byte {
	b.Helper()
	path := os.Getenv("KILN_BENCH_ROOT")
	if path == "" {
		needRoot(b)
		if _, err := exec.LookPath("mmdebstrap"); err != nil {
			b.Skip("needs mmdebstrap, or a tar of a root file system named by KILN_BENCH_ROOT")
		}
		path = filepath.Join(b.TempDir(), "root.tar")
		out, err := exec.CommandContext(b.Context(), "mmdebstrap", "--variant=minbase", "--mode=unshare", "bookworm", path).CombinedOutput()
		if err != nil {
			b.Skipf("mmdebstrap: %v\n%s", err, out)
		}
	}
	tar, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	return tar
}

// BenchmarkSealDebian seals a Debian base of about 180 MB from a gzip layer,
// as images come, and mounts it.
func BenchmarkSealDebian(b *testing.B) {
	needRoot(b)
	store := folder(b.TempDir())
	root := debianTar(b)
	manifest := store.image(b, root)
	before := cpuTime(b)
	for b.Loop() {
		s := newSealer(b, b.TempDir(), store)
		start := time.Now()
		r, err := s.Root(b.Context(), manifest, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/seal")
		b.ReportMetric(float64(r.Size)/(1<<20), "MiB")
	}
	b.ReportMetric((cpuTime(b)-before).Seconds()/float64(b.N), "cpu-s/op")
}

// cpuTime is what this process used: a busy machine changes it little.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkBuildDebian is the sealing without hash and mount, by packing.
func BenchmarkBuildDebian(b *testing.B) {
	store := folder(b.TempDir())
	root := debianTar(b)
	empty := layer(b)
	for name, manifest := range map[string]kiln.Digest{
		"gzip": store.image(b, root),
		"zstd": store.image(b, empty, root),
		"tar":  store.image(b, empty, empty, root),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			before := cpuTime(b)
			for b.Loop() {
				buildOnce(b, store, manifest, nil)
			}
			b.ReportMetric((cpuTime(b)-before).Seconds()/float64(b.N), "cpu-s/op")
		})
	}
}

// BenchmarkRootAgain is what every instance's start pays.
func BenchmarkRootAgain(b *testing.B) {
	needRoot(b)
	store := folder(b.TempDir())
	manifest := store.image(b, layer(b, file("a", "a")))
	s := newSealer(b, b.TempDir(), store)
	for b.Loop() {
		if _, err := s.Root(b.Context(), manifest, nil); err != nil {
			b.Fatal(err)
		}
	}
}
