package main

import (
	"log/slog"
	"sync/atomic"

	"github.com/kilnproject/kiln/internal/ledger"
)

// keptEvents are the newest in the ledger where nothing else is said, some
// hundred megabytes. Older ones go, behind a checkpoint from which the chain
// can still be checked.
const keptEvents = 500_000

// history is the bound of the ledger.
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

// care is how the ledger is tended.
func (h *history) care(log *slog.Logger) ledger.Care {
	return ledger.Care{Keep: h.keep.Load, Changed: h.changed, Log: log}
}
