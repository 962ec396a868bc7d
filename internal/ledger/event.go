package ledger

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/kilnproject/kiln"
)

// eventSchema says how an event's body and hash are made. It is part of the
// hash, so that events of older schemas stay as they are.
const eventSchema = 1

// pageSize is how many events one call returns at most when no number is asked
// for.
const pageSize = 1000

// tip is the last event of the chain.
type tip struct {
	seq  int64
	hash [sha256.Size]byte
}

// chain returns the hash of an event: of its schema, sequence, the hash before
// it, and its stored bytes with their length.
func chain(schema, seq int64, prev, environment, body []byte) [sha256.Size]byte {
	h := sha256.New()
	for _, n := range []int64{schema, seq} {
		_ = binary.Write(h, binary.BigEndian, n)
	}
	for _, b := range [][]byte{prev, environment, body} {
		_ = binary.Write(h, binary.BigEndian, int64(len(b)))
		h.Write(b)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// readTip finds the end of the chain: the last event, or the last checkpoint
// when all before it was pruned.
func readTip(ctx context.Context, db *sql.DB) (tip, error) {
	var t tip
	var hash []byte
	err := db.QueryRowContext(ctx, `
		SELECT seq, hash FROM (SELECT seq, hash FROM events UNION ALL SELECT seq, hash FROM checkpoints)
		ORDER BY seq DESC LIMIT 1`).Scan(&t.seq, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		return tip{}, nil
	}
	copy(t.hash[:], hash)
	return t, err
}

// Append adds events to the chain, all or none.
func (l *Ledger) Append(ctx context.Context, events ...kiln.Event) error {
	return l.Commit(ctx, kiln.Record{Events: events})
}

// appendEvents adds events within a transaction. Only who leads calls it.
func (l *Ledger) appendEvents(ctx context.Context, tx *sql.Tx, events []kiln.Event) error {
	if len(events) == 0 {
		return nil
	}
	insert, err := tx.PrepareContext(ctx, "INSERT INTO events (seq, schema, environment, body, prev, hash) VALUES (?, ?, ?, ?, ?, ?)")
	if err != nil {
		return err
	}
	defer func() { _ = insert.Close() }()
	for _, e := range events {
		e.Sequence = 0
		e.At = e.At.UTC()
		body, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("encode event %s: %w", e.Kind, err)
		}
		next := tip{seq: l.tip.seq + 1}
		next.hash = chain(eventSchema, next.seq, l.tip.hash[:], []byte(e.Environment), body)
		if _, err := insert.ExecContext(ctx, next.seq, eventSchema, e.Environment, body, l.tip.hash[:], next.hash[:]); err != nil {
			return err
		}
		l.tip = next
	}
	return nil
}

// Events returns events after a sequence, oldest first, of one environment or,
// with "", of all: the newest `last` of them, or with last 0 the first page of
// at most 1,000.
func (l *Ledger) Events(ctx context.Context, environment string, after int64, last int) ([]kiln.Event, error) {
	order, limit := "ASC", pageSize
	if last > 0 {
		order, limit = "DESC", last
	}
	query, args := "SELECT seq, body FROM events WHERE seq > ?", []any{after}
	if environment != "" {
		query, args = query+" AND environment = ?", append(args, environment)
	}
	rows, err := l.read.QueryContext(ctx, query+" ORDER BY seq "+order+" LIMIT ?", append(args, limit)...)
	if err != nil {
		return nil, explain("read events", err)
	}
	defer func() { _ = rows.Close() }()
	out := []kiln.Event{}
	for rows.Next() {
		var seq int64
		var body []byte
		if err := rows.Scan(&seq, &body); err != nil {
			return nil, explain("read events", err)
		}
		var e kiln.Event
		if err := json.Unmarshal(body, &e); err != nil {
			return nil, damaged(fmt.Sprintf("event %d", seq), err)
		}
		e.Sequence = seq
		out = append(out, e)
	}
	if last > 0 {
		slices.Reverse(out)
	}
	return out, explain("read events", rows.Err())
}

// damaged is the error for a record that cannot be what was written.
func damaged(record string, err error) error {
	return kiln.Errorf(kiln.CodeInternal, "restore the ledger from a backup", "%s of the ledger is damaged: %w", record, err)
}

// Watch signals that events were added since the last signal, until ctx ends;
// then the channel is closed.
func (l *Ledger) Watch(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{}, 1)
	l.mu.Lock()
	l.watchers[ch] = true
	l.mu.Unlock()
	context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.watchers, ch)
		close(ch)
	})
	return ch
}

// notify signals all watchers. l.mu is held.
func (l *Ledger) notify() {
	for ch := range l.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
