package keep

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// rooted skips unless the test may use root.
func rooted(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1")
	}
}

func TestGatewayGetsWhatIsListenedOn(t *testing.T) {
	r := newRig(t, true)
	one, two := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	v6 := fmt.Sprintf("[::1]:%d", freePort(t))
	udp := "udp://" + one
	if err := r.Listen(t.Context(), []string{"tcp://" + one, "tcp://" + v6, udp}); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{one, v6} {
		if _, err := ask("tcp", a); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Listen(t.Context(), []string{"tcp://" + two}); err != nil {
		t.Fatal(err)
	}
	if _, err := ask("tcp", two); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("tcp", one); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("a withdrawn listener: %v", err)
	}
	control := filepath.Join(r.dir, "run", "gateway.sock")
	if s, err := ask("unix", control); err != nil || s != "ok\n" {
		t.Fatalf("control socket: %q, %v", s, err)
	}
	if info, err := os.Stat(control); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("control socket: %v, %v", info.Mode(), err)
	}
}

func TestWildcardTakesTheSamePortOfOneAddress(t *testing.T) {
	r := newRig(t, true)
	port := freePort(t)
	for _, address := range []string{"127.0.0.1", "", "127.0.0.1"} {
		name := fmt.Sprintf("tcp://%s:%d", address, port)
		if err := r.Listen(t.Context(), []string{name}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := ask("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

func TestListenNamesWhatIsInTheWay(t *testing.T) {
	r := newRig(t, true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	good := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	err = r.Listen(t.Context(), []string{"tcp://" + l.Addr().String(), "tcp://" + good})
	e := (*kiln.Error)(nil)
	if !errors.As(err, &e) || e.Code != kiln.CodeConflict || e.Hint == "" {
		t.Fatalf("Listen = %#v", err)
	}
	for _, want := range []string{l.Addr().String(), filepath.Base(os.Args[0])[:9], fmt.Sprint(os.Getpid())} {
		if !strings.Contains(e.Message, want) {
			t.Errorf("%q does not name %s", e.Message, want)
		}
	}
	if _, err := ask("tcp", good); err != nil {
		t.Fatalf("the other one: %v", err)
	}
	for _, bad := range []string{"tcp://localhost:80", "http://127.0.0.1:80", "tcp://127.0.0.1:0", "tcp://127.0.0.1", "tcp://[fe80::1%lo]:80"} {
		if err := r.Listen(t.Context(), []string{bad}); !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestGatewaysRefusalReachesTheCaller(t *testing.T) {
	r := newRig(t, true)
	name := fmt.Sprintf("tcp://127.0.0.66:%d", freePort(t))
	if err := r.Listen(t.Context(), []string{name}); err == nil || !strings.Contains(err.Error(), "no listener on that") {
		t.Fatalf("Listen = %v", err)
	}
	if err := r.Listen(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func TestGatewayIsKilledInAStorm(t *testing.T) {
	r := newRig(t, true)
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if err := r.Listen(t.Context(), []string{"tcp://" + address}); err != nil {
		t.Fatal(err)
	}
	var refused, answered, reset atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				switch _, err := ask("tcp", address); {
				case err == nil:
					answered.Add(1)
				case errors.Is(err, unix.ECONNREFUSED):
					refused.Add(1)
				default:
					reset.Add(1) // it was the killed gateway's
				}
			}
		})
	}
	var slowest time.Duration
	for range patience {
		before := answered.Load()
		waitUntil(t, func() bool { return answered.Load() > before+50 })
		info, err := r.Ping(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		r.kill(info.GatewayPID)
		waitUntil(t, func() bool {
			s, err := ask("tcp", address)
			return err == nil && !strings.HasPrefix(s, fmt.Sprint(info.GatewayPID, " "))
		})
		slowest = max(slowest, time.Since(began))
	}
	close(stop)
	clients.Wait()
	t.Logf("%d answered, %d reset, slowest new gateway %s", answered.Load(), reset.Load(), slowest)
	if refused.Load() > 0 {
		t.Fatalf("%d connections were refused", refused.Load())
	}
	if info, err := r.Ping(t.Context()); err != nil || info.GatewayStarts != patience+1 {
		t.Fatalf("%+v, %v", info, err)
	}
}

func TestGatewayThatHangsIsReplaced(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a timeout")
	}
	r := newRig(t, true)
	info, err := r.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(info.GatewayPID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	// On a busy machine the new gateway may take longer than one Listen waits.
	waitUntil(t, func() bool { return r.Listen(t.Context(), []string{"tcp://" + address}) == nil })
	if s, err := ask("tcp", address); err != nil || strings.HasPrefix(s, fmt.Sprint(info.GatewayPID, " ")) {
		t.Fatalf("%q, %v", s, err)
	}
}

func TestGatewayThatDoesNotStartIsTriedWithPauses(t *testing.T) {
	r := newRig(t, false)
	if err := r.Stop(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	r.opt.Gateway = []string{"false"}
	r.opt.Launch = []string{os.Args[0], "role=launch"}
	lock, err := lockDir(filepath.Join(r.dir, "run")) // another can be started at once
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	r.start()
	waitUntil(t, func() bool {
		info, err := r.Ping(t.Context())
		return err == nil && info.GatewayStarts > patience+1
	})
	began := time.Now()
	info, err := r.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waitUntil(t, func() bool { return time.Since(began) > time.Second })
	after, err := r.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	most := 1
	for pause, left := 100*time.Millisecond, took; left > 0; pause = min(2*pause, maxPause) {
		most, left = most+1, left-pause
	}
	if n := after.GatewayStarts - info.GatewayStarts; n > most {
		t.Fatalf("%d starts in %s", n, took)
	}
}

func TestGatewayHasNoRights(t *testing.T) {
	rooted(t)
	r := newRig(t, true)
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if err := r.Listen(t.Context(), []string{"tcp://" + address}); err != nil {
		t.Fatal(err)
	}
	s, err := ask("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	const none = "0000000000000000"
	want := fmt.Sprintf(" %d Groups:,CapInh:%s,CapPrm:%s,CapEff:%s,CapBnd:%s,CapAmb:%s,NoNewPrivs:1,%s/gateway\n", defaultGatewayID, none, none, none, none, none, r.dir)
	if _, rest, _ := strings.Cut(s, " "); " "+rest != want {
		t.Fatalf("the gateway says\n%s, want\n%s", rest, want)
	}
}

func TestKeeperDiesAndTheNextListensAgain(t *testing.T) {
	r := newRig(t, true)
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if err := r.Listen(t.Context(), []string{"tcp://" + address}); err != nil {
		t.Fatal(err)
	}
	before, err := r.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.killKeeper()
	r.start()
	waitUntil(t, func() bool {
		s, err := ask("tcp", address)
		return err == nil && !strings.HasPrefix(s, fmt.Sprint(before.GatewayPID, " "))
	})
	waitUntil(t, func() bool { return dead(before.GatewayPID) })
}

// TestKeeperDiesAndNoConnectionIsRefused needs root where a process may not
// look into another one of its user.
func TestKeeperDiesAndNoConnectionIsRefused(t *testing.T) {
	rooted(t)
	r := newRig(t, true)
	address, udp := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("[::1]:%d", freePort(t))
	names := []string{"tcp://" + address, "udp://" + udp, fmt.Sprintf("tcp://:%d", freePort(t))}
	if err := r.Listen(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	before, err := r.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var refused, answered atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := ask("tcp", address); err != nil {
					t.Error(err)
					refused.Add(1)
					return
				}
				answered.Add(1)
			}
		})
	}
	for n := range 3 {
		more := answered.Load() + 20
		waitUntil(t, func() bool { return answered.Load() > more || refused.Load() > 0 })
		for range n { // dies before its gateway has anything
			r.killKeeper()
			r.start()
		}
		r.killKeeper()
		r.start()
		waitUntil(t, func() bool { return dead(before.GatewayPID) })
		more = answered.Load() + 20
		waitUntil(t, func() bool { return answered.Load() > more || refused.Load() > 0 })
		if before, err = r.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	clients.Wait()
	after, err := r.Ping(t.Context())
	if err != nil || !slices.Equal(slices.Sorted(slices.Values(after.Listeners)), slices.Sorted(slices.Values(names))) {
		t.Errorf("it listens on %v, %v", after.Listeners, err)
	}
	waitUntil(t, func() bool { // once all those before have ended
		past, err := readJournal(filepath.Join(r.dir, "run", journalName))
		return err == nil && len(past.orphans) == 0 && past.gateway != nil && past.gateway.PID == after.GatewayPID
	})
}
