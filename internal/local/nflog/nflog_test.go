package nflog

import (
	"net/netip"
	"os"
	"testing"
)

func TestParseIPv4(t *testing.T) {
	packet := append([]byte{
		0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 1, 2, 3, 192, 0, 2, 9,
	}, 0x9c, 0x40, 0x01, 0xbb)
	a, ok := parseIPv4(packet)
	want := Attempt{From: netip.MustParseAddr("10.1.2.3"), To: netip.MustParseAddrPort("192.0.2.9:443"), Protocol: "tcp"}
	if !ok || a != want {
		t.Errorf("got %+v %v, want %+v", a, ok, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{24, 0, 9, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 1, 2, 3, 192, 0, 2, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := parse(b)
		if ok && !a.From.Is4() {
			t.Errorf("accepted a packet from %v", a.From)
		}
	})
}

func TestCloseEndsRun(t *testing.T) {
	if os.Getenv("KILN_TEST_ROOT") == "" {
		t.Skip("not root")
	}
	l, err := Listen(64_999)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run(t.Context(), func(Attempt) {}) }()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("a listener that was closed says %v", err)
	}
}
