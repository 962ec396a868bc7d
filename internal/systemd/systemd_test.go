package systemd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// asked puts programs in systemd's place that note what they are asked and
// print an answer. It returns what was asked.
func asked(t *testing.T, answer string) func() []string {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	script := "#!/bin/sh\necho \"${0##*/} $*\" >>" + log + "\ncat <<'END'\n" + answer + "\nEND\n"
	for _, name := range []string{"systemctl", "systemd-run"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() []string {
		b, err := os.ReadFile(log)
		if err != nil {
			return nil
		}
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
}

func TestAGroupIsMadeOnce(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		made   bool
		fails  bool
	}{
		"there is none":           {"ActiveState=inactive\nDelegate=no\nControlGroup=", true, false},
		"there is one":            {"ActiveState=active\nDelegate=yes\nControlGroup=/kiln.slice/kiln-00aa11.service", false, false},
		"it is somebody else's":   {"ActiveState=active\nDelegate=no\nControlGroup=/x", false, true},
		"it has lost its process": {"ActiveState=active\nDelegate=yes\nControlGroup=", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			log := asked(t, c.answer)
			err := Group(t.Context(), GroupOptions{Name: "kiln-00aa11", Description: "Kiln's", Before: []string{"a.service", "b.service"}, Stop: []string{"/bin/end", "/x"}})
			if (err != nil) != c.fails {
				t.Error(err)
			}
			made := slices.IndexFunc(log(), func(line string) bool { return strings.HasPrefix(line, "systemd-run ") })
			if (made >= 0) != c.made {
				t.Fatalf("%q", log())
			}
			restarted := slices.Contains(log(), "systemctl restart -- kiln-00aa11.service")
			if restarted != (name == "it has lost its process") {
				t.Errorf("%q", log())
			}
			if !c.made {
				return
			}
			for _, want := range []string{"--unit=kiln-00aa11 ", "--slice=kiln.slice ", "--property=Delegate=yes ", "--property=RemainAfterExit=yes ", "--property=Before=a.service b.service ", "--property=ExecStop=/bin/end /x "} {
				if !strings.Contains(log()[made], want) {
					t.Errorf("%s lacks %s", log()[made], want)
				}
			}
		})
	}
}

func TestWhatSystemdRefusesIsSaid(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte("#!/bin/sh\necho no such unit >&2\nexit 5\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if err := Start(t.Context(), "x.service"); err == nil || !strings.Contains(err.Error(), "systemctl start --no-block -- x.service: exit status 5: no such unit") {
		t.Error(err)
	}
}

func TestPropertiesAreRead(t *testing.T) {
	asked(t, "LoadState=loaded\nEnvironment=A=b C=d")
	got, err := Show(t.Context(), "x.service", "LoadState", "Environment")
	if err != nil || got["LoadState"] != "loaded" || got["Environment"] != "A=b C=d" {
		t.Errorf("%v %v", got, err)
	}
}

// manager listens in systemd's place.
func manager(t *testing.T) <-chan string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	said := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 1024)
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			select {
			case said <- string(buffer[:n]):
			default: // it says the same again
			}
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return said
}

func take(t *testing.T) Service {
	t.Helper()
	s, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReadyIsTold(t *testing.T) {
	said := manager(t)
	if err := take(t).Ready(); err != nil {
		t.Fatal(err)
	}
	if got := <-said; got != "READY=1" {
		t.Error(got)
	}
}

// TestWhatSystemdSaidIsForThisProcessAlone: runc does not end where it finds
// NOTIFY_SOCKET.
func TestWhatSystemdSaidIsForThisProcessAlone(t *testing.T) {
	manager(t)
	t.Setenv("WATCHDOG_USEC", "3000")
	t.Setenv("WATCHDOG_PID", "1")
	if s := take(t); s.watchdog != 0 {
		t.Error("another process's watchdog was taken")
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if v, ok := os.LookupEnv(name); ok {
			t.Errorf("%s=%s is left for what this process starts", name, v)
		}
	}
}

func TestWithoutSystemdNothingIsToldAndNothingFails(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	s := take(t)
	if err := s.Ready(); err != nil {
		t.Error(err)
	}
	s.Watch(t.Context(), func(context.Context) error { t.Error("asked whether it lives"); return nil }, func(error) {})
}

func TestOnlyTheLivingFeedTheWatchdog(t *testing.T) {
	said := manager(t)
	t.Setenv("WATCHDOG_USEC", "3000")
	t.Setenv("WATCHDOG_PID", "")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	hangs := errors.New("it hangs")
	failures := make(chan error)
	alive := make(chan error, 1)
	ended := make(chan struct{})
	service := take(t)
	go func() {
		defer close(ended)
		service.Watch(ctx, func(ctx context.Context) error {
			select {
			case err := <-alive:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}, func(err error) {
			select {
			case failures <- err:
			case <-ctx.Done():
			}
		})
	}()
	// One that does not answer in time, and one that answers with an error.
	if err := <-failures; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	alive <- hangs
	for err := range failures {
		if errors.Is(err, hangs) {
			break
		}
	}
	select {
	case got := <-said:
		t.Errorf("it was said to live: %s", got)
	default:
	}
	drain := make(chan struct{})
	go func() {
		defer close(drain)
		for {
			select {
			case <-failures:
			case <-ctx.Done():
				return
			}
		}
	}()
	alive <- nil
	if got := <-said; got != "WATCHDOG=1" {
		t.Errorf("%s", got)
	}
	cancel()
	<-drain
	<-ended
}
