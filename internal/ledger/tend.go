package ledger

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// verifyEvery is how often the whole is verified after the start.
	verifyEvery = 24 * time.Hour
	// pruneEvery is how often it is looked whether there is too much. Between
	// two prunings the chain grows by a twentieth of what is kept.
	pruneEvery = time.Minute
	pruneSlack = 20
	// ageEvery is how often old copies are looked for.
	ageEvery = 24 * time.Hour
)

// Care is how a ledger is tended.
type Care struct {
	// Keep says how many entries of the chain are kept.
	Keep func() int64
	// Changed has a token when Keep says another number; nil when it never
	// does.
	Changed <-chan struct{}
	Log     *slog.Logger
}

// Tend keeps the ledger within its bounds, verifies all of it after the start
// and once a day, and logs what it finds, until ctx ends. Verifying takes what
// the machine's processors and disks have left over.
func (l *Ledger) Tend(ctx context.Context, c Care) {
	l.willCheck()
	var work sync.WaitGroup
	work.Go(func() { l.report(ctx, c.Log) })
	work.Go(func() { l.verifyAlways(ctx, c.Log) })
	work.Go(func() { l.pruneAlways(ctx, c) })
	work.Wait()
}

// report logs damage, each record once.
func (l *Ledger) report(ctx context.Context, log *slog.Logger) {
	told := map[string]bool{}
	for {
		for _, f := range l.Damage() {
			if !told[f.Record] {
				told[f.Record] = true
				log.Error("the ledger is damaged, and no history is written until that is settled", "record", f.Record, "problem", f.Problem, "hint", wayOut)
			}
		}
		select {
		case <-l.damage.news:
		case <-ctx.Done():
			return
		}
	}
}

func (l *Ledger) verifyAlways(ctx context.Context, log *slog.Logger) {
	// The thread is not given back: it ends with this goroutine, and its
	// priority with it.
	runtime.LockOSThread()
	standBack()
	rest := func(time.Duration) {}
	for ctx.Err() == nil {
		report, err := l.verify(ctx, "", rest)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			l.checked() // nobody waits for more
			log.Error("the ledger could not be verified", "error", err)
		default:
			log.Info("the ledger was verified", "events", report.Events, "rows", report.Rows, "faults", len(report.Faults)+report.More, "took", report.Took)
		}
		pause(ctx, verifyEvery)
		rest = func(took time.Duration) { pause(ctx, took) }
	}
}

// standBack lets everything else on the machine go before this thread.
func standBack() {
	const idle = 3 << 13 // IOPRIO_CLASS_IDLE, ioprio_set(2)
	thread := unix.Gettid()
	_ = unix.Setpriority(unix.PRIO_PROCESS, thread, 19)
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, 1 /* IOPRIO_WHO_PROCESS */, uintptr(thread), idle)
}

// pruneAlways begins once the whole was verified: what is damaged is not pruned
// away.
func (l *Ledger) pruneAlways(ctx context.Context, c Care) {
	select {
	case <-l.damage.first():
	case <-ctx.Done():
		return
	}
	var pruned int64 // the end of the chain then
	var aged time.Time
	for due := true; ctx.Err() == nil; due = await(ctx, c.Changed, pruneEvery) {
		if now := time.Now(); now.Sub(aged) > ageEvery {
			aged = now
			if err := l.ageCopies(now); err != nil {
				c.Log.Warn("old copies of the ledger were not removed", "error", err)
			}
		}
		keep := c.Keep()
		end, err := l.end(ctx)
		if err == nil && (due || end-pruned > max(1, keep/pruneSlack)) {
			if err = l.Prune(ctx, keep); err == nil {
				pruned = end
			}
		}
		if err != nil && ctx.Err() == nil && len(l.Damage()) == 0 {
			c.Log.Warn("old history was not removed", "error", err)
		}
	}
}

// end is the number of the last entry.
func (l *Ledger) end(ctx context.Context) (int64, error) {
	return lastEntry(ctx, l.files().read)
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) { await(ctx, nil, d) }

// await waits for news, and says whether there were any, or until ctx ends.
func await(ctx context.Context, news <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-news:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}
