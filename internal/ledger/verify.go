package ledger

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

const (
	// sliceSize is how many entries are read in one transaction: the log can
	// be written back between two.
	sliceSize = 2000
	// maxFailures is how many reads may fail one after the other before the
	// rest is given up.
	maxFailures = 20_000
)

// Verify checks everything: it walks the chain from its begin or its
// checkpoint and recomputes every hash, compares all rows with what the chain
// holds of them, and has SQLite check the structure of the file. What it finds
// is Damage from then on. Only one runs at a time; changes go on meanwhile.
//
// With a tip, "number:hash" as a report had it, it also checks that the
// history goes through it.
func (l *Ledger) Verify(ctx context.Context, tip string) (kiln.LedgerReport, error) {
	return l.verify(ctx, tip, func(time.Duration) {})
}

// verify is Verify that rests after each slice, which took so long.
func (l *Ledger) verify(ctx context.Context, tip string, rest func(time.Duration)) (kiln.LedgerReport, error) {
	select {
	case l.verifying <- struct{}{}:
	case <-ctx.Done():
		return kiln.LedgerReport{}, ctx.Err()
	}
	defer func() { <-l.verifying }()
	v, err := l.inspect(ctx, tip, rest)
	if err != nil {
		return kiln.LedgerReport{}, err
	}
	return v.report, nil
}

// inspect is one verification. Whoever calls it holds l.verifying.
func (l *Ledger) inspect(ctx context.Context, tip string, rest func(time.Duration)) (*verification, error) {
	began := time.Now()
	v := &verification{
		l: l, files: l.files(), rest: rest, must: map[string]anchored{}, faults: sha256.New(), wants: map[int64][]want{},
		stored: make([]byte, sha256.Size), computed: make([]byte, sha256.Size),
	}
	if err := v.wantTips(tip); err != nil {
		return nil, err
	}
	for _, part := range []func(context.Context) error{v.probe, v.readAccepted, v.chain, v.rows, v.structure} {
		if v.unreadable {
			break
		}
		if err := part(ctx); err != nil {
			if ctx.Err() != nil || !isDamage(err) {
				return nil, errors.Join(ctx.Err(), explain("verify the ledger", err))
			}
			v.fault("database", []byte(err.Error()), "%v", err)
		}
	}
	if !v.unreadable {
		v.missed()
	}
	v.finish(time.Since(began))
	return v, nil
}

// verification is one run.
type verification struct {
	l      *Ledger
	files  *files
	rest   func(time.Duration)
	report kiln.LedgerReport
	// at is the number of the last entry that was walked, 0 before the first.
	at int64
	// stored is the hash of that entry as it is stored, and computed what it
	// should be; nil when it is not known, because entries are missing.
	stored, computed []byte
	floor            int64 // the checkpoint
	must             map[string]anchored
	expects          map[string]anchored // must, as it was before rows were compared
	accepted         map[string][]byte
	list             []finding // the faults that are entries of the chain
	ended            []row     // final ones that are left to compare, without their content
	holder           int64     // the entry that was looked at last for those
	held             map[string][sha256.Size]byte
	faults           hash.Hash
	failures         int              // of reads since one worked
	unreadable       bool             // all of it
	wants            map[int64][]want // by the number of the entry
}

// finding is a fault by its fingerprint.
type finding struct {
	record      string
	fingerprint [sha256.Size]byte
}

// anchored is what the chain says of a row that must be there.
type anchored struct {
	at     int64
	digest [sha256.Size]byte
}

// want is a hash that an entry must have.
type want struct {
	hash    [sha256.Size]byte
	problem string // that it has another one
	missing string // that there is no such entry
}

// wantTips wants what was acknowledged last, and what the caller kept.
func (v *verification) wantTips(kept string) error {
	if v.l.told != nil {
		if t, ok := v.l.told.read(); ok {
			v.wants[t.seq] = append(v.wants[t.seq], want{t.hash, "it is not the one that was acknowledged", "it was acknowledged and is missing at the end"})
		}
	}
	if kept == "" {
		return nil
	}
	var hash []byte
	number, digits, _ := strings.Cut(kept, ":")
	seq, err := strconv.ParseInt(number, 10, 64)
	if _, scan := fmt.Sscanf(digits, "%x", &hash); err != nil || scan != nil || len(hash) != sha256.Size || seq <= 0 {
		return kiln.Errorf(kiln.CodeInvalid, "kiln ledger verify --json prints one as tip", "%q is not the tip of a ledger", kept)
	}
	v.wants[seq] = append(v.wants[seq], want{[sha256.Size]byte(hash), "the history does not go through " + kept + ": it was written anew", "it was kept as " + kept + " and is missing"})
	return nil
}

