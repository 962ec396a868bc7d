package ledger

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/kilnproject/kiln"
)

// migrations are the steps from an empty file to the present schema. A step
// that was released never changes; schema n is the result of the first n.
func migrations() []string {
	return []string{`
CREATE TABLE events (
	seq         INTEGER PRIMARY KEY,
	schema      INTEGER NOT NULL,
	environment TEXT    NOT NULL,
	body        BLOB    NOT NULL, -- JSON of the event without its sequence
	prev        BLOB    NOT NULL,
	hash        BLOB    NOT NULL
) STRICT;
CREATE INDEX events_by_environment ON events (environment, seq);

-- What lies before a checkpoint may be gone; the chain goes on from its hash.
CREATE TABLE checkpoints (
	seq  INTEGER PRIMARY KEY,
	at   TEXT NOT NULL,
	hash BLOB NOT NULL
) STRICT;

CREATE TABLE environments (
	name        TEXT PRIMARY KEY,
	next_number INTEGER NOT NULL
) STRICT;

CREATE TABLE releases (
	environment  TEXT    NOT NULL REFERENCES environments (name),
	number       INTEGER NOT NULL,
	state        TEXT    NOT NULL,
	parked_until TEXT    NOT NULL DEFAULT '',
	body         BLOB    NOT NULL, -- JSON of the release as it was made
	digest       TEXT    NOT NULL, -- of body
	PRIMARY KEY (environment, number)
) STRICT;

CREATE TABLE rollouts (
	id          TEXT PRIMARY KEY,
	environment TEXT    NOT NULL,
	ended       INTEGER NOT NULL,
	body        BLOB    NOT NULL
) STRICT;
CREATE INDEX rollouts_unfinished ON rollouts (id) WHERE ended = 0;

CREATE TABLE instances (
	id          TEXT PRIMARY KEY,
	environment TEXT    NOT NULL,
	dead        INTEGER NOT NULL,
	born        TEXT    NOT NULL,
	body        BLOB    NOT NULL
) STRICT;
CREATE INDEX instances_alive ON instances (id) WHERE dead = 0;
CREATE INDEX instances_by_birth ON instances (environment, born);

CREATE TABLE settings (
	name  TEXT PRIMARY KEY,
	value BLOB NOT NULL
) STRICT;
`, `
ALTER TABLE releases ADD COLUMN live_at TEXT NOT NULL DEFAULT '';
`}
}

// migrate brings the file to the schema of the last step.
func (l *Ledger) migrate(ctx context.Context, steps []string) error {
	var have int
	if err := l.write.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
		return err
	}
	switch {
	case have > len(steps):
		return kiln.Errorf(kiln.CodeRefused, "start the newer kilnd again, or restore a backup from before its installation",
			"the ledger %s has schema %d, and this kilnd knows schemas up to %d: a newer kilnd wrote it", l.path, have, len(steps))
	case have == len(steps):
		return nil
	case have > 0:
		if err := l.copyTo(ctx, fmt.Sprintf("%s.schema-%d", l.path, have)); err != nil {
			return err
		}
	}
	for n := have; n < len(steps); n++ {
		if err := l.step(ctx, steps[n], n+1); err != nil {
			return fmt.Errorf("migrate to schema %d: %w", n+1, err)
		}
	}
	return nil
}

// step takes one migration and its number in one transaction.
func (l *Ledger) step(ctx context.Context, script string, number int) (err error) {
	tx, err := l.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = settle(tx, err) }()
	if _, err = tx.ExecContext(ctx, script); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", number))
	return err
}

// settle commits a transaction, or rolls it back when there is an error.
func settle(tx *sql.Tx, err error) error {
	if err == nil {
		return tx.Commit()
	}
	if rollback := tx.Rollback(); rollback != nil {
		return fmt.Errorf("%w (and rolling back: %w)", err, rollback)
	}
	return err
}
