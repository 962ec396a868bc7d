package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/kilnproject/kiln/internal/ledger"
)

const (
	// keptEvents are the newest in the ledger where nothing else is said, some
	// hundred megabytes. Older ones go, behind a checkpoint from which the chain
	// can still be checked.
	keptEvents = 500_000
	// keptInstances are the newest, each with its last words when it died.
	keptInstances = 100_000
	pruneEvery    = 24 * time.Hour
)

// history bounds the ledger.
type history struct {
	keep    atomic.Int64 // newest events
	changed chan struct{}
}

func newHistory(keep int64) *history {
	h := &history{changed: make(chan struct{}, 1)}
	h.keep.Store(keep)
	return h
}

// set changes the bound, for what there is, too.
func (h *history) set(keep int64) {
	if h.keep.Swap(keep) == keep {
		return
	}
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// run keeps the ledger's events and dead instances within their bounds until ctx ends.
func (h *history) run(ctx context.Context, l *ledger.Ledger, log *slog.Logger) error {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		if err := l.Prune(ctx, h.keep.Load(), keptInstances); err != nil && ctx.Err() == nil {
			log.Warn("old history was not removed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-h.changed:
		case <-tick.C:
		}
	}
}
