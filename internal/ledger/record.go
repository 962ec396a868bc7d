package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kilnproject/kiln"
)

// Commit takes a record in one transaction: all of it or nothing. A mark of an
// unknown release is an error; a dead instance stays as it died.
func (l *Ledger) Commit(ctx context.Context, r kiln.Record) error {
	return l.update(ctx, func(ctx context.Context, w *writing) error {
		if r.Rollout != nil {
			if err := w.saveRollout(ctx, *r.Rollout); err != nil {
				return err
			}
		}
		for _, m := range r.Marks {
			if err := w.mark(ctx, m); err != nil {
				return err
			}
		}
		for _, i := range r.Instances {
			if err := w.saveInstance(ctx, i); err != nil {
				return err
			}
		}
		for _, name := range slices.Sorted(maps.Keys(r.Settings)) {
			if err := w.set(ctx, name, r.Settings[name]); err != nil {
				return err
			}
		}
		w.events = r.Events
		return nil
	})
}

func (w *writing) set(ctx context.Context, name string, value []byte) error {
	if _, _, err := w.get(ctx, w.l.tables.settings, name); err != nil {
		return err
	}
	return w.put(ctx, w.l.tables.settings, name, blob(value))
}

func (w *writing) saveRollout(ctx context.Context, r kiln.Rollout) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode rollout %s: %w", r.ID, err)
	}
	if _, _, err := w.get(ctx, w.l.tables.rollouts, r.ID); err != nil {
		return err
	}
	return w.put(ctx, w.l.tables.rollouts, r.ID, r.Environment, truth(!r.EndedAt.IsZero()), body)
}

func (w *writing) saveInstance(ctx context.Context, i kiln.Instance) error {
	before, found, err := w.get(ctx, w.l.tables.instances, i.ID)
	if err != nil || found && before.final() {
		return err
	}
	body, err := json.Marshal(bounded(i))
	if err != nil {
		return fmt.Errorf("encode instance %s: %w", i.ID, err)
	}
	return w.put(ctx, w.l.tables.instances, i.ID, i.Environment, truth(i.State == kiln.InstanceDead), stamp(i.CreatedAt), body)
}

// bounded cuts what an instance carries of what strangers wrote.
func bounded(i kiln.Instance) kiln.Instance {
	i.Note = clip(i.Note, longestText)
	i.Reason = clip(i.Reason, longestText)
	if i.Cause != nil {
		cause := *i.Cause
		cause.Detail, cause.Hint = clip(cause.Detail, longestText), clip(cause.Hint, longestText)
		cause.LastLog = make([]string, 0, len(i.Cause.LastLog))
		for _, line := range i.Cause.LastLog {
			cause.LastLog = append(cause.LastLog, clip(line, longestValue))
		}
		i.Cause = &cause
	}
	return i
}

// truth is how a table has a yes or no.
func truth(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Unfinished lists the rollouts that have not ended, oldest first, but for
// damaged ones.
func (l *Ledger) Unfinished(ctx context.Context) ([]kiln.Rollout, error) {
	return readable[kiln.Rollout](ctx, l, l.tables.rollouts, "WHERE ended = 0 ORDER BY id")
}

// Rollout returns one rollout; kiln.ErrNotFound for an unknown one.
func (l *Ledger) Rollout(ctx context.Context, id string) (kiln.Rollout, error) {
	return one[kiln.Rollout](ctx, l, l.tables.rollouts, id)
}

// Instance returns one instance that ever was; kiln.ErrNotFound for another,
// and for one that died so long ago that it was pruned.
func (l *Ledger) Instance(ctx context.Context, id string) (kiln.Instance, error) {
	return one[kiln.Instance](ctx, l, l.tables.instances, id)
}

// Alive lists the instances that are not known to be dead, by ID, but for
// damaged records.
func (l *Ledger) Alive(ctx context.Context) ([]kiln.Instance, error) {
	return readable[kiln.Instance](ctx, l, l.tables.instances, "WHERE dead = 0 ORDER BY id")
}

// Setting returns a setting's value; kiln.ErrNotFound when it was never set.
func (l *Ledger) Setting(ctx context.Context, name string) ([]byte, error) {
	r, err := l.row(ctx, l.tables.settings, name)
	if err != nil {
		return nil, err
	}
	return r.values[1].([]byte), nil
}

// SetSetting sets a setting's value, with an event that says so where it has a
// kind.
func (l *Ledger) SetSetting(ctx context.Context, name string, value []byte, e kiln.Event) error {
	return l.update(ctx, func(ctx context.Context, w *writing) error {
		if e.Kind != "" {
			w.events = []kiln.Event{e}
		}
		return w.set(ctx, name, value)
	})
}

// row reads the row of a name or ID; a damaged one is an error.
func (l *Ledger) row(ctx context.Context, t *table, id string) (row, error) {
	found, err := l.rows(ctx, t, "WHERE "+t.columns[0]+" = ?", id)
	switch {
	case err != nil:
		return row{}, l.noticed("read the ledger", err)
	case len(found) == 0:
		return row{}, kiln.Errorf(kiln.CodeNotFound, "", "there is no %s", t.record(id))
	case !found[0].intact():
		l.found(found[0].fault())
		return row{}, damaged(found[0].String())
	}
	return found[0], nil
}

// one decodes the row of an ID.
func one[T any](ctx context.Context, l *Ledger, t *table, id string) (T, error) {
	var out T
	r, err := l.row(ctx, t, id)
	if err != nil {
		return out, err
	}
	return out, decodeBody(r, &out)
}

// readable decodes the rows of a query. Damaged ones are noted and left out.
func readable[T any](ctx context.Context, l *Ledger, t *table, where string) ([]T, error) {
	rows, err := l.rows(ctx, t, where)
	if err != nil {
		return nil, l.noticed("read the ledger", err)
	}
	out := make([]T, 0, len(rows))
	for _, r := range rows {
		var one T
		if !r.intact() || decodeBody(r, &one) != nil {
			l.found(r.fault())
			continue
		}
		out = append(out, one)
	}
	return out, nil
}

// decodeBody decodes the last column of an intact row.
func decodeBody(r row, into any) error {
	if err := json.Unmarshal(r.values[len(r.values)-1].([]byte), into); err != nil {
		return damaged(r.String())
	}
	return nil
}

// rows reads rows as they are.
func (l *Ledger) rows(ctx context.Context, t *table, where string, args ...any) ([]row, error) {
	return readRows(ctx, l.files().read, t, where, args...)
}

// stamp writes a time so that it sorts; the zero time is empty.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000000000Z")
}

// unstamp reads what stamp wrote.
func unstamp(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	return time.Parse(time.RFC3339Nano, s)
}
