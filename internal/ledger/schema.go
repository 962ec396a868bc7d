package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/kilnproject/kiln"
)

// migration is one step from a schema to the next: SQL, and what SQL cannot
// do.
type migration struct {
	script string
	then   func(ctx context.Context, w *writing) error
}

// migrations are the steps from an empty file to the present schema. A step
// that was released never changes; schema n is the result of the first n.
func migrations() []migration {
	return []migration{{script: schema1}, {script: schema2}, {script: schema3, then: anchorAll}}
}

const schema1 = `
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
`

const schema2 = `
ALTER TABLE releases ADD COLUMN live_at TEXT NOT NULL DEFAULT '';
`

const schema3 = `
-- From event schema 2 on an entry holds the digests of the rows that changed
-- with it, its body has no environment, and its prev is empty: it is the hash
-- of the entry before it. An entry with an empty body tells of rows only.
ALTER TABLE events ADD COLUMN rows BLOB NOT NULL DEFAULT x'';

-- digest is of all other columns but anchor, the number of the entry of the
-- chain that holds the digest, too.
ALTER TABLE releases RENAME COLUMN digest TO body_digest;
ALTER TABLE releases     ADD COLUMN anchor INTEGER NOT NULL DEFAULT 0;
ALTER TABLE releases     ADD COLUMN digest BLOB    NOT NULL DEFAULT x'';
ALTER TABLE rollouts     ADD COLUMN anchor INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollouts     ADD COLUMN digest BLOB    NOT NULL DEFAULT x'';
ALTER TABLE instances    ADD COLUMN anchor INTEGER NOT NULL DEFAULT 0;
ALTER TABLE instances    ADD COLUMN digest BLOB    NOT NULL DEFAULT x'';
ALTER TABLE settings     ADD COLUMN anchor INTEGER NOT NULL DEFAULT 0;
ALTER TABLE settings     ADD COLUMN digest BLOB    NOT NULL DEFAULT x'';
ALTER TABLE environments ADD COLUMN anchor INTEGER NOT NULL DEFAULT 0;
ALTER TABLE environments ADD COLUMN digest BLOB    NOT NULL DEFAULT x'';
ALTER TABLE checkpoints  ADD COLUMN anchor INTEGER NOT NULL DEFAULT 0;
ALTER TABLE checkpoints  ADD COLUMN digest BLOB    NOT NULL DEFAULT x'';
DROP INDEX instances_by_birth;

-- The same rows once more, on other pages: what serves must be readable.
CREATE TABLE release_copies (
	environment  TEXT    NOT NULL,
	number       INTEGER NOT NULL,
	state        TEXT    NOT NULL,
	parked_until TEXT    NOT NULL,
	live_at      TEXT    NOT NULL,
	body         BLOB    NOT NULL,
	anchor       INTEGER NOT NULL,
	digest       BLOB    NOT NULL,
	PRIMARY KEY (environment, number)
) STRICT;

-- Damaged records with which a person went on.
CREATE TABLE accepted (
	record      TEXT PRIMARY KEY,
	fingerprint BLOB    NOT NULL, -- of the record as it was found
	anchor      INTEGER NOT NULL,
	digest      BLOB    NOT NULL
) STRICT;
`

// mark is in the file's application_id beside the schema's number, which is in
// its user_version: one that was changed by accident is found so. It says
// "Kl".
const mark = 0x4b6c0000

// schemaOf is the schema's number of a file; 0 for an empty one.
func schemaOf(ctx context.Context, db *sql.DB) (int, error) {
	var version, id int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return 0, err
	}
	if err := db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return 0, err
	}
	if before := version >= 0 && version < 3; id == mark|version || before && id == 0 {
		return version, nil
	}
	return 0, fmt.Errorf("%w: its schema is %d by one number and %d by the other", errDamaged, version, id&^mark)
}

