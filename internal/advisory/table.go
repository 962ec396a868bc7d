package advisory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/crc32"
	"net/url"
	"os"
	"sync"
	"sync/atomic"

	osv "github.com/ossf/osv-schema/bindings/go/osvschema"
	"google.golang.org/protobuf/proto"
	_ "modernc.org/sqlite" // the driver

	"github.com/kilnproject/kiln"
)

// extension is that of an ecosystem's file.
const extension = ".osv"

// maxCached is how many bytes of records a table keeps in memory, as they are
// on disk; parsed they take a few times that.
const maxCached = 32 << 20

func fileOf(d kiln.Digest) string { return d.Hex() + extension }

// table is the file of one ecosystem, indexed by package.
type table struct {
	path      string
	digest    kiln.Digest
	db        *sql.DB
	find      *sql.Stmt
	snapshots atomic.Int32 // that have it

	mu     sync.Mutex
	groups map[string]*group // by release and name
	cached int               // bytes
}

// group are the records of one package in one release of an ecosystem. The
// matcher sorts in what it is given, so that one at a time may use them.
type group struct {
	mu      sync.Mutex
	records []*osv.Vulnerability
}

// row is a record as it is kept: of one package in one release.
type row struct {
	release string // "12" of "Debian:12"; "" is all
	name    string
	record  *osv.Vulnerability
}

func connect(path, options string) (*sql.DB, error) {
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: options}).String())
}

// openTable opens a file that will not change any more.
func openTable(path string, digest kiln.Digest) (*table, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, unreadable(path, err)
	}
	db, err := connect(path, "mode=ro&immutable=1&_pragma=query_only(1)&_pragma=trusted_schema(0)&_pragma=cell_size_check(1)")
	if err != nil {
		return nil, unreadable(path, err)
	}
	t := &table{path: path, digest: digest, db: db, groups: map[string]*group{}}
	var named string
	err = db.QueryRow("SELECT digest FROM about").Scan(&named) //nolint:noctx // a page of an open file
	if err == nil && named != string(digest) {
		err = errors.New("it has not the content of its name")
	}
	if err == nil {
		t.find, err = db.Prepare("SELECT sum, record FROM advisory WHERE name = ?1 AND (?2 = '' OR release = '' OR release = ?2) ORDER BY id, release") //nolint:noctx // as above
	}
	if err != nil {
		return nil, errors.Join(unreadable(path, err), db.Close())
	}
	return t, nil
}

// records returns those of a package in a release, "" for any.
func (t *table) records(ctx context.Context, release, name string) (*group, error) {
	key := release + "\x00" + name
	t.mu.Lock()
	g := t.groups[key]
	t.mu.Unlock()
	if g != nil {
		return g, nil
	}
	g, size, err := t.read(ctx, release, name)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, unreadable(t.path, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cached += size + len(key) + 64; t.cached > maxCached {
		clear(t.groups)
		t.cached = size
	}
	t.groups[key] = g
	return g, nil
}

func (t *table) read(ctx context.Context, release, name string) (*group, int, error) {
	rows, err := t.find.QueryContext(ctx, name, release)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = rows.Close() }() // Err tells
	g, size := &group{}, 0
	for rows.Next() {
		var sum int64
		var b []byte
		if err := rows.Scan(&sum, &b); err != nil {
			return nil, 0, err
		}
		v := &osv.Vulnerability{}
		if sum != checksum(b) {
			return nil, 0, fmt.Errorf("a record of %s is damaged", name)
		}
		if err := proto.Unmarshal(b, v); err != nil {
			return nil, 0, err
		}
		size += len(b)
		g.records = append(g.records, v)
	}
	return g, size, rows.Err()
}

func checksum(b []byte) int64 { return int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))) }

// builder writes a new file.
type builder struct {
	db     *sql.DB
	tx     *sql.Tx
	insert *sql.Stmt
}

// newBuilder begins an empty file. It is made durable by who asked for it.
func newBuilder(ctx context.Context, path string) (*builder, error) {
	db, err := connect(path, "_pragma=journal_mode(OFF)&_pragma=synchronous(OFF)")
	if err != nil {
		return nil, err
	}
	b := &builder{db: db}
	if b.tx, err = db.BeginTx(ctx, nil); err == nil {
		_, err = b.tx.ExecContext(ctx, `
			CREATE TABLE about (digest TEXT NOT NULL);
			CREATE TABLE advisory (name TEXT NOT NULL, id TEXT NOT NULL, release TEXT NOT NULL, sum INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (name, id, release)) WITHOUT ROWID`)
	}
	if err == nil {
		b.insert, err = b.tx.PrepareContext(ctx, "INSERT INTO advisory VALUES (?, ?, ?, ?, ?)")
	}
	if err != nil {
		return nil, errors.Join(err, b.abandon())
	}
	return b, nil
}

func (b *builder) add(ctx context.Context, rows []row) error {
	for _, r := range rows {
		data, err := proto.Marshal(r.record)
		if err != nil {
			return err
		}
		if _, err := b.insert.ExecContext(ctx, r.name, r.record.GetId(), r.release, checksum(data), data); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) finish(ctx context.Context, digest kiln.Digest) error {
	_, err := b.tx.ExecContext(ctx, "INSERT INTO about VALUES (?)", string(digest))
	if err != nil {
		return errors.Join(err, b.abandon())
	}
	return errors.Join(b.insert.Close(), b.tx.Commit(), b.db.Close())
}

// abandon closes a file that will be removed.
func (b *builder) abandon() error {
	var errs []error
	if b.insert != nil {
		errs = append(errs, b.insert.Close())
	}
	if b.tx != nil {
		errs = append(errs, b.tx.Rollback())
	}
	return errors.Join(append(errs, b.db.Close())...)
}