// fault reports a record, unless it was accepted as it is. The evidence is
// what is there instead of what was written.
func (v *verification) fault(record string, evidence []byte, format string, args ...any) {
	fingerprint := sha256.Sum256(evidence)
	problem := fmt.Sprintf(format, args...)
	if bytes.Equal(v.accepted[record], fingerprint[:]) {
		v.report.Notes = append(v.report.Notes, record+" is damaged and was accepted: "+problem)
		return
	}
	if strings.HasPrefix(record, "event") {
		v.list = append(v.list, finding{record, fingerprint})
	}
	_, _ = fmt.Fprintf(v.faults, "%s\x00%x\x00", record, fingerprint)
	if len(v.report.Faults) == maxFaults {
		v.report.More++
		return
	}
	v.report.Faults = append(v.report.Faults, kiln.LedgerFault{Record: record, Problem: problem})
}

// finish completes the report, and notes damage.
func (v *verification) finish(took time.Duration) {
	v.report.Took = took
	v.report.Tip = tip{v.at, [sha256.Size]byte(append(v.stored, make([]byte, sha256.Size)...))}.String()
	if len(v.report.Faults) > 0 {
		v.report.Damage = kiln.Digest("sha256:" + fmt.Sprintf("%x", v.faults.Sum(nil)))
	}
	if more := len(v.report.Notes) - maxFaults; more > 0 {
		v.report.Notes = append(v.report.Notes[:maxFaults], fmt.Sprintf("and %d more", more))
	}
	v.l.found(v.report.Faults...)
	v.l.checked()
}

// probe finds out whether anything can be read at all.
func (v *verification) probe(ctx context.Context) error {
	var tables int
	err := v.files.read.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables)
	v.unreadable = err != nil && isDamage(err)
	return err
}

// readAccepted reads what a person went on with.
func (v *verification) readAccepted(ctx context.Context) error {
	v.accepted = map[string][]byte{}
	rows, err := v.l.rows(ctx, v.l.tables.accepted, "")
	for _, r := range rows {
		if record, ok := r.values[0].(string); ok && r.intact() {
			v.accepted[record], _ = r.values[1].([]byte)
		}
	}
	return err
}

