package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/kilnproject/kiln"
)

const (
	// pruneSlice is how many entries one transaction removes.
	pruneSlice = 1000
	// vacuumSlice is how many free pages one transaction gives back, once
	// there are more than vacuumSlack.
	vacuumSlice = 500
	vacuumSlack = 2500
)

// kept bounds by number what is kept of dead instances, of rollouts that ended,
// and of the releases of one environment.
type kept struct{ dead, ended, releases int }

// Prune removes all but the newest entries of the chain, behind a checkpoint
// from which it can still be checked, with the instances and rollouts that
// ended before it, releases that run nothing and are not among the newest 200,
// or the newest 200 that are condemned, of their environment, and environments
// without any event that run nothing. Each transaction is short.
func (l *Ledger) Prune(ctx context.Context, keep int64) error {
	point, err := l.movePoint(ctx, keep)
	if err != nil {
		return err
	}
	for _, remove := range []func(context.Context, int64) error{
		l.pruneEnded, l.pruneReleases, l.pruneAccepted, l.pruneEntries, l.giveBack,
	} {
		if err := remove(ctx, point); err != nil {
			return err
		}
	}
	return nil
}

// movePoint sets the checkpoint behind which the newest entries stay, and
// returns where it is then; 0 for none.
func (l *Ledger) movePoint(ctx context.Context, keep int64) (int64, error) {
	var point, wanted int64
	err := l.update(ctx, func(ctx context.Context, w *writing) error {
		have, err := w.checkpoint(ctx)
		if have != nil {
			point = have.values[0].(int64)
		}
		wanted = l.tip.seq - keep
		return err
	})
	if err != nil || wanted <= point {
		return point, err
	}
	for _, t := range l.tables.list() {
		if err := l.anchorAgain(ctx, t, wanted); err != nil {
			return 0, err
		}
	}
	return wanted, l.update(ctx, func(ctx context.Context, w *writing) error { return w.setCheckpoint(ctx, wanted) })
}

// checkpoint is the row of the checkpoint; nil for none.
func (w *writing) checkpoint(ctx context.Context) (*row, error) {
	found, err := readRows(ctx, w.tx, w.l.tables.checkpoints, "ORDER BY seq DESC LIMIT 1")
	if err != nil || len(found) == 0 {
		return nil, err
	}
	if !found[0].intact() {
		w.l.found(found[0].fault())
		return nil, damaged(found[0].String())
	}
	return &found[0], nil
}

// setCheckpoint replaces the checkpoint.
func (w *writing) setCheckpoint(ctx context.Context, seq int64) error {
	var hash []byte
	if err := w.tx.QueryRowContext(ctx, "SELECT hash FROM events WHERE seq = ?", seq).Scan(&hash); err != nil {
		return fmt.Errorf("read event %d: %w", seq, err)
	}
	have, err := w.checkpoint(ctx)
	if err != nil {
		return err
	}
	if have != nil {
		if _, err := w.tx.ExecContext(ctx, "DELETE FROM checkpoints WHERE seq = ?", have.values[0]); err != nil {
			return err
		}
		w.gone(have.table, have.key())
	}
	return w.put(ctx, w.l.tables.checkpoints, seq, stamp(time.Now()), hash)
}

// anchorAgain gives the rows that stay, and whose place in the chain goes, a
// new one.
func (l *Ledger) anchorAgain(ctx context.Context, t *table, point int64) error {
	if t == l.tables.checkpoints {
		return nil // it is replaced
	}
	for last := int64(0); ; {
		batch, end, err := readBatch(ctx, l.files().read, t, last, math.MaxInt64)
		if err != nil || len(batch) == 0 {
			return l.noticed("prune the ledger", err)
		}
		last = end
		batch = keysOf(batch, func(r row) bool { return r.anchor <= point && !r.final() })
		if len(batch) == 0 {
			continue
		}
		err = l.update(ctx, func(ctx context.Context, w *writing) error { return w.anchorAgain(ctx, batch, point) })
		if err != nil {
			return err
		}
	}
}

// anchorAgain writes the rows with those keys once more, unless they were
// changed meanwhile.
func (w *writing) anchorAgain(ctx context.Context, keys []row, point int64) error {
	for _, stale := range keys {
		r, found, err := w.get(ctx, stale.table, stale.values...)
		if err != nil {
			return err
		}
		if !found || r.anchor > point || r.final() {
			continue
		}
		if err := w.put(ctx, r.table, r.values...); err != nil {
			return err
		}
	}
	return nil
}

// keysOf keeps the keys of the rows that are chosen.
func keysOf(rows []row, chosen func(row) bool) []row {
	out := rows[:0]
	for _, r := range rows {
		if chosen(r) {
			r.values = r.values[:r.table.keys]
			out = append(out, r)
		}
	}
	return out
}

// pruneEnded removes dead instances and rollouts that ended before the
// checkpoint, and those beyond their number.
func (l *Ledger) pruneEnded(ctx context.Context, point int64) error {
	for _, one := range []struct {
		t    *table
		kept int
	}{{l.tables.instances, l.opts.kept.dead}, {l.tables.rollouts, l.opts.kept.ended}} {
		column := one.t.columns[2]
		ended := fmt.Sprintf("FROM %s WHERE %s = 1", one.t.name, column)
		var beyond int64 // all that ended up to this entry are too many
		err := l.files().read.QueryRowContext(ctx, "SELECT anchor "+ended+" ORDER BY anchor DESC LIMIT 1 OFFSET ?", one.kept).Scan(&beyond)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return l.noticed("prune the ledger", err)
		}
		query := fmt.Sprintf("DELETE FROM %s WHERE rowid IN (SELECT rowid %s AND anchor <= ? LIMIT ?)", one.t.name, ended)
		if err := l.removeSlices(ctx, query, max(point, beyond), pruneSlice); err != nil {
			return err
		}
	}
	return nil
}

