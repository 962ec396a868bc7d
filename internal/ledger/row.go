package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnproject/kiln"
)

// table is one of those whose rows change. Each of its rows has two more
// columns: the digest of all others, and the number of the entry of the chain
// that holds that digest. So the chain stands for the rows as well.
type table struct {
	name    string
	kind    byte     // in an anchor; a small letter
	noun    string   // for people
	columns []string // those of the key first
	keys    int
	// final says that a row changes no more. It may be pruned, and is not
	// missed then.
	final func(values []any) bool
	// twin is a second table with the same rows, on other pages of the file.
	twin *table
	// put, find, all and batch are SQL.
	put, find, all, batch string
}

// batchSize is how many rows are read, or anchored by one entry, at once.
const batchSize = 256

// tables are all of them.
type tables struct {
	releases, rollouts, instances, settings, numbers, checkpoints, accepted *table
}

func newTables() tables {
	never := func([]any) bool { return false }
	is := func(column int) func([]any) bool {
		return func(values []any) bool { return values[column] == int64(1) }
	}
	// A release may come back from any state, so it is never final.
	release := func(name string) *table {
		return newTable(name, 'r', "release", 2, never, "environment", "number", "state", "parked_until", "live_at", "body")
	}
	t := tables{
		releases:    release("releases"),
		rollouts:    newTable("rollouts", 'o', "rollout", 1, is(2), "id", "environment", "ended", "body"),
		instances:   newTable("instances", 'i', "instance", 1, is(2), "id", "environment", "dead", "born", "body"),
		settings:    newTable("settings", 's', "setting", 1, never, "name", "value"),
		numbers:     newTable("environments", 'e', "environment", 1, never, "name", "next_number"),
		checkpoints: newTable("checkpoints", 'c', "checkpoint", 1, never, "seq", "at", "hash"),
		accepted:    newTable("accepted", 'a', "acceptance of", 1, never, "record", "fingerprint"),
	}
	t.releases.twin = release("release_copies")
	return t
}

func newTable(name string, kind byte, noun string, keys int, final func([]any) bool, columns ...string) *table {
	t := &table{name: name, kind: kind, noun: noun, columns: columns, keys: keys, final: final}
	list := strings.Join(columns, ", ")
	set := make([]string, 0, len(columns)+2)
	for _, c := range slices.Concat(columns[keys:], []string{"anchor", "digest"}) {
		set = append(set, c+" = excluded."+c)
	}
	t.put = fmt.Sprintf("INSERT INTO %s (%s, anchor, digest) VALUES (%s?, ?) ON CONFLICT (%s) DO UPDATE SET %s",
		name, list, strings.Repeat("?, ", len(columns)), strings.Join(columns[:keys], ", "), strings.Join(set, ", "))
	t.all = fmt.Sprintf("SELECT %s, anchor, digest FROM %s ", list, name)
	t.batch = fmt.Sprintf("SELECT rowid, %s, anchor, digest FROM %s WHERE rowid > ? AND rowid <= ? ORDER BY rowid LIMIT %d", list, name, batchSize)
	t.find = t.all + "WHERE " + strings.Join(columns[:keys], " = ? AND ") + " = ?"
	return t
}

// list is all of them, in an order in which their rows may be written.
func (t tables) list() []*table {
	return []*table{t.numbers, t.releases, t.rollouts, t.instances, t.settings, t.checkpoints, t.accepted}
}

// row is one row of a table.
type row struct {
	table  *table
	values []any // of the columns: int64, string or []byte
	anchor int64
	digest []byte
}

// scanned reads a row of a query of t.all or t.find, before whose columns there
// may be others. A damaged row may have anything in it.
func scanned(t *table, scan func(...any) error, before ...any) (row, error) {
	values := make([]any, len(t.columns)+2)
	targets := before
	for i := range values {
		targets = append(targets, &values[i])
	}
	err := scan(targets...)
	r := row{table: t, values: values[:len(t.columns)]}
	r.anchor, _ = values[len(t.columns)].(int64)
	r.digest, _ = values[len(t.columns)+1].([]byte)
	return r, err
}