// chain walks the entries in slices, up to where the end is by then.
func (v *verification) chain(ctx context.Context) error {
	for {
		began := time.Now()
		end, err := v.slice(ctx, v.files.read)
		if err != nil || end {
			return err
		}
		v.rest(time.Since(began))
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// slice walks some entries and says whether they were the last.
func (v *verification) slice(ctx context.Context, q querier) (end bool, err error) {
	if err := v.start(ctx, q); err != nil {
		return false, err
	}
	last, err := lastEntry(ctx, q)
	if err != nil {
		if !isDamage(err) {
			return false, err
		}
		last = v.l.lastKnown() // the walk says what cannot be read
	}
	upTo := min(last, v.at+sliceSize)
	if err := v.walk(ctx, q, v.at+1, upTo); err != nil {
		return false, err
	}
	return upTo >= last, nil
}

// start begins at the checkpoint, which may move while the walk goes on.
func (v *verification) start(ctx context.Context, q querier) error {
	points, err := readRows(ctx, q, v.l.tables.checkpoints, "ORDER BY seq DESC LIMIT 1")
	if err != nil || len(points) == 0 {
		return err
	}
	seq, _ := points[0].values[0].(int64)
	hash, _ := points[0].values[2].([]byte)
	if seq <= v.floor {
		return nil
	}
	if v.floor == 0 {
		v.report.Notes = append(v.report.Notes, fmt.Sprintf("events up to %d were pruned; the chain is checked from there", seq))
	}
	v.floor = seq
	for key, a := range v.must {
		if a.at <= seq {
			delete(v.must, key) // what is there still was anchored again
		}
	}
	if v.at < seq {
		v.at, v.stored, v.computed = seq, hash, hash
	}
	return nil
}

func lastEntry(ctx context.Context, q querier) (last int64, err error) {
	rows, err := q.QueryContext(ctx, "SELECT coalesce(max(seq), 0) FROM events")
	if err != nil {
		return 0, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := rows.Scan(&last); err != nil {
			return 0, err
		}
	}
	return last, rows.Err()
}

// lastKnown is the end of the chain as it was acknowledged.
func (l *Ledger) lastKnown() int64 {
	if l.told == nil {
		return 0
	}
	t, _ := l.told.read()
	return t.seq
}

// walk checks the entries of a range. Where one cannot be read, the range is
// halved until that one is found.
func (v *verification) walk(ctx context.Context, q querier, from, to int64) error {
	if from > to {
		return nil
	}
	err := eachEntry(ctx, q, from, to, v.entry)
	if err == nil {
		v.missing(to)
		return nil
	}
	if !isDamage(err) || ctx.Err() != nil {
		return err
	}
	from = max(from, v.at+1)
	if v.failures++; from == to || v.failures > maxFailures {
		v.lost(from, to, err)
		return nil
	}
	middle := from + (to-from)/2
	if err := v.walk(ctx, q, from, middle); err != nil {
		return err
	}
	return v.walk(ctx, q, max(middle+1, v.at+1), to)
}

// eachEntry calls each for the entries of a range, in order.
func eachEntry(ctx context.Context, q querier, from, to int64, each func(entry)) error {
	rows, err := q.QueryContext(ctx, "SELECT seq, schema, environment, body, prev, hash, rows FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq", from, to)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var e entry
	for rows.Next() {
		if err := rows.Scan(&e.seq, &e.schema, &e.environment, &e.body, &e.prev, &e.hash, &e.rows); err != nil {
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
		each(e)
	}
	return rows.Err()
}

// lost notes entries that cannot be read.
func (v *verification) lost(from, to int64, err error) {
	v.fault(span(from, to), []byte("unreadable"), "it cannot be read: %v", err)
	v.at, v.stored, v.computed = to, nil, nil
}

// missing notes that the entries up to a number are not there.
func (v *verification) missing(to int64) {
	if v.at < to {
		v.fault(span(v.at+1, to), []byte("missing"), "it is missing")
		v.at, v.stored, v.computed = to, nil, nil
	}
}

func span(from, to int64) string {
	if from == to {
		return fmt.Sprintf("event %d", from)
	}
	return fmt.Sprintf("events %d to %d", from, to)
}

// entry checks one entry against the one before it.
func (v *verification) entry(e entry) {
	v.missing(e.seq - 1)
	record := fmt.Sprintf("event %d", e.seq)
	before := v.stored
	if before == nil {
		before = v.computed
	}
	var sum [sha256.Size]byte
	switch {
	case e.schema == schemaWithPrev:
		sum = e.sum(e.prev)
		if before != nil && !bytes.Equal(e.prev, v.stored) && !bytes.Equal(e.prev, v.computed) {
			v.fault(record, e.evidence(), "it does not follow the event before it")
			break
		}
		v.content(record, e, sum)
	case before == nil: // what it follows is missing
		sum = [sha256.Size]byte(append(e.hash, make([]byte, sha256.Size)...))
	default:
		// Where the hash of the one before was damaged, this one still follows
		// from what that hash was.
		if sum = e.sum(v.stored); !bytes.Equal(sum[:], e.hash) {
			if other := e.sum(v.computed); bytes.Equal(other[:], e.hash) {
				sum = other
			}
		}
		v.content(record, e, sum)
	}
	v.note(e)
	v.failures = 0
	v.at, v.stored, v.computed = e.seq, bytes.Clone(e.hash), sum[:]
	v.report.Events++
	for _, w := range v.wants[e.seq] {
		if !bytes.Equal(e.hash, w.hash[:]) {
			v.fault(record, e.evidence(), "%s", w.problem)
		}
	}
	delete(v.wants, e.seq)
}

func (v *verification) content(record string, e entry, sum [sha256.Size]byte) {
	if !bytes.Equal(sum[:], e.hash) {
		v.fault(record, e.evidence(), "its content is not what was written")
	}
}

// evidence is all of an entry as it is stored.
func (e entry) evidence() []byte {
	sum := entry{seq: e.seq, schema: schemaWithRows, environment: e.environment, body: e.body, rows: e.rows}.sum(e.prev)
	return append(append(sum[:], e.hash...), byte(e.schema))
}

// note remembers what an entry says of rows.
func (v *verification) note(e entry) {
	for _, a := range anchors(e.rows) {
		key := string(a.kind) + a.key
		if a.final {
			delete(v.must, key)
			continue
		}
		v.must[key] = anchored{e.seq, a.digest}
	}
}

// rows walks what was added meanwhile and compares all rows, in one
// transaction.
func (v *verification) rows(ctx context.Context) error {
	tx, err := v.files.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	for end := false; !end; {
		if end, err = v.slice(ctx, tx); err != nil {
			return err
		}
	}
	v.expects = maps.Clone(v.must)
	for _, t := range v.l.tables.list() {
		if err := v.table(ctx, tx, t); err != nil {
			if !isDamage(err) || ctx.Err() != nil {
				return err
			}
			v.fault("table "+t.name, []byte(err.Error()), "it cannot be read: %v", err)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(v.must)) {
		for _, t := range v.l.tables.list() {
			if key[0] == t.kind {
				v.fault(t.record(key[1:]), []byte("missing"), "it is missing")
			}
		}
	}
	return nil
}

// table compares the rows of a table with the chain, and with their twins.
func (v *verification) table(ctx context.Context, tx *sql.Tx, t *table) error {
	twins, err := v.twins(ctx, tx, t.twin)
	if err != nil {
		return err
	}
	err = eachRow(ctx, tx, t, "", nil, func(r row) {
		v.report.Rows++
		key := string(t.kind) + r.key()
		expected, alive := v.must[key]
		delete(v.must, key)
		twin := twins[r.key()]
		delete(twins, r.key())
		switch sum := r.sum(); {
		case !r.intact():
			v.fault(r.String(), evidence(r), "its content is not what was written")
		case r.final() && alive, !r.final() && (!alive || expected.digest != sum || expected.at != r.anchor):
			v.fault(r.String(), evidence(r), "it is not what was written last")
		case r.final():
			v.ended = append(v.ended, row{table: t, values: r.values[:t.keys], anchor: r.anchor, digest: r.digest})
		case t.twin != nil && !bytes.Equal(twin.digest, r.digest):
			v.fault("the copy of "+r.String(), twin.evidence, "its content is not what was written")
		}
	})
	for _, key := range slices.Sorted(maps.Keys(twins)) {
		delete(v.must, string(t.kind)+key)
		v.fault(t.record(key), []byte("missing"), "it is missing")
	}
	if err != nil {
		return err
	}
	slices.SortFunc(v.ended, func(a, b row) int { return cmp.Compare(a.anchor, b.anchor) })
	for _, r := range v.ended {
		if !v.anchors(ctx, tx, r) {
			v.fault(r.String(), evidence(r), "it is not what was written last")
		}
	}
	v.ended, v.held = nil, nil
	return nil
}

// twin is what is looked at of a row of a second table.
type twin struct{ digest, evidence []byte } // no digest when it is damaged

func (v *verification) twins(ctx context.Context, tx *sql.Tx, t *table) (map[string]twin, error) {
	out := map[string]twin{}
	if t == nil {
		return out, nil
	}
	err := eachRow(ctx, tx, t, "", nil, func(r row) {
		one := twin{digest: r.digest}
		if !r.intact() {
			one = twin{evidence: evidence(r)}
		}
		out[r.key()] = one
	})
	if err != nil && isDamage(err) {
		v.fault("table "+t.name, []byte(err.Error()), "it cannot be read: %v", err)
		err = nil
	}
	return out, err
}

// evidence is all of a row as it is stored.
func evidence(r row) []byte {
	b, _ := json.Marshal([]any{r.values, r.anchor, r.digest})
	return b
}

// anchors says whether the entry that a final row names holds its digest.
func (v *verification) anchors(ctx context.Context, tx *sql.Tx, r row) bool {
	if v.held == nil || v.holder != r.anchor {
		var stored []byte
		err := tx.QueryRowContext(ctx, "SELECT rows FROM events WHERE seq = ?", r.anchor).Scan(&stored)
		if err != nil {
			// One that is being pruned goes with its row.
			return errors.Is(err, sql.ErrNoRows) && r.anchor <= v.floor
		}
		v.holder, v.held = r.anchor, map[string][sha256.Size]byte{}
		for _, a := range anchors(stored) {
			v.held[string(a.kind)+a.key] = a.digest
		}
	}
	digest, ok := v.held[string(r.table.kind)+r.key()]
	return ok && bytes.Equal(digest[:], r.digest)
}

// structure asks SQLite whether the file's own structure holds.
func (v *verification) structure(ctx context.Context) error {
	rows, err := v.files.read.QueryContext(ctx, "PRAGMA integrity_check(20)")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return err
		}
		if line != "ok" {
			v.fault("database", []byte(line), "%s", line)
		}
	}
	return rows.Err()
}

// missed reports the wanted entries that were not walked.
func (v *verification) missed() {
	for _, seq := range slices.Sorted(maps.Keys(v.wants)) {
		if seq <= v.floor {
			v.report.Notes = append(v.report.Notes, fmt.Sprintf("event %d was pruned, so nothing can be said of its hash", seq))
			continue
		}
		for _, w := range v.wants[seq] {
			v.fault(fmt.Sprintf("event %d", seq), []byte("missing"), "%s", w.missing)
		}
	}
}