// removeSlices repeats a statement, each time in a transaction of its own,
// until it changes nothing.
func (l *Ledger) removeSlices(ctx context.Context, query string, args ...any) error {
	for {
		var n int64
		err := l.update(ctx, func(ctx context.Context, w *writing) error {
			result, err := w.tx.ExecContext(ctx, query, args...)
			if err != nil {
				return err
			}
			n, err = result.RowsAffected()
			return err
		})
		if err != nil || n == 0 {
			return err
		}
	}
}

// pruneReleases removes releases that run nothing: those beyond the number of
// their environment, and all of an environment of which history tells no more.
func (l *Ledger) pruneReleases(ctx context.Context, point int64) error {
	names, err := l.Environments(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		old, err := l.oldReleases(ctx, name, point)
		if err != nil {
			return l.noticed("prune releases", err)
		}
		for len(old) > 0 {
			n := min(len(old), batchSize)
			if err := l.update(ctx, func(ctx context.Context, w *writing) error { return w.dropReleases(ctx, name, old[:n]) }); err != nil {
				return err
			}
			old = old[n:]
		}
	}
	return nil
}

// oldReleases are the numbers of those of an environment that may go.
func (l *Ledger) oldReleases(ctx context.Context, name string, point int64) (old []int64, err error) {
	var tells bool
	err = l.files().read.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM events WHERE environment = ? AND seq > ?)", name, point).Scan(&tells)
	if err != nil {
		return nil, err
	}
	rows, err := l.files().read.QueryContext(ctx, "SELECT number, state FROM releases WHERE environment = ? ORDER BY number DESC", name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	runs, condemned := false, 0
	for n := 0; rows.Next(); n++ {
		var number int64
		var state string
		if err := rows.Scan(&number, &state); err != nil {
			return nil, err
		}
		switch kiln.ReleaseState(state) {
		case kiln.ReleaseCondemned: // it stays so as long as it is known
			if condemned++; condemned > l.opts.kept.releases || !tells {
				old = append(old, number)
			}
		case kiln.ReleaseRetired, kiln.ReleaseFailed:
			if n >= l.opts.kept.releases || !tells {
				old = append(old, number)
			}
		case kiln.ReleasePending, kiln.ReleaseLive, kiln.ReleaseParked:
			runs = true
		}
	}
	if runs && !tells {
		old = nil // it has been quiet for long, and is not over
	}
	return old, rows.Err()
}

// dropReleases removes releases that still run nothing.
func (w *writing) dropReleases(ctx context.Context, name string, numbers []int64) error {
	t := w.l.tables.releases
	for _, number := range numbers {
		r, found, err := w.get(ctx, t, name, number)
		if err != nil || !found {
			return err
		}
		switch kiln.ReleaseState(r.values[2].(string)) {
		case kiln.ReleasePending, kiln.ReleaseLive, kiln.ReleaseParked:
			continue
		case kiln.ReleaseRetired, kiln.ReleaseCondemned, kiln.ReleaseFailed:
		}
		for _, one := range []*table{t, t.twin} {
			if _, err := w.tx.ExecContext(ctx, "DELETE FROM "+one.name+" WHERE environment = ? AND number = ?", name, number); err != nil { //nolint:gosec // a name of ours
				return err
			}
		}
		w.gone(t, r.key())
	}
	return nil
}

// pruneAccepted forgets acceptances of entries that are gone.
func (l *Ledger) pruneAccepted(ctx context.Context, point int64) error {
	return l.update(ctx, func(ctx context.Context, w *writing) error {
		rows, err := readRows(ctx, w.tx, l.tables.accepted, "")
		if err != nil {
			return err
		}
		for _, r := range rows {
			record, _ := r.values[0].(string)
			var from, to int64
			if n, _ := fmt.Sscanf(record, "events %d to %d", &from, &to); n < 2 {
				if n, _ := fmt.Sscanf(record, "event %d", &to); n < 1 {
					continue
				}
			}
			if to > point {
				continue
			}
			if _, err := w.tx.ExecContext(ctx, "DELETE FROM accepted WHERE record = ?", record); err != nil {
				return err
			}
			w.gone(r.table, r.key())
		}
		return nil
	})
}

// pruneEntries removes what is before the checkpoint.
func (l *Ledger) pruneEntries(ctx context.Context, point int64) error {
	return l.removeSlices(ctx, "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE seq <= ? ORDER BY seq LIMIT ?)", point, pruneSlice)
}

// giveBack shortens the file by pages that nothing is on. A file that an older
// version made stays as long as it is, and uses them again.
func (l *Ledger) giveBack(ctx context.Context, _ int64) error {
	for {
		var free, mode int
		err := errors.Join(
			l.files().read.QueryRowContext(ctx, "PRAGMA freelist_count").Scan(&free),
			l.files().read.QueryRowContext(ctx, "PRAGMA auto_vacuum").Scan(&mode))
		if err != nil || free < vacuumSlack || mode != 2 {
			return l.noticed("shorten the ledger", err)
		}
		err = l.update(ctx, func(ctx context.Context, w *writing) error {
			rows, err := w.tx.QueryContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumSlice))
			if err != nil {
				return err
			}
			return drain(rows)
		})
		if err != nil {
			return err
		}
	}
}

// drain steps a statement to its end.
func drain(rows *sql.Rows) error {
	for rows.Next() {
	}
	return errors.Join(rows.Err(), rows.Close())
}