// sum is the digest that the row must have.
func (r row) sum() [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte{r.table.kind})
	for _, v := range r.values {
		switch v := v.(type) {
		case int64:
			field(h, 'n', strconv.AppendInt(nil, v, 10))
		case string:
			field(h, 't', []byte(v))
		case []byte:
			field(h, 'b', v)
		default: // a damaged row has what it likes
			field(h, '?', fmt.Append(nil, v))
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func field(h hash.Hash, kind byte, b []byte) {
	var head [9]byte
	head[0] = kind
	binary.BigEndian.PutUint64(head[1:], uint64(len(b)))
	h.Write(head[:])
	h.Write(b)
}

// intact says whether the row is what was written.
func (r row) intact() bool {
	sum := r.sum()
	return bytes.Equal(sum[:], r.digest)
}

func (r row) final() bool { return r.table.final(r.values) }

// key names the row within its table.
func (r row) key() string {
	parts := make([]string, r.table.keys)
	for i := range parts {
		parts[i] = fmt.Sprint(r.values[i])
	}
	return strings.Join(parts, "/")
}

// String names the row for people.
func (r row) String() string { return r.table.record(r.key()) }

// record names a row by its key for people.
func (t *table) record(key string) string {
	if cut := strings.LastIndexByte(key, '/'); cut >= 0 && t.keys == 2 {
		return fmt.Sprintf("%s %s of %s", t.noun, key[cut+1:], key[:cut])
	}
	return t.noun + " " + key
}

// fault says that the row is not what was written.
func (r row) fault() kiln.LedgerFault {
	return kiln.LedgerFault{Record: r.String(), Problem: "its content is not what was written"}
}

// anchor is what the chain holds of a row.
type anchor struct {
	kind   byte
	final  bool
	key    string
	digest [sha256.Size]byte
}

// appendAnchor encodes: the kind, as a capital letter when the row is final,
// the key with its length, the digest.
func appendAnchor(b []byte, a anchor) []byte {
	if a.final {
		a.kind -= 'a' - 'A'
	}
	b = append(b, a.kind)
	b = binary.AppendUvarint(b, uint64(len(a.key)))
	b = append(b, a.key...)
	return append(b, a.digest[:]...)
}

// anchors decodes what appendAnchor wrote, as far as it is that.
func anchors(b []byte) []anchor {
	var out []anchor
	for len(b) > 0 {
		a := anchor{kind: b[0]}
		if a.final = a.kind < 'a'; a.final {
			a.kind += 'a' - 'A'
		}
		n, size := binary.Uvarint(b[1:])
		if size <= 0 || n > uint64(len(b)) || uint64(len(b)) < 1+uint64(size)+n+sha256.Size {
			return out
		}
		b = b[1+size:]
		a.key, b = string(b[:n]), b[n:]
		a.digest, b = [sha256.Size]byte(b), b[sha256.Size:]
		out = append(out, a)
	}
	return out
}

// querier is a pool or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// readRows reads rows as they are, damaged or not.
func readRows(ctx context.Context, q querier, t *table, where string, args ...any) (out []row, err error) {
	err = eachRow(ctx, q, t, where, args, func(r row) { out = append(out, r) })
	return out, err
}

// eachRow calls each for rows as they are.
func eachRow(ctx context.Context, q querier, t *table, where string, args []any, each func(row)) error {
	rows, err := q.QueryContext(ctx, t.all+where, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		r, err := scanned(t, rows.Scan)
		if err != nil {
			return err
		}
		each(r)
	}
	return rows.Err()
}

// readBatch reads the first rows behind a rowid, up to another one. It returns
// the rowid of the last.
func readBatch(ctx context.Context, q querier, t *table, after, upTo int64) (batch []row, last int64, err error) {
	rows, err := q.QueryContext(ctx, t.batch, after, upTo)
	if err != nil {
		return nil, after, err
	}
	defer func() { _ = rows.Close() }()
	for last = after; rows.Next(); {
		r, err := scanned(t, rows.Scan, &last)
		if err != nil {
			return batch, last, err
		}
		batch = append(batch, r)
	}
	return batch, last, rows.Err()
}
