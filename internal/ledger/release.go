package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kilnproject/kiln"
)

// CreateRelease stores a release under the next number of its environment, and
// the event that says so, and returns it with that number. Numbers begin at 1
// and have no gaps.
func (l *Ledger) CreateRelease(ctx context.Context, r kiln.Release) (kiln.Release, error) {
	err := l.update(ctx, func(ctx context.Context, tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, `
			INSERT INTO environments (name, next_number) VALUES (?, 2)
			ON CONFLICT (name) DO UPDATE SET next_number = next_number + 1
			RETURNING next_number - 1`, r.Environment).Scan(&r.Number)
		if err != nil {
			return err
		}
		body, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("encode release: %w", err)
		}
		digest := kiln.DigestOf(body)
		_, err = tx.ExecContext(ctx, "INSERT INTO releases (environment, number, state, body, digest) VALUES (?, ?, ?, ?, ?)",
			r.Environment, r.Number, r.State, body, digest)
		if err != nil {
			return err
		}
		data := map[string]string{"release": string(digest), "bundle": string(r.Bundle), "identity": string(r.Identity())}
		if r.Source.Commit != "" {
			data["commit"] = r.Source.Commit
		}
		if r.Source.Dirty {
			data["dirty"] = "true"
		}
		return l.appendEvents(ctx, tx, []kiln.Event{{
			At: r.CreatedAt, Environment: r.Environment, Kind: "release.created", Subject: fmt.Sprintf("release %d", r.Number),
			Message: fmt.Sprintf("release %d was made", r.Number), Actor: r.Actor, Data: data,
		}})
	})
	return r, err
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
func (l *Ledger) Releases(ctx context.Context, environment string) ([]kiln.Release, error) {
	return l.releases(ctx, "WHERE environment = ? ORDER BY number", environment)
}

func (l *Ledger) releases(ctx context.Context, where string, args ...any) ([]kiln.Release, error) {
	rows, err := l.read.QueryContext(ctx, "SELECT number, state, parked_until, live_at, body FROM releases "+where, args...) //nolint:gosec // where is a constant
	if err != nil {
		return nil, explain("read releases", err)
	}
	defer func() { _ = rows.Close() }()
	var out []kiln.Release
	for rows.Next() {
		var number int
		var state, until, live string
		var body []byte
		if err := rows.Scan(&number, &state, &until, &live, &body); err != nil {
			return nil, explain("read releases", err)
		}
		var r kiln.Release
		if err := json.Unmarshal(body, &r); err != nil {
			return nil, damaged(fmt.Sprintf("release %d", number), err)
		}
		r.State = kiln.ReleaseState(state)
		if r.ParkedUntil, err = unstamp(until); err != nil {
			return nil, damaged(fmt.Sprintf("release %d", number), err)
		}
		if r.LiveAt, err = unstamp(live); err != nil {
			return nil, damaged(fmt.Sprintf("release %d", number), err)
		}
		out = append(out, r)
	}
	return out, explain("read releases", rows.Err())
}

// Environments lists the names of all environments that ever had a release,
// sorted.
func (l *Ledger) Environments(ctx context.Context) ([]string, error) {
	rows, err := l.read.QueryContext(ctx, "SELECT name FROM environments ORDER BY name")
	if err != nil {
		return nil, explain("read environments", err)
	}
	defer func() { _ = rows.Close() }()
	var out []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, explain("read environments", err)
		}
		out = append(out, name)
	}
	return out, explain("read environments", rows.Err())
}

// Setting returns a setting's value; kiln.ErrNotFound when it was never set.
func (l *Ledger) Setting(ctx context.Context, name string) ([]byte, error) {
	var value []byte
	err := l.read.QueryRowContext(ctx, "SELECT value FROM settings WHERE name = ?", name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, kiln.Errorf(kiln.CodeNotFound, "", "there is no setting %s", name)
	}
	return value, explain("read setting "+name, err)
}

// SetSetting sets a setting's value.
func (l *Ledger) SetSetting(ctx context.Context, name string, value []byte) error {
	return l.update(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
		return err
	})
}
