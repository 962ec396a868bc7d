package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/ledger"
	"github.com/kilnproject/kiln/internal/metrics"
	"github.com/kilnproject/kiln/internal/store"
)

const (
	// reserveBytes is room for the ledger and the engine's records on a full
	// disk: for hundreds of changes, each of some ten kilobytes.
	reserveBytes = 16 << 20
	// reserveAgain is how often it is tried to take a reserve again.
	reserveAgain = 10 * time.Second
)

// reserve keeps a full disk from ending the work: what must be written is
// tried again in the room that it gives up, and that is told of.
type reserve struct {
	room   *store.Reserve
	log    *slog.Logger
	ledger *ledger.Ledger // where events go; nil before it is open
	given  chan struct{}  // one token after the room was given up

	mu    sync.Mutex
	times int // that it was given up
}

func newReserve(path string, log *slog.Logger) *reserve {
	return &reserve{room: store.NewReserve(path, reserveBytes), log: log, given: make(chan struct{}, 1)}
}

// take holds the room at start. Without room on the disk that is a warning.
func (r *reserve) take() {
	if err := r.room.Hold(); err != nil {
		r.log.Warn("the ledger has no reserve", "error", err)
		r.missed()
	}
}

// missed has the room taken again once there is some.
func (r *reserve) missed() {
	select {
	case r.given <- struct{}{}:
	default:
	}
}

// write does what must be written, twice when the disk is full.
func (r *reserve) write(ctx context.Context, do func() error) error {
	r.mu.Lock()
	before := r.times
	r.mu.Unlock()
	err := do()
	if !full(err) || !r.give(ctx, before, err) {
		return err
	}
	return do()
}

// relieve gives the room up when an error of what is tried again by itself is
// of a full disk.
func (r *reserve) relieve(ctx context.Context, err error) {
	if !full(err) {
		return
	}
	r.mu.Lock()
	before := r.times
	r.mu.Unlock()
	r.give(ctx, before, err)
}

// full says whether an error is of a disk without room. Errors of the gateway
// and the keeper have passed a socket and are text.
func full(err error) bool {
	return err != nil && (errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), syscall.ENOSPC.Error()) ||
		strings.Contains(err.Error(), "database or disk is full"))
}

// give gives the room up, unless that was done since the caller began, and
// says whether there is more room now.
func (r *reserve) give(ctx context.Context, before int, cause error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.times != before {
		return true
	}
	if !r.room.Held() {
		return false
	}
	if err := r.room.Release(); err != nil {
		r.log.Error("the reserve could not be given up", "error", err)
		return false
	}
	r.times++
	r.missed()
	r.log.Error("the disk is full, the ledger's reserve was given up", "bytes", reserveBytes, "error", cause)
	r.tell(ctx, "disk.full", fmt.Sprintf("the disk of the data directory is full; the ledger goes on in its reserve of %d MiB", reserveBytes>>20))
	return true
}

// tell puts an event into the ledger.
func (r *reserve) tell(ctx context.Context, kind, message string) {
	if r.ledger == nil {
		return
	}
	err := r.ledger.Commit(ctx, kiln.Record{Events: []kiln.Event{{At: time.Now().UTC(), Kind: kind, Subject: "ledger", Message: message}}})
	if err != nil {
		r.log.Error("the event could not be recorded", "kind", kind, "error", err)
	}
}

// run takes the room again whenever it was given up and the disk has it, until
// ctx ends.
func (r *reserve) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.given:
		}
		for r.again() != nil {
			pause(ctx, reserveAgain)
			if ctx.Err() != nil {
				return nil
			}
		}
		r.log.Info("the ledger has its reserve again", "bytes", reserveBytes)
		r.tell(ctx, "disk.room", "the disk of the data directory has room; the ledger has its reserve again")
	}
}

var errTight = errors.New("the disk has hardly more room than the reserve")

// again takes the room when as much stays free beside it: otherwise the next
// write would give it up again.
func (r *reserve) again() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	free, err := r.room.Free()
	if err != nil {
		return err
	}
	if free < 2*reserveBytes {
		return errTight
	}
	return r.room.Hold()
}

// durableLedger is a ledger that goes on in its reserve. What it takes is
// counted.
type durableLedger struct {
	*ledger.Ledger
	reserve *reserve
	metrics *metrics.Metrics
}

// durable is the ledger as the control plane writes it.
func (p *plane) durable() durableLedger { return durableLedger{p.ledger, p.reserve, p.metrics} }

func (l durableLedger) CreateRelease(ctx context.Context, r kiln.Release) (out kiln.Release, err error) {
	done := l.metrics.Committing()
	err = l.reserve.write(ctx, func() (err error) { out, err = l.Ledger.CreateRelease(ctx, r); return err })
	if done(err); err == nil {
		l.metrics.Created(out)
	}
	return out, err
}

func (l durableLedger) Commit(ctx context.Context, r kiln.Record) error {
	done := l.metrics.Committing()
	err := l.reserve.write(ctx, func() error { return l.Ledger.Commit(ctx, r) })
	if done(err); err == nil {
		l.metrics.Recorded(r)
	}
	return err
}

// durableEngine is an engine whose records, and those of the gateway, go on in
// the ledger's reserve.
type durableEngine struct {
	kiln.Engine
	reserve *reserve
}

func (e durableEngine) Apply(ctx context.Context, environment string, fleets []kiln.Fleet, reason string) error {
	return e.reserve.write(ctx, func() error { return e.Engine.Apply(ctx, environment, fleets, reason) })
}

func (e durableEngine) Route(ctx context.Context, table kiln.RouteTable) error {
	return e.reserve.write(ctx, func() error { return e.Engine.Route(ctx, table) })
}
