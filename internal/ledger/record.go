package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
)

// Commit takes a record in one transaction: all of it or nothing. A mark of an
// unknown release is an error; a dead instance stays as it died.
func (l *Ledger) Commit(ctx context.Context, r kiln.Record) error {
	return l.update(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if r.Rollout != nil {
			if err := saveRollout(ctx, tx, *r.Rollout); err != nil {
				return err
			}
		}
		for _, m := range r.Marks {
			if err := mark(ctx, tx, m); err != nil {
				return err
			}
		}
		if err := saveInstances(ctx, tx, r.Instances); err != nil {
			return err
		}
		return l.appendEvents(ctx, tx, r.Events)
	})
}

func saveRollout(ctx context.Context, tx *sql.Tx, r kiln.Rollout) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode rollout %s: %w", r.ID, err)
	}
	_, err = tx.ExecContext(ctx, `
		INSERT INTO rollouts (id, environment, ended, body) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET ended = excluded.ended, body = excluded.body`,
		r.ID, r.Environment, !r.EndedAt.IsZero(), body)
	return err
}

func mark(ctx context.Context, tx *sql.Tx, m kiln.ReleaseMark) error {
	result, err := tx.ExecContext(ctx, "UPDATE releases SET state = ?, parked_until = ?, live_at = coalesce(nullif(?, ''), live_at) WHERE environment = ? AND number = ?",
		m.State, stamp(m.ParkedUntil), stamp(m.LiveAt), m.Environment, m.Number)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 1 {
		return err
	}
	return noRelease(m.Environment, m.Number)
}

func noRelease(environment string, number int) error {
	return kiln.Errorf(kiln.CodeNotFound, "kiln releases "+environment+" lists them", "environment %s has no release %d", environment, number)
}

func saveInstances(ctx context.Context, tx *sql.Tx, instances []kiln.Instance) error {
	if len(instances) == 0 {
		return nil
	}
	save, err := tx.PrepareContext(ctx, `
		INSERT INTO instances (id, environment, dead, born, body) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET dead = excluded.dead, body = excluded.body WHERE instances.dead = 0`)
	if err != nil {
		return err
	}
	defer func() { _ = save.Close() }()
	for _, i := range instances {
		body, err := json.Marshal(i)
		if err != nil {
			return fmt.Errorf("encode instance %s: %w", i.ID, err)
		}
		if _, err := save.ExecContext(ctx, i.ID, i.Environment, i.State == kiln.InstanceDead, stamp(i.CreatedAt), body); err != nil {
			return err
		}
	}
	return nil
}

// Unfinished lists the rollouts that have not ended, oldest first.
func (l *Ledger) Unfinished(ctx context.Context) ([]kiln.Rollout, error) {
	return list[kiln.Rollout](ctx, l.read, "rollout", "SELECT id, body FROM rollouts WHERE ended = 0 ORDER BY id")
}

// Rollout returns one rollout; kiln.ErrNotFound for an unknown one.
func (l *Ledger) Rollout(ctx context.Context, id string) (kiln.Rollout, error) {
	return one[kiln.Rollout](ctx, l.read, "rollout", id, "SELECT id, body FROM rollouts WHERE id = ?")
}

// Instance returns one instance that ever was; kiln.ErrNotFound for another.
func (l *Ledger) Instance(ctx context.Context, id string) (kiln.Instance, error) {
	return one[kiln.Instance](ctx, l.read, "instance", id, "SELECT id, body FROM instances WHERE id = ?")
}

// one reads the row of an id.
func one[T any](ctx context.Context, db *sql.DB, noun, id, query string) (T, error) {
	found, err := list[T](ctx, db, noun, query, id)
	if err == nil && len(found) == 0 {
		err = kiln.Errorf(kiln.CodeNotFound, "", "there is no %s %s", noun, id)
	}
	if err != nil {
		var none T
		return none, err
	}
	return found[0], nil
}

// Alive lists the instances that are not known to be dead, by ID.
func (l *Ledger) Alive(ctx context.Context) ([]kiln.Instance, error) {
	return list[kiln.Instance](ctx, l.read, "instance", "SELECT id, body FROM instances WHERE dead = 0 ORDER BY id")
}

// Instances lists the newest instances of an environment that ever were, the
// newest first, at most limit.
func (l *Ledger) Instances(ctx context.Context, environment string, limit int) ([]kiln.Instance, error) {
	return list[kiln.Instance](ctx, l.read, "instance",
		"SELECT id, body FROM instances WHERE environment = ? ORDER BY born DESC LIMIT ?", environment, limit)
}

// list reads rows of an id and a JSON body.
func list[T any](ctx context.Context, db *sql.DB, noun, query string, args ...any) ([]T, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, explain("read the ledger", err)
	}
	defer func() { _ = rows.Close() }()
	var out []T
	for rows.Next() {
		var id string
		var body []byte
		if err := rows.Scan(&id, &body); err != nil {
			return nil, explain("read the ledger", err)
		}
		var one T
		if err := json.Unmarshal(body, &one); err != nil {
			return nil, damaged(noun+" "+id, err)
		}
		out = append(out, one)
	}
	return out, explain("read the ledger", rows.Err())
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