// migrate brings the file to the schema of the last step.
func (l *Ledger) migrate(ctx context.Context, steps []migration) error {
	have, err := schemaOf(ctx, l.files().write)
	switch {
	case err != nil:
		return err
	case have > len(steps):
		return l.downgrade(have, len(steps))
	case have == len(steps):
		return nil
	case l.opts.asItIs:
		return kiln.Errorf(kiln.CodeConflict, "start kilnd, which brings it to the present one", "the ledger %s has schema %d, which is an older one", l.path, have)
	case have > 0:
		if err := l.copyBefore(ctx, have); err != nil {
			return err
		}
		if l.tip, err = readTip(ctx, l.files().write); err != nil {
			return err
		}
	}
	for n := have; n < len(steps); n++ {
		if err := l.step(ctx, steps[n], n+1); err != nil {
			return fmt.Errorf("migrate to schema %d: %w", n+1, err)
		}
	}
	return l.forgetCopies(have)
}

// downgrade explains that a newer kilnd has been here.
func (l *Ledger) downgrade(have, known int) error {
	hint := "start the newer kilnd again, or restore a backup from before its installation"
	for n := known; n > 0; n-- {
		if copied := l.copyPath(n); exists(copied) {
			hint = fmt.Sprintf("start the newer kilnd again; %s is the ledger as it was before that one came", copied)
			break
		}
	}
	return kiln.Errorf(kiln.CodeRefused, hint,
		"the ledger %s has schema %d, and this kilnd knows schemas up to %d: a newer kilnd wrote it", l.path, have, known)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// step takes one migration and its number in one transaction.
func (l *Ledger) step(ctx context.Context, m migration, number int) (err error) {
	tx, err := l.files().write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	before := l.tip
	defer func() {
		if err = settle(tx, err); err != nil {
			l.tip = before
		}
	}()
	if _, err = tx.ExecContext(ctx, m.script); err != nil {
		return err
	}
	if m.then != nil {
		if err = m.then(ctx, &writing{l: l, tx: tx}); err != nil {
			return err
		}
	}
	if _, err = tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", number)); err != nil || number < 3 {
		return err
	}
	_, err = tx.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", mark|number))
	return err
}

// settle commits a transaction, or rolls it back when there is an error.
func settle(tx *sql.Tx, err error) error {
	if err == nil {
		return tx.Commit()
	}
	if rollback := tx.Rollback(); rollback != nil && !errors.Is(rollback, sql.ErrTxDone) {
		return fmt.Errorf("%w (and rolling back: %w)", err, rollback)
	}
	return err
}

// anchorAll gives the rows of schema 2 their digests and their place in the
// chain. A release that is not what was written stays without, and so is found
// ever after.
func anchorAll(ctx context.Context, w *writing) error {
	damaged, err := damagedReleases(ctx, w.tx)
	if err != nil {
		return err
	}
	// Only the last checkpoint was ever of use.
	if _, err := w.tx.ExecContext(ctx, `
		DELETE FROM checkpoints WHERE seq < (SELECT max(seq) FROM checkpoints);
		ALTER TABLE releases DROP COLUMN body_digest`); err != nil {
		return err
	}
	for _, t := range w.l.tables.list() {
		if err := w.anchorTable(ctx, t, func(r row) bool { return t != w.l.tables.releases || !damaged[r.key()] }); err != nil {
			return err
		}
	}
	return nil
}

// damagedReleases are those of schema 2 whose body has not its digest.
func damagedReleases(ctx context.Context, tx *sql.Tx) (map[string]bool, error) {
	rows, err := tx.QueryContext(ctx, "SELECT environment, number, body, body_digest FROM releases")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[string]bool{}
	for rows.Next() {
		var environment, digest string
		var number int
		var body []byte
		if err := rows.Scan(&environment, &number, &body, &digest); err != nil {
			return nil, err
		}
		if kiln.DigestOf(body) != kiln.Digest(digest) {
			out[fmt.Sprintf("%s/%d", environment, number)] = true
		}
	}
	return out, rows.Err()
}

// anchorTable anchors the rows of a table that are chosen, anew.
func (w *writing) anchorTable(ctx context.Context, t *table, chosen func(row) bool) error {
	var last int64
	for {
		batch, end, err := readBatch(ctx, w.tx, t, last, math.MaxInt64)
		if err != nil || len(batch) == 0 {
			return err
		}
		last = end
		for _, r := range batch {
			if !chosen(r) {
				continue
			}
			if err := w.put(ctx, t, r.values...); err != nil {
				return err
			}
		}
		if err := w.append(ctx); err != nil {
			return err
		}
	}
}
