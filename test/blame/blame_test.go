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
		want       string
	}{
		{"answered before the kill", -2 * time.Second, time.Second, ""},
		{"under way", -time.Second, 1010 * time.Millisecond, "gateway"},
		{"sent while it died", 20 * time.Millisecond, time.Millisecond, "gateway"},
		{"sent on a connection that was just closed", 140 * time.Millisecond, time.Millisecond, "gateway"},
		{"sent later", 200 * time.Millisecond, time.Millisecond, ""},
	} {
		if got := r.Of(load.Outcome{At: at.Add(c.sent), Took: c.took}); got != c.want {
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
