package ledger

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/kilnproject/kiln"
)

// Report is what a verification found.
type Report struct {
	Events   int      `json:"events"`
	Releases int      `json:"releases"`
	Faults   []Fault  `json:"faults,omitempty"` // the first 100
	Notes    []string `json:"notes,omitempty"`
}

// Fault is a record that is not what was written.
type Fault struct {
	Record  string `json:"record"` // "event 42", "release 3 of production"
	Problem string `json:"problem"`
}

const maxFaults = 100

// Verify walks the chain of events from its first or the last checkpoint,
// recomputes every hash, and checks the releases against their digests.
func (l *Ledger) Verify(ctx context.Context) (Report, error) {
	var r Report
	for _, walk := range []func(context.Context, *Report) error{l.verifyChain, l.verifyReleases, l.verifyFile} {
		if err := walk(ctx, &r); err != nil {
			if ctx.Err() != nil {
				return r, ctx.Err()
			}
			r.fault("database", "%v", err)
		}
	}
	return r, nil
}

func (r *Report) fault(record, format string, args ...any) {
	if len(r.Faults) < maxFaults {
		r.Faults = append(r.Faults, Fault{Record: record, Problem: fmt.Sprintf(format, args...)})
	}
}

func (l *Ledger) verifyChain(ctx context.Context, r *Report) error {
	var at int64
	prev := make([]byte, len(tip{}.hash))
	err := l.read.QueryRowContext(ctx, "SELECT seq, hash FROM checkpoints ORDER BY seq DESC LIMIT 1").Scan(&at, &prev)
	switch {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return err
	default:
		r.Notes = append(r.Notes, fmt.Sprintf("events up to %d were pruned; the chain is checked from there", at))
	}
	rows, err := l.read.QueryContext(ctx, "SELECT seq, schema, environment, body, prev, hash FROM events WHERE seq > ? ORDER BY seq", at)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var seq, schema int64
		var environment, body, before, hash []byte
		if err := rows.Scan(&seq, &schema, &environment, &body, &before, &hash); err != nil {
			return err
		}
		record := fmt.Sprintf("event %d", seq)
		sum := chain(schema, seq, before, environment, body)
		switch {
		case seq != at+1:
			r.fault(record, "events %d to %d before it are missing", at+1, seq-1)
		case !bytes.Equal(before, prev):
			r.fault(record, "it does not follow the event before it")
		case !bytes.Equal(sum[:], hash):
			r.fault(record, "its content is not what was written")
		}
		at, prev = seq, hash
		r.Events++
	}
	return rows.Err()
}

func (l *Ledger) verifyReleases(ctx context.Context, r *Report) error {
	rows, err := l.read.QueryContext(ctx, "SELECT environment, number, body, digest FROM releases ORDER BY environment, number")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var environment, digest string
		var number int
		var body []byte
		if err := rows.Scan(&environment, &number, &body, &digest); err != nil {
			return err
		}
		if kiln.DigestOf(body) != kiln.Digest(digest) {
			r.fault(fmt.Sprintf("release %d of %s", number, environment), "its content is not what was written")
		}
		r.Releases++
	}
	return rows.Err()
}

// verifyFile asks SQLite whether the file's own structure holds.
func (l *Ledger) verifyFile(ctx context.Context, r *Report) error {
	rows, err := l.read.QueryContext(ctx, "PRAGMA quick_check(10)")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return err
		}
		if line != "ok" {
			r.fault("database", "%s", line)
		}
	}
	return rows.Err()
}

// Prune removes all but the newest events, behind a checkpoint from which the
// chain can still be checked, and the dead that were born before the newest
// instances.
func (l *Ledger) Prune(ctx context.Context, events, instances int64) error {
	return l.update(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM instances WHERE dead = 1 AND born < (SELECT born FROM instances ORDER BY born DESC LIMIT 1 OFFSET ?)", max(0, instances-1))
		if err != nil {
			return err
		}
		last := l.tip.seq - events
		_, err = tx.ExecContext(ctx, `
			INSERT INTO checkpoints (seq, at, hash)
			SELECT seq, strftime('%Y-%m-%dT%H:%M:%SZ'), hash FROM events WHERE seq = ?
			ON CONFLICT (seq) DO NOTHING`, last)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM events WHERE seq <= ? AND EXISTS (SELECT 1 FROM checkpoints WHERE checkpoints.seq = ?)", last, last)
		return err
	})
}
