package handoff

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	a, child, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err = Conn(child)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

func listenerFile(t *testing.T) (*net.TCPListener, *os.File) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(); _ = f.Close() })
	return l.(*net.TCPListener), f
}

func TestListenerArrivesAndAccepts(t *testing.T) {
	a, b := pair(t)
	l, f := listenerFile(t)
	name := "tcp://" + l.Addr().String()
	sent := make(chan error, 1)
	go func() { sent <- Send(a, name, f) }()
	got, file, err := Receive(b)
	if err != nil || got != name {
		t.Fatalf("Receive = %q, %v", got, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Fatalf("flags = %d, %v: want close-on-exec", flags, err)
	}
	theirs, err := net.FileListener(file)
	_ = file.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	_ = l.Close()
	_ = f.Close()
	c, err := net.Dial("tcp", theirs.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := theirs.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
}

func TestWithdrawnHasNoFile(t *testing.T) {
	a, b := pair(t)
	sent := make(chan error, 1)
	go func() { sent <- Send(a, "udp://127.0.0.1:53", nil) }()
	name, f, err := Receive(b)
	if err != nil || f != nil || name != "udp://127.0.0.1:53" {
		t.Fatalf("Receive = %q, %v, %v", name, f, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func TestServeAnswersAfterTakeAndCarriesItsRefusal(t *testing.T) {
	a, b := pair(t)
	var taken atomic.Int32
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(b, func(name string, f *os.File) error {
			if f != nil {
				_ = f.Close()
			}
			if name == "bad" {
				return errors.New(strings.Repeat("no ", 1000))
			}
			taken.Add(1)
			return nil
		})
	}()
	_, f := listenerFile(t)
	if err := Send(a, "good", f); err != nil {
		t.Fatal(err)
	}
	if taken.Load() != 1 {
		t.Fatal("Send returned before take had")
	}
	err := Send(a, "bad", f)
	if r := (*RefusedError)(nil); !errors.As(err, &r) || r.Name != "bad" {
		t.Fatalf("Send = %v, want a refusal", err)
	}
	_ = a.Close()
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Fatalf("Serve = %v, want EOF", err)
	}
}

func TestSendRefusesNamesThatDoNotFit(t *testing.T) {
	a, _ := pair(t)
	for _, name := range []string{"", strings.Repeat("x", MaxName+1)} {
		if err := Send(a, name, nil); err == nil {
			t.Errorf("Send with a name of %d bytes was accepted", len(name))
		}
	}
}

func TestSendToTheDeadFails(t *testing.T) {
	a, b := pair(t)
	_ = b.Close()
	if err := Send(a, "x", nil); err == nil {
		t.Fatal("Send to a closed end was accepted")
	}
}

func TestLateAnswersAreSkipped(t *testing.T) {
	a, b := pair(t)
	if err := write(b, message{kind: kindAnswer, mark: [8]byte{1}, text: "stale"}, nil); err != nil {
		t.Fatal(err)
	}
	go func() { _, _, _ = Receive(b) }()
	if err := Send(a, "x", nil); err != nil {
		t.Fatal(err)
	}
}

func TestReceiveRefusesWhatIsNotAMessage(t *testing.T) {
	_, f := listenerFile(t)
	good := append([]byte("KLNH\x01\x01\x00\x01________"), 'x')
	cases := map[string]struct {
		packet []byte
		rights []int
	}{
		"garbage":           {[]byte("hello"), nil},
		"other version":     {append([]byte("KLNH\x02\x02\x00\x01________"), 'x'), nil},
		"unknown kind":      {append([]byte("KLNH\x01\x09\x00\x01________"), 'x'), nil},
		"length too small":  {append([]byte("KLNH\x01\x02\x00\x01________"), "xy"...), nil},
		"listener, no file": {good, nil},
		"withdrawn, a file": {append([]byte("KLNH\x01\x02\x00\x01________"), 'x'), []int{int(f.Fd())}},
		"two files":         {good, []int{int(f.Fd()), int(f.Fd())}},
		"six files":         {good, []int{int(f.Fd()), int(f.Fd()), int(f.Fd()), int(f.Fd()), int(f.Fd()), int(f.Fd())}},
		"an answer":         {append([]byte("KLNH\x01\x03\x00\x01________"), 'x'), nil},
		"too long":          {append([]byte("KLNH\x01\x01\x02\x01________"), make([]byte, MaxName+1)...), nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			before := openFiles(t)
			var oob []byte
			if c.rights != nil {
				oob = unix.UnixRights(c.rights...)
			}
			if _, _, err := a.WriteMsgUnix(c.packet, oob, nil); err != nil {
				t.Fatal(err)
			}
			if n, _, err := Receive(b); err == nil {
				t.Fatalf("Receive = %q, want an error", n)
			}
			if after := openFiles(t); after != before {
				t.Fatalf("%d files open, %d before", after, before)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("KLNH\x01\x01\x00\x01________x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err == nil && len(m.text)+headerSize != len(b) {
			t.Fatalf("%q parsed as %+v", b, m)
		}
	})
}
