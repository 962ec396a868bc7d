package blame_test

import (
	"os/exec"
	"testing"
	"time"

	"github.com/kilnproject/kiln/test/blame"
	"github.com/kilnproject/kiln/test/load"
)

func TestOnlyWhatWasUnderWayIsBlamed(t *testing.T) {
	var r blame.Register
	at := time.Unix(1000, 0)
	r.Note("gateway", at, at.Add(50*time.Millisecond))
	for _, c := range []struct {
		name       string
		sent, took time.Duration
		dialed     time.Duration // 0 is a connection of its own
		want       string
	}{
		{"answered before the kill", -2 * time.Second, time.Second, -time.Minute, ""},
		{"under way", -time.Second, 1010 * time.Millisecond, 0, "gateway"},
		{"sent while it died", 20 * time.Millisecond, time.Millisecond, 0, "gateway"},
		{"sent on a connection that was just closed", 400 * time.Millisecond, time.Millisecond, -time.Minute, "gateway"},
		{"sent later", 200 * time.Millisecond, time.Millisecond, 0, ""},
		{"sent later, on a connection that was made later", 400 * time.Millisecond, time.Millisecond, 300 * time.Millisecond, ""},
		{"sent much later", 3 * time.Second, time.Millisecond, -time.Minute, ""},
	} {
		o := load.Outcome{At: at.Add(c.sent), Took: c.took}
		if c.dialed != 0 {
			o.Dialed = at.Add(c.dialed)
		}
		if got := r.Of(o); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestKillSparesAStranger(t *testing.T) {
	var r blame.Register
	stranger := exec.Command("cat")
	in, err := stranger.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	if err := r.Kill("app", stranger.Process.Pid, func(int) bool { return false }); err == nil {
		t.Error("a stranger was killed")
	}
	_ = in.Close()
	if err := stranger.Wait(); err != nil {
		t.Errorf("the stranger ended with %v", err)
	}
	victim := exec.Command("cat")
	if _, err := victim.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = victim.Wait() }()
	if err := r.Kill("app", victim.Process.Pid, func(int) bool { return true }); err != nil {
		t.Error(err)
	}
	if r.Of(load.Outcome{At: time.Now()}) != "app" {
		t.Error("the kill was not noted")
	}
}

func TestCauses(t *testing.T) {
	for failure, want := range map[string]string{
		"connection refused": "refused", "EOF": "cut", "connection reset by peer": "cut",
		"status 502": "status 502", "context deadline exceeded": "timeout", "strange": "other: strange",
	} {
		if got := blame.Cause(failure); got != want {
			t.Errorf("%s: %q, want %q", failure, got, want)
		}
	}
}
