package keep

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// accepting answers on a socket with a word, until the test ends.
func accepting(t *testing.T, f *os.File, word string) {
	t.Helper()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, word)
			_ = c.Close()
		}
	}()
}

func answer(t *testing.T, address string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAllAddressesOfAPortBesideSingleOnes, as where a public listener and a
// service have the same port; whichever comes first.
func TestAllAddressesOfAPortBesideSingleOnes(t *testing.T) {
	for _, wideFirst := range []bool{true, false} {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := netip.MustParseAddrPort(free.Addr().String()).Port()
		if err := free.Close(); err != nil {
			t.Fatal(err)
		}
		single := endpoint{network: "tcp", address: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.7"), port)}
		wide := endpoint{network: "tcp", address: netip.AddrPortFrom(netip.IPv6Unspecified(), port), any: true}
		words := map[endpoint]string{single: "single", wide: "wide"}
		order := []endpoint{single, wide}
		if wideFirst {
			order = []endpoint{wide, single}
		}
		var own []*os.File
		for _, e := range order {
			f, err := e.open(own)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			own = append(own, f)
			accepting(t, f, words[e])
		}
		if got := answer(t, single.address.String()); got != "single" {
			t.Errorf("wide first %v: the single address is answered by %q", wideFirst, got)
		}
		if got := answer(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String()); got != "wide" {
			t.Errorf("wide first %v: another address is answered by %q", wideFirst, got)
		}

		// Another program's does not come beside them.
		for _, e := range order {
			if f, err := e.open(nil); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("without being told of our own: %v %v", f, err)
			}
		}
	}
}

func TestNeighboursAreOnTheSamePort(t *testing.T) {
	f := os.Stdin
	held := map[string]*os.File{"tcp://:80": f, "tcp://10.0.0.1:80": f, "udp://10.0.0.1:80": f, "tcp://10.0.0.1:81": f}
	e, err := parseEndpoint("tcp://10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(e.neighbours(held, nil)); n != 2 {
		t.Errorf("%d neighbours", n)
	}
}
