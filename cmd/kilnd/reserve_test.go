package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/ledger"
)

func TestAFullDiskGivesTheReserveUpOnce(t *testing.T) {
	dir := t.TempDir()
	l, err := ledger.Open(t.Context(), filepath.Join(dir, "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	r := newReserve(filepath.Join(dir, "reserve"), slog.New(slog.DiscardHandler))
	r.ledger = l
	r.take()
	if !r.room.Held() {
		t.Fatal("the reserve is not held")
	}
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			err := r.write(t.Context(), func() error {
				if r.room.Held() {
					return fmt.Errorf("write: %w", syscall.ENOSPC)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	if r.times != 1 {
		t.Errorf("given up %d times", r.times)
	}
	tight := r.write(t.Context(), func() error { return syscall.ENOSPC })
	if !errors.Is(tight, syscall.ENOSPC) {
		t.Errorf("without a reserve: %v", tight)
	}
	ctx, cancel := context.WithCancel(t.Context())
	changed := l.Watch(ctx)
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	kinds := ""
	for kinds != " disk.full disk.room" {
		events, err := l.Events(t.Context(), "", 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		kinds = ""
		for _, e := range events {
			kinds += " " + e.Kind
		}
		if kinds == " disk.full disk.room" {
			break
		}
		<-changed
	}
	cancel()
	if err := <-done; err != nil || !r.room.Held() {
		t.Errorf("held again: %v, %v", r.room.Held(), err)
	}
}

func TestOnlyAFullDiskIsWorthTheReserve(t *testing.T) {
	for _, c := range []struct {
		err  error
		full bool
	}{
		{nil, false},
		{kiln.Errorf(kiln.CodeNoRoom, "", "3 more instances need addresses"), false},
		{kiln.Errorf(kiln.CodeNoRoom, "", "write to the ledger: database or disk is full (13)"), true},
		{kiln.Errorf(kiln.CodeFailed, "", "write down table 7: no space left on device"), true},
		{fmt.Errorf("write: %w", syscall.ENOSPC), true},
	} {
		if got := full(c.err); got != c.full {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}

// scribe has logs.
type scribe struct{ used, kept int64 }

func (s *scribe) LogUsage() (int64, error) { return s.used, nil }

func (s *scribe) CollectLogs(keep int64) (int64, error) {
	s.kept = keep
	return s.used - keep, nil
}

func TestLogsCountForTheBoundOfStorage(t *testing.T) {
	s := &scribe{used: 100, kept: -1}
	var c control.Collector = writings{s}
	if used, err := c.Usage(t.Context()); err != nil || used != 100 {
		t.Errorf("%d, %v", used, err)
	}
	if freed, err := c.Collect(t.Context(), control.Keep{}, 0); err != nil || freed != 0 || s.kept != -1 {
		t.Errorf("without pressure: freed %d, kept %d, %v", freed, s.kept, err)
	}
	if freed, err := c.Collect(t.Context(), control.Keep{}, 30); err != nil || freed != 30 || s.kept != 70 {
		t.Errorf("freed %d, kept %d, %v", freed, s.kept, err)
	}
	if freed, err := c.Collect(t.Context(), control.Keep{}, 300); err != nil || freed != 100 || s.kept != 0 {
		t.Errorf("freed %d, kept %d, %v", freed, s.kept, err)
	}
}

// TestTheReserveWentAlreadyToOpenTheLedger: what opening it took is noted, and
// that there is no room again is no more.
func TestTheReserveWentAlreadyToOpenTheLedger(t *testing.T) {
	r := newReserve(filepath.Join(t.TempDir(), "nowhere", "reserve"), slog.New(slog.DiscardHandler))
	r.missed()
	taken := make(chan struct{})
	go func() { r.take(); close(taken) }()
	select {
	case <-taken:
	case <-time.After(time.Minute):
		t.Fatal("the start waits for ever")
	}
}
