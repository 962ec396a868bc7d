package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kilnproject/kiln"
)

// The schemas of an entry say how its body and hash are made. They are part of
// the hash, so that older entries stay as they are.
const (
	schemaWithPrev = 1
	schemaWithRows = 2
)

const insertEntry = "INSERT INTO events (seq, schema, environment, body, prev, hash, rows) VALUES (?, ?, ?, ?, x'', ?, ?)"

const (
	// pageSize is how many events one call returns at most when no number is
	// asked for.
	pageSize = 1000
	// longestText and longestValue bound, in bytes, what an event or an
	// instance carries of what strangers wrote.
	longestText  = 4 << 10
	longestValue = 1 << 10
)

// tip is the last entry of the chain.
type tip struct {
	seq  int64
	hash [sha256.Size]byte
}

func (t tip) String() string { return fmt.Sprintf("%d:%x", t.seq, t.hash) }

// entry is a row of the chain.
type entry struct {
	seq, schema                         int64
	environment, body, prev, hash, rows []byte
}

// sum is the hash of an entry after another one: of its schema, its number,
// the hash before it, and its stored bytes with their lengths.
func (e entry) sum(prev []byte) [sha256.Size]byte {
	var b bytes.Buffer
	parts := [][]byte{prev, e.environment, e.body}
	if e.schema != schemaWithPrev {
		parts = append(parts, e.rows)
	}
	var word [8]byte
	number := func(n int64) {
		binary.BigEndian.PutUint64(word[:], uint64(n))
		b.Write(word[:])
	}
	number(e.schema)
	number(e.seq)
	for _, p := range parts {
		number(int64(len(p)))
		b.Write(p)
	}
	return sha256.Sum256(b.Bytes())
}

// readTip finds the end of the chain: the last entry, or the checkpoint when
// all before it was pruned.
func readTip(ctx context.Context, db *sql.DB) (tip, error) {
	var t tip
	var hash []byte
	err := db.QueryRowContext(ctx, `
		SELECT seq, hash FROM (SELECT * FROM (SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1) UNION ALL SELECT seq, hash FROM checkpoints)
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

// append makes entries of the events and of the rows that were put. Rows
// without an event get an entry without one.
func (w *writing) append(ctx context.Context) error {
	entries := make([]entry, 0, len(w.events)+1)
	for _, e := range w.events {
		body, err := encode(e)
		if err != nil {
			return err
		}
		entries = append(entries, entry{environment: []byte(e.Environment), body: body})
	}
	if len(entries) == 0 {
		if len(w.rows) == 0 {
			return nil
		}
		entries = append(entries, entry{})
	}
	entries[0].rows = w.rows
	w.rows, w.events = nil, nil
	insert, err := w.statement(ctx, insertEntry) //nolint:sqlclosecheck // it is closed with the transaction
	if err != nil {
		return err
	}
	for _, e := range entries {
		e.schema, e.seq = schemaWithRows, w.l.tip.seq+1
		hash := e.sum(w.l.tip.hash[:])
		if _, err := insert.ExecContext(ctx, e.seq, e.schema, string(e.environment), blob(e.body), hash[:], blob(e.rows)); err != nil {
			return err
		}
		w.l.tip = tip{e.seq, hash}
	}
	return nil
}

// blob is b as a value that is never NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// encode is an event's body. Its environment is a column of its own.
func encode(e kiln.Event) ([]byte, error) {
	e.Sequence, e.Environment, e.At = 0, "", e.At.UTC()
	e.Message = clip(e.Message, longestText)
	e.Subject = clip(e.Subject, longestValue)
	e.Data = clipped(e.Data)
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", e.Kind, err)
	}
	return body, nil
}

// clipped bounds each value.
func clipped(data map[string]string) map[string]string {
	long := func(s string) bool { return len(s) > longestValue }
	for _, v := range data {
		if !long(v) {
			continue
		}
		out := make(map[string]string, len(data))
		for name, v := range data {
			out[name] = clip(v, longestValue)
		}
		return out
	}
	return data
}

// clip cuts a text to so many bytes, between two characters, and marks that.
func clip(s string, most int) string {
	const mark = "..."
	if len(s) <= most {
		return s
	}
	cut := most - len(mark)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strings.Clone(s[:cut]) + mark
}

// Events returns events after a sequence, oldest first, of one environment or,
// with "", of all: the newest `last` of them, or with last 0 the first page of
// at most 1,000.
func (l *Ledger) Events(ctx context.Context, environment string, after int64, last int) ([]kiln.Event, error) {
	order, limit := "ASC", pageSize
	if last > 0 {
		order, limit = "DESC", last
	}
	where, args := told(environment)
	rows, err := l.files().read.QueryContext(ctx,
		"SELECT seq, environment, body FROM events WHERE "+where+" AND seq > ? ORDER BY seq "+order+" LIMIT ?", append(args, after, limit)...) //nolint:gosec // all parts are constants
	if err != nil {
		return nil, l.noticed("read events", err)
	}
	defer func() { _ = rows.Close() }()
	out := []kiln.Event{}
	for rows.Next() {
		var seq int64
		var environment string
		var body []byte
		if err := rows.Scan(&seq, &environment, &body); err != nil {
			return nil, l.noticed("read events", err)
		}
		out = append(out, l.decode(seq, environment, body))
	}
	if last > 0 {
		slices.Reverse(out)
	}
	return out, l.noticed("read events", rows.Err())
}

// told is the condition for entries with an event, of one environment or all.
func told(environment string) (string, []any) {
	if environment == "" {
		return "length(body) > 0", nil
	}
	return "length(body) > 0 AND environment = ?", []any{environment}
}

// decode is an entry's event; where it cannot be read, an event that says so.
func (l *Ledger) decode(seq int64, environment string, body []byte) kiln.Event {
	var e kiln.Event
	if err := json.Unmarshal(body, &e); err != nil {
		record := fmt.Sprintf("event %d", seq)
		l.found(kiln.LedgerFault{Record: record, Problem: "its content is not what was written"})
		e = kiln.Event{Kind: "ledger.damaged", Subject: record, Message: "the record of " + record + " is damaged"}
	}
	e.Sequence, e.Environment = seq, environment
	return e
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
