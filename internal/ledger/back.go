package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/kilnproject/kiln"
)

// Schemas says which schema the ledger at a path has, 0 where there is none,
// and the newest that this program knows. It changes nothing, and another
// process may have the ledger open.
func Schemas(ctx context.Context, path string) (have, known int, err error) {
	known = len(migrations())
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return 0, known, nil
	}
	db, err := plainly(path, "&_pragma=query_only(1)")
	if err != nil {
		return 0, known, err
	}
	err = db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have)
	return have, known, explain("look at the ledger "+path, errors.Join(err, db.Close()))
}

// plainly opens an existing file as it is, whatever its schema.
func plainly(path, more string) (*sql.DB, error) {
	name := (&url.URL{Scheme: "file", Path: path, RawQuery: "mode=rw&_pragma=busy_timeout(10000)" + more}).String()
	db, err := sql.Open("sqlite", name)
	if err != nil {
		return nil, fmt.Errorf("look at the ledger: %w", err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// GoBack puts the copy in place that a newer program made before it migrated
// the ledger, when this program does not know the schema that it has now. What
// was written since is lost with it: the newer ledger is kept beside. Nobody may
// have the ledger open.
func GoBack(ctx context.Context, path string) error {
	have, known, err := Schemas(ctx, path)
	if err != nil || have <= known {
		return err
	}
	before := fmt.Sprintf("%s.schema-%d", path, known)
	if _, err := os.Stat(before); err != nil {
		return kiln.Errorf(kiln.CodeNotFound, "start the newer kilnd again, or restore a backup from before its installation",
			"the ledger has schema %d, this kilnd knows %d, and there is no copy of that: %w", have, known, err)
	}
	// A log of the newer file would be taken for the older one's.
	if err := fold(ctx, path); err != nil {
		return fmt.Errorf("go back to the ledger's copy: %w", err)
	}
	for _, step := range []func() error{
		func() error { return link(path, fmt.Sprintf("%s.schema-%d", path, have)) },
		func() error { return link(before, path+".back") },
		// What was acknowledged since is in the newer file, not in this one.
		func() error { return remove(path + ".tip") },
		func() error { return os.Rename(path+".back", path) },
		func() error { return syncPath(filepath.Dir(path)) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("go back to the ledger's copy: %w", err)
		}
	}
	return nil
}

// link gives a file a second name, also where that was another's.
func link(path, name string) error {
	if err := remove(name); err != nil {
		return err
	}
	return os.Link(path, name)
}

// fold brings all of a ledger's log into its file, and removes the log.
func fold(ctx context.Context, path string) error {
	db, err := plainly(path, "")
	if err != nil {
		return err
	}
	var busy, pages, done int
	err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &pages, &done)
	if err == nil && busy != 0 {
		err = kiln.Errorf(kiln.CodeConflict, "end the kilnd that has it", "another process has the ledger open")
	}
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := remove(path + suffix); err != nil {
			return err
		}
	}
	return nil
}
