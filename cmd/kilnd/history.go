package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/kilnproject/kiln/internal/ledger"
)

const (
	// keptEvents are the newest in the ledger, some hundred megabytes. Older
	// ones go, behind a checkpoint from which the chain can still be checked.
	keptEvents = 500_000
	pruneEvery = 24 * time.Hour
)

// boundHistory keeps the ledger's events within their bound until ctx ends.
func boundHistory(ctx context.Context, l *ledger.Ledger, log *slog.Logger) error {
	for ctx.Err() == nil {
		if err := l.Prune(ctx, keptEvents); err != nil && ctx.Err() == nil {
			log.Warn("old events were not removed", "error", err)
		}
		pause(ctx, pruneEvery)
	}
	return nil
}
