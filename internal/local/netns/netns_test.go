package netns_test

import (
	"net/netip"
	"os"
	"testing"

	"github.com/kilnproject/kiln/internal/local/netns"
)

func TestLink(t *testing.T) {
	root(t)
	l, err := netns.Prepare("ktest00-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Connect(netip.MustParseAddr("10.222.0.7"), netip.MustParseAddr("127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if !netns.Exists("ktest00-1") {
		t.Error("no link on the host")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := netns.Sweep("ktest00-", nil); err != nil {
		t.Fatal(err)
	}
	if netns.Exists("ktest00-1") {
		t.Error("the link outlived its namespace and the sweep")
	}
}

func BenchmarkPrepare(b *testing.B) {
	root(b)
	for b.Loop() {
		l, err := netns.Prepare("ktest00-2")
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = l.Close()
		_, _ = netns.Sweep("ktest00-", nil)
		b.StartTimer()
	}
}

func root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1")
	}
}
