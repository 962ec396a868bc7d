package ledger

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kilnproject/kiln"
)

// CreateRelease stores a release under the next number of its environment, and
// the event that says so, and returns it with that number. Numbers begin at 1
// and have no gaps.
func (l *Ledger) CreateRelease(ctx context.Context, r kiln.Release) (kiln.Release, error) {
	err := l.update(ctx, func(ctx context.Context, w *writing) error {
		var err error
		if r.Number, err = w.nextNumber(ctx, r.Environment); err != nil {
			return err
		}
		body, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("encode release: %w", err)
		}
		if err := w.put(ctx, l.tables.releases, r.Environment, int64(r.Number), string(r.State), "", "", body); err != nil {
			return err
		}
		data := map[string]string{"release": string(kiln.DigestOf(body)), "bundle": string(r.Bundle), "identity": string(r.Identity())}
		if r.Source.Commit != "" {
			data["commit"] = r.Source.Commit
		}
		if r.Source.Dirty {
			data["dirty"] = "true"
		}
		w.events = []kiln.Event{{
			At: r.CreatedAt, Environment: r.Environment, Kind: "release.created", Subject: fmt.Sprintf("release %d", r.Number),
			Message: fmt.Sprintf("release %d was made", r.Number), Actor: r.Actor, Data: data,
		}}
		return nil
	})
	return r, err
}

// nextNumber takes the next number of an environment.
func (w *writing) nextNumber(ctx context.Context, environment string) (int, error) {
	next := int64(1)
	have, found, err := w.get(ctx, w.l.tables.numbers, environment)
	if err != nil {
		return 0, err
	}
	if found {
		next = have.values[1].(int64)
	}
	return int(next), w.put(ctx, w.l.tables.numbers, environment, next+1)
}

// mark sets where a release stands.
func (w *writing) mark(ctx context.Context, m kiln.ReleaseMark) error {
	r, found, err := w.get(ctx, w.l.tables.releases, m.Environment, int64(m.Number))
	if err != nil {
		return err
	}
	if !found {
		return noRelease(m.Environment, m.Number)
	}
	r.values[2], r.values[3] = string(m.State), stamp(m.ParkedUntil)
	if !m.LiveAt.IsZero() {
		r.values[4] = stamp(m.LiveAt)
	}
	return w.put(ctx, w.l.tables.releases, r.values...)
}

func noRelease(environment string, number int) error {
	return kiln.Errorf(kiln.CodeNotFound, "kiln releases "+environment+" lists them", "environment %s has no release %d", environment, number)
}

// Release returns one release; kiln.ErrNotFound for an unknown one.
func (l *Ledger) Release(ctx context.Context, environment string, number int) (kiln.Release, error) {
	found, err := l.releases(ctx, "WHERE environment = ? AND number = ?", environment, number)
	if err == nil && len(found) == 0 {
		err = noRelease(environment, number)
	}
	if err != nil {
		return kiln.Release{}, err
	}
	return found[0], nil
}

// Releases lists an environment's releases by number; none for an unknown one.
// What is damaged is read from its copy.
func (l *Ledger) Releases(ctx context.Context, environment string) ([]kiln.Release, error) {
	return l.releases(ctx, "WHERE environment = ? ORDER BY number", environment)
}

func (l *Ledger) releases(ctx context.Context, where string, args ...any) ([]kiln.Release, error) {
	t := l.tables.releases
	rows, err := l.rows(ctx, t, where, args...)
	if err != nil && isDamage(err) {
		_ = l.noticed("read releases", err)
		rows, err = l.rows(ctx, t.twin, where, args...)
	}
	if err != nil {
		return nil, l.noticed("read releases", err)
	}
	out := make([]kiln.Release, 0, len(rows))
	for _, r := range rows {
		if !r.intact() {
			if r, err = l.copyOf(ctx, r); err != nil {
				return nil, err
			}
		}
		one, err := releaseOf(r)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

// copyOf is the twin of a damaged release's row.
func (l *Ledger) copyOf(ctx context.Context, r row) (row, error) {
	l.found(r.fault())
	twins, err := l.rows(ctx, r.table.twin, "WHERE environment = ? AND number = ?", r.values[0], r.values[1])
	if err != nil {
		return r, l.noticed("read a copy of "+r.String(), err)
	}
	if len(twins) == 0 || !twins[0].intact() {
		return r, damaged(r.String())
	}
	return twins[0], nil
}

// releaseOf decodes an intact row.
func releaseOf(row row) (kiln.Release, error) {
	var r kiln.Release
	if err := json.Unmarshal(row.values[5].([]byte), &r); err != nil {
		return r, damaged(row.String())
	}
	r.State = kiln.ReleaseState(row.values[2].(string))
	var err error
	if r.ParkedUntil, err = unstamp(row.values[3].(string)); err == nil {
		r.LiveAt, err = unstamp(row.values[4].(string))
	}
	if err != nil {
		return r, damaged(row.String())
	}
	return r, nil
}

// Environments lists the names of all environments that have a release,
// sorted.
func (l *Ledger) Environments(ctx context.Context) ([]string, error) {
	out, err := l.environments(ctx, l.tables.releases)
	if err != nil && isDamage(err) {
		_ = l.noticed("read environments", err)
		out, err = l.environments(ctx, l.tables.releases.twin)
	}
	return out, l.noticed("read environments", err)
}

func (l *Ledger) environments(ctx context.Context, t *table) ([]string, error) {
	rows, err := l.files().read.QueryContext(ctx, "SELECT DISTINCT environment FROM "+t.name+" ORDER BY environment") //nolint:gosec // a name of ours
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		out = append(out, name)
	}
	return out, rows.Err()
}
