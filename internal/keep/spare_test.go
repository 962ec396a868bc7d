package keep

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// gateways are the living children of a process that are gateways, with those
// that wait for their turn.
func gateways(t *testing.T, keeper int) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, file := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		line, err := os.ReadFile(file)
		stat, staterr := readStat(pid)
		if err != nil || staterr != nil || stat.parent != keeper || !bytes.Contains(line, []byte("\x00role=gateway\x00")) || bytes.Contains(line, []byte("role=launch")) {
			continue
		}
		if !dead(pid) {
			out = append(out, pid)
		}
	}
	return out
}

// awaitSpare waits for the gateway that waits for its turn.
func (r *rig) awaitSpare() (gateway, spare int) {
	r.t.Helper()
	waitUntil(r.t, func() bool {
		info, err := r.Ping(r.t.Context())
		if err != nil {
			return false
		}
		gateway = info.GatewayPID
		all := gateways(r.t, info.PID)
		all = slices.DeleteFunc(all, func(pid int) bool { return pid == gateway })
		if len(all) != 1 {
			return false
		}
		spare = all[0]
		return true
	})
	return gateway, spare
}

// The socket that both gateways have must not become blocking: an accept could
// not be ended then.
func TestAGatewayWithASpareEndsWhenItIsTold(t *testing.T) {
	r := newRig(t, true)
	listen := func() {
		if err := r.Listen(t.Context(), []string{fmt.Sprintf("tcp://127.0.0.1:%d", freePort(t))}); err != nil {
			t.Fatal(err)
		}
	}
	listen()
	_, spare := r.awaitSpare()
	r.kill(spare)
	listen() // the next spare is started when the gateway accepts already
	r.awaitSpare()
	if s, err := ask("unix", filepath.Join(r.dir, "run", "gateway.sock")); err != nil || s != "ok\n" {
		t.Fatalf("%q %v", s, err)
	}
	if err := r.Stop(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.log(), leaves) {
		t.Errorf("the gateway was killed:\n%s", r.log())
	}
	r.start()
}

func TestTheSpareGatewayFollows(t *testing.T) {
	r := newRig(t, true)
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if err := r.Listen(t.Context(), []string{"tcp://" + address}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		gateway, spare := r.awaitSpare()
		r.kill(gateway)
		var said string
		waitUntil(t, func() bool {
			s, err := ask("tcp", address)
			said = s
			return err == nil
		})
		if !strings.HasPrefix(said, fmt.Sprint(spare, " ")) {
			t.Fatalf("%d was to follow %d, and this answers: %s", spare, gateway, said)
		}
	}
}

func TestASpareThatDiedIsNotWaitedFor(t *testing.T) {
	r := newRig(t, true)
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if err := r.Listen(t.Context(), []string{"tcp://" + address}); err != nil {
		t.Fatal(err)
	}
	gateway, spare := r.awaitSpare()
	r.kill(spare)
	r.kill(gateway)
	waitUntil(t, func() bool {
		_, err := ask("tcp", address)
		return err == nil
	})
	if _, next := r.awaitSpare(); next == spare {
		t.Fatalf("the dead spare %d is still the spare", spare)
	}
}

// TestASpareIsMissed has another started, without a gateway's death or a change
// of what is listened on.
func TestASpareIsMissed(t *testing.T) {
	r := newRig(t, true)
	gateway, spare := r.awaitSpare()
	waitUntil(t, func() bool { return lived(spare) > 2*quickDeath })
	r.kill(spare)
	if same, next := r.awaitSpare(); next == spare || same != gateway {
		t.Fatalf("spare %d after %d, gateway %d after %d", next, spare, same, gateway)
	}
}

// lived is how long a process has lived.
func lived(pid int) time.Duration {
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return 0
	}
	return time.Since(info.ModTime())
}

func TestASpareEndsWithItsKeeper(t *testing.T) {
	r := newRig(t, true)
	_, spare := r.awaitSpare()
	pidfd, err := unix.PidfdOpen(spare, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	r.killKeeper()
	if !awaitEnd(pidfd, longest) {
		t.Error("the spare gateway outlives its keeper")
	}
	r.start()
}
