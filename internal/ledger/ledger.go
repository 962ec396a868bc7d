// Package ledger keeps the history of a control plane in SQLite: events in a
// hash chain, releases, the journal of rollouts, and the lives of instances.
// What a method acknowledged survives a power cut. A record that is not what
// was written is found and named; nothing is written over it until a person
// says so. The package decides nothing else.
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
	"sync/atomic"

	"modernc.org/sqlite" // the driver
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/kilnproject/kiln"
)

// Ledger is an open history. Its methods may be called at once; one process
// may have it open.
type Ledger struct {
	path   string
	opts   options
	tables tables
	pools  atomic.Pointer[files]
	damage damage
	// verifying is held by a verification of the whole.
	verifying chan struct{}

	mu       sync.Mutex // guards what follows; not held during I/O
	queue    []*request
	leading  bool
	watchers map[chan struct{}]bool

	// tip is the end of the chain; only who leads touches it.
	tip  tip
	told *tipFile
}

// files are the connections to the file.
type files struct {
	write *sql.DB // one connection
	read  *sql.DB
	// prepared are the statements of the one connection that writes. Only who
	// leads touches them.
	prepared map[string]*sql.Stmt
}

// options are what tests change.
type options struct {
	steps       []migration
	vfs         string // SQLite's name of the file system; empty is the system's own
	synchronous string // FULL
	checkpoint  int    // pages of the write-ahead log before they go into the file
	kept        kept
	asItIs      bool // an older schema is refused
	salvage     bool // a new file for what was read of a damaged one
}

func standard() options {
	return options{
		steps: migrations(), synchronous: "FULL", checkpoint: 1000,
		kept: kept{dead: 100_000, ended: 1_000, releases: 200},
	}
}

// readers is how many reads run at once.
const readers = 4

// Open opens the ledger at a path, made when there is none, and brings an
// older one to the present schema after copying it. A newer one is refused. A
// damaged one opens: what it still has can be read, and Damage says the rest.
func Open(ctx context.Context, path string) (*Ledger, error) {
	return open(ctx, path, standard())
}

// Examine opens a ledger as it is: there must be one, of the present schema.
func Examine(ctx context.Context, path string) (*Ledger, error) {
	if !exists(path) {
		return nil, kiln.Errorf(kiln.CodeNotFound, "", "there is no ledger %s", path)
	}
	o := standard()
	o.asItIs = true
	return open(ctx, path, o)
}

func open(ctx context.Context, path string, o options) (*Ledger, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, cannotOpen(path, err)
	}
	l := &Ledger{
		path: path, opts: o, tables: newTables(), watchers: map[chan struct{}]bool{},
		damage: newDamage(), verifying: make(chan struct{}, 1),
	}
	if err := finishSwap(path); err != nil {
		return nil, cannotOpen(path, err)
	}
	if err := reachable(path); err != nil {
		return nil, cannotOpen(path, err)
	}
	if err := l.connect(); err != nil {
		return nil, err
	}
	if err := l.begin(ctx); err != nil {
		return nil, errors.Join(explain("open the ledger "+path, err), l.Close())
	}
	return l, nil
}

// begin reads what is there. Damage is noted and is no error.
func (l *Ledger) begin(ctx context.Context) error {
	err := l.migrate(ctx, l.opts.steps)
	if err == nil {
		l.tip, err = readTip(ctx, l.files().write)
	}
	if err == nil && !l.opts.salvage {
		err = l.openTip(ctx)
	}
	if err == nil || !isDamage(err) {
		return err
	}
	l.found(kiln.LedgerFault{Record: "database", Problem: err.Error()})
	return nil
}

// connect opens the file's connections.
func (l *Ledger) connect() error {
	write, err := l.pool(1, false)
	if err != nil {
		return err
	}
	read, err := l.pool(readers, true)
	if err != nil {
		return errors.Join(err, write.Close())
	}
	l.pools.Store(&files{write: write, read: read, prepared: map[string]*sql.Stmt{}})
	return nil
}

func (l *Ledger) files() *files { return l.pools.Load() }

// pool opens connections. Pragmas are in the name, so that each has them.
func (l *Ledger) pool(connections int, readOnly bool) (*sql.DB, error) {
	q := url.Values{"_pragma": {
		"busy_timeout(10000)", "auto_vacuum(2)", "journal_mode(WAL)", "synchronous(" + l.opts.synchronous + ")", fmt.Sprintf("foreign_keys(%t)", !l.opts.salvage),
		"journal_size_limit(67108864)", "cell_size_check(1)", "trusted_schema(0)", fmt.Sprintf("wal_autocheckpoint(%d)", l.opts.checkpoint),
	}}
	if readOnly {
		q.Add("_pragma", "query_only(1)")
	} else {
		q.Set("_txlock", "immediate")
	}
	if l.opts.vfs != "" {
		q.Set("vfs", l.opts.vfs)
	}
	name := (&url.URL{Scheme: "file", Path: l.path, RawQuery: q.Encode()}).String()
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
	f := l.files()
	err := f.close()
	if l.told != nil {
		err = errors.Join(err, l.told.close())
	}
	return err
}

func (f *files) close() error {
	for _, s := range f.prepared {
		_ = s.Close() // closing the connection does it, too
	}
	return errors.Join(f.read.Close(), f.write.Close())
}

// prepare prepares what every transaction uses, before the first. Only who
// leads calls it.
func (f *files) prepare(ctx context.Context, t tables) error {
	if len(f.prepared) > 0 {
		return nil
	}
	all := []string{insertEntry}
	for _, one := range append(t.list(), t.releases.twin) {
		all = append(all, one.put, one.find)
	}
	for _, query := range all {
		s, err := f.write.PrepareContext(ctx, query) //nolint:sqlclosecheck // files.close does it
		if err != nil {
			clear(f.prepared)
			return err
		}
		f.prepared[query] = s
	}
	return nil
}

// errDamaged is wrapped by errors of records that are not what was written.
var errDamaged = errors.New("it is not what was written")

// isDamage says whether an error is of a file or record that is not what was
// written. The ledger's own statements fit its schema: where SQLite finds them
// wrong, the schema is.
func isDamage(err error) bool {
	if errors.Is(err, errDamaged) {
		return true
	}
	var s *sqlite.Error
	if !errors.As(err, &s) {
		return false
	}
	switch s.Code() {
	case sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ:
		return true
	}
	switch s.Code() & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT:
		return true
	}
	return false
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
	if isDamage(err) {
		return kiln.Errorf(kiln.CodeInternal, wayOut, "%s: the ledger is damaged: %w", doing, err)
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
	default:
		return fmt.Errorf("%s: %w", doing, err)
	}
}

// reachable finds out whether the file can be written, in the words of the
// system: SQLite would go on with a file that it can only read.
func reachable(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// cannotOpen explains an error of the file system.
func cannotOpen(path string, err error) error {
	if noRoom := noRoom(err); noRoom != err { //nolint:errorlint // it is the same or another
		return noRoom
	}
	hint := "run kilnd as root; what is in the ledger's folder belongs to root"
	if errors.Is(err, unixReadOnly) {
		hint = "mount its disk for writing: mount -o remount,rw, after the kernel's log (dmesg) says why it is not"
	}
	return kiln.Errorf(kiln.CodeUnavailable, hint, "the ledger %s cannot be written: %w", path, err)
}
