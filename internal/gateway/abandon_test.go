package gateway

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestAGatewayWithoutKeeperServesOnUntilItsDirectoryIsGone(t *testing.T) {
	r := start(t, func(o *Options) { o.Limits.Abandoned = 20 * time.Millisecond })
	r.listen("127.0.0.1")
	if _, err := r.client.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = r.given.Close() // the keeper is gone
	for range 5 {
		<-time.After(20 * time.Millisecond)
		if _, err := r.client.Measure(t.Context()); err != nil {
			t.Fatalf("it ended with its keeper: %v", err)
		}
	}
	if err := os.RemoveAll(filepath.Join(r.dir, "gateway")); err != nil {
		t.Fatal(err)
	}
	r.ends()
}

// ends waits until the gateway has ended by itself.
func (r *rig) ends() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 3*time.Minute)
	defer cancel()
	for {
		if _, err := r.client.Measure(ctx); err != nil {
			break
		}
		<-time.After(5 * time.Millisecond)
	}
	if ctx.Err() != nil {
		r.t.Fatal("it did not end")
	}
}

// TestAGatewayThatNeverHadAListenerEndsWithItsKeeper: the next keeper knows
// nothing of it.
func TestAGatewayThatNeverHadAListenerEndsWithItsKeeper(t *testing.T) {
	r := start(t)
	if _, err := r.client.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = r.given.Close()
	r.ends()
}

func TestAnAbandonedGatewayWaitsAMinute(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gateway")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began, ended := time.Now(), make(chan bool, 1)
		go func() { ended <- abandoned(ctx, dir, DefaultLimits().Abandoned) }()
		<-time.After(150 * time.Second)
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if gone := <-ended; !gone || time.Since(began) != 3*time.Minute {
			t.Errorf("%v after %s", gone, time.Since(began))
		}
		go func() { ended <- abandoned(ctx, t.TempDir(), time.Minute) }()
		<-time.After(time.Hour)
		cancel()
		if <-ended {
			t.Error("a directory that is there was gone")
		}
	})
}

func TestADeletedWorkingDirectoryIsGone(t *testing.T) {
	t.Chdir(t.TempDir())
	if removed(".") {
		t.Error("it is there")
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(here); err != nil {
		t.Fatal(err)
	}
	if !removed(".") {
		t.Error("it was deleted")
	}
}
