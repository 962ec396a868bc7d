// Package ledger keeps the history of a control plane in SQLite: events in a
// hash chain, releases, the journal of rollouts, and the lives of instances.
// What a method acknowledged survives a power cut. It decides nothing.
package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"github.com/kilnproject/kiln"
	"modernc.org/sqlite" // the driver
	sqlite3 "modernc.org/sqlite/lib"
)

// Ledger is an open history. Its methods may be called at once; one process
// may have it open.
type Ledger struct {
	path  string
	write *sql.DB // one connection
	read  *sql.DB

	mu       sync.Mutex // guards what follows; not held during I/O
	queue    []*request
	leading  bool
	watchers map[chan struct{}]bool

	// tip is the end of the chain; only who leads touches it.
	tip tip
}

// readers is how many reads run at once.
const readers = 4

// Open opens the ledger at a path, made when there is none, and brings an
// older one to the present schema after copying it. A newer one is refused.
func Open(ctx context.Context, path string) (*Ledger, error) {
	return open(ctx, path, migrations())
}

func open(ctx context.Context, path string, steps []string) (*Ledger, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	l := &Ledger{path: path, watchers: map[chan struct{}]bool{}}
	if l.write, err = connect(path, 1, false); err != nil {
		return nil, err
	}
	if l.read, err = connect(path, readers, true); err != nil {
		return nil, errors.Join(err, l.write.Close())
	}
	if err = l.migrate(ctx, steps); err == nil {
		l.tip, err = readTip(ctx, l.write)
	}
	if err != nil {
		return nil, errors.Join(explain("open the ledger "+path, err), l.Close())
	}
	return l, nil
}

// connect opens a pool. Pragmas are in the name, so that each connection has
// them.
func connect(path string, connections int, readOnly bool) (*sql.DB, error) {
	q := url.Values{"_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)",
		"journal_size_limit(67108864)", "cell_size_check(1)", "trusted_schema(0)",
	}}
	if readOnly {
		q.Add("_pragma", "query_only(1)")
	} else {
		q.Set("_txlock", "immediate")
	}
	name := (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
	db, err := sql.Open("sqlite", name)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

// Close ends the ledger. Nothing may be in progress.
func (l *Ledger) Close() error {
	return errors.Join(l.read.Close(), l.write.Close())
}

// explain puts into words what a person can mend.
func explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	var known *kiln.Error
	if errors.As(err, &known) {
		return err
	}
	var s *sqlite.Error
	if !errors.As(err, &s) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	switch s.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return kiln.Errorf(kiln.CodeNoRoom, "free some space on the disk of the data directory", "%s: the disk is full: %w", doing, err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return kiln.Errorf(kiln.CodeUnavailable, "run kilnd as root, on a disk that can be written", "%s: the ledger cannot be written: %w", doing, err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return kiln.Errorf(kiln.CodeInternal, "restore the ledger from a backup", "%s: the ledger is damaged: %w", doing, err)
	default:
		return fmt.Errorf("%s: %w", doing, err)
	}
}
