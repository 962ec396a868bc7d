package netns_test

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/kilnproject/kiln/internal/local/netns"
)

// prefix of the links of this process: several may run on one machine.
var prefix = fmt.Sprintf("kt%x-", os.Getpid()&0xff_ffff)

func TestLink(t *testing.T) {
	root(t)
	l, err := netns.Prepare(prefix + "1")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Connect(netip.MustParseAddr("10.222.0.7"), netip.MustParseAddr("127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if !netns.Exists(prefix + "1") {
		t.Error("no link on the host")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := netns.Sweep(prefix, nil); err != nil {
		t.Fatal(err)
	}
	if netns.Exists(prefix + "1") {
		t.Error("the link outlived its namespace and the sweep")
	}
}

func BenchmarkPrepare(b *testing.B) {
	root(b)
	for b.Loop() {
		l, err := netns.Prepare(prefix + "2")
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = l.Close()
		_, _ = netns.Sweep(prefix, nil)
		b.StartTimer()
	}
}

func root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1")
	}
}
