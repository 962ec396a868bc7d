package ledger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

const (
	// asideSuffix is that of the file that was damaged, kept as it was.
	asideSuffix = ".damaged"
	// freshSuffix is that of a file that holds all that could be read, and is
	// whole: it is to take the place of the damaged one.
	freshSuffix = ".accepted"
	// namedRecords is how many records the event of an acceptance names.
	namedRecords = 20
)

// Accept goes on after damage: what can be read becomes a new file, and what
// cannot is given up. Damaged entries of the chain stay as they are and are
// known from then on; damaged releases come from their copies, other damaged
// rows go. The chain tells who accepted what. The damaged file is kept beside
// the new one. With a digest, of a report, nothing is done unless the damage
// is still that one.
func (l *Ledger) Accept(ctx context.Context, actor string, damage kiln.Digest) (report kiln.LedgerReport, err error) {
	err = l.ask(ctx, &request{alone: func(ctx context.Context) error {
		report, err = l.accept(ctx, actor, damage)
		return err
	}})
	return report, err
}

func (l *Ledger) accept(ctx context.Context, actor string, damage kiln.Digest) (kiln.LedgerReport, error) {
	l.verifying <- struct{}{} // a verification that runs ends first
	defer func() { <-l.verifying }()
	found, err := l.inspect(ctx, "", func(time.Duration) {})
	if err != nil {
		return kiln.LedgerReport{}, err
	}
	s := &salvage{from: l, actor: actor, found: found}
	report := found.report
	switch {
	case found.unreadable:
		return report, s.nothing()
	case len(report.Faults) == 0 && len(l.Damage()) == 0:
		return report, kiln.Errorf(kiln.CodeConflict, "", "the ledger is sound: there is nothing to accept")
	case damage != "" && damage != report.Damage:
		return report, kiln.Errorf(kiln.CodeConflict, "look again: kiln ledger verify", "the damage is not the one that was looked at")
	}
	if err := roomFor(l.path, filepath.Dir(l.path)); err != nil {
		return report, err
	}
	if err := s.build(ctx); err != nil {
		return report, fmt.Errorf("write down what can be read: %w", noRoom(err))
	}
	return report, l.swap(ctx)
}

// swap puts the new file in the place of the damaged one.
func (l *Ledger) swap(ctx context.Context) error {
	_ = l.files().close() // a damaged file may not close well
	err := setAside(l.path)
	if err == nil {
		err = finishSwap(l.path)
	}
	if err = errors.Join(err, l.connect()); err != nil {
		return err
	}
	t, err := readTip(ctx, l.files().write)
	if err != nil {
		return err
	}
	l.tip = t
	if l.told != nil {
		l.told.write(t)
	}
	l.mended()
	return nil
}

// setAside keeps the damaged file, and its log, under another name.
func setAside(path string) error {
	for _, suffix := range []string{"", "-wal"} {
		to := path + asideSuffix + suffix
		if err := remove(to); err != nil {
			return err
		}
		if err := os.Link(path+suffix, to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// finishSwap takes the new file that an acceptance has made, if there is one.
func finishSwap(path string) error {
	if !exists(path + freshSuffix) {
		return nil
	}
	// A log of the damaged file must never be applied to the new one.
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := remove(path + suffix); err != nil {
			return err
		}
	}
	if err := os.Rename(path+freshSuffix, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}

// salvage makes a new file of what can be read of a damaged one.
type salvage struct {
	from     *Ledger
	actor    string
	found    *verification
	to       *Ledger
	entries  int64
	rows     int
	failures int
}

// build makes the new file, whole and synced, under its final suffix.
func (s *salvage) build(ctx context.Context) error {
	path := s.from.path + freshSuffix + ".tmp"
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := remove(path + suffix); err != nil {
			return err
		}
	}
	o := s.from.opts
	o.synchronous, o.salvage, o.asItIs = "OFF", true, false // it is synced at the end
	to, err := open(ctx, path, o)
	if err != nil {
		return err
	}
	s.to = to
	err = s.fill(ctx)
	if err = errors.Join(err, to.Close()); err != nil {
		return errors.Join(err, remove(path))
	}
	if err := syncPath(path); err != nil {
		return err
	}
	if err := os.Rename(path, s.from.path+freshSuffix); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}

func (s *salvage) fill(ctx context.Context) error {
	if err := s.copyChain(ctx); err != nil {
		return err
	}
	var err error
	if s.to.tip, err = readTip(ctx, s.to.files().write); err != nil {
		return err
	}
	for _, t := range s.from.tables.list() {
		if err := s.copyTable(ctx, t); err != nil {
			return err
		}
	}
	if s.entries == 0 && s.rows == 0 {
		return s.nothing()
	}
	if err := s.settleRows(ctx); err != nil {
		return err
	}
	return s.tell(ctx)
}

func (s *salvage) nothing() error {
	return kiln.Errorf(kiln.CodeRefused, "restore a backup; or begin with an empty history, in which nothing runs: end kilnd and move the folder "+filepath.Dir(s.from.path)+" away",
		"nothing of the ledger can be read")
}

// copyChain copies the entries as they are.
func (s *salvage) copyChain(ctx context.Context) error {
	last := s.found.at
	for from := s.found.floor + 1; from <= last; from += sliceSize {
		if err := s.copySlice(ctx, from, min(last, from+sliceSize-1)); err != nil {
			return err
		}
	}
	return nil
}

func (s *salvage) copySlice(ctx context.Context, from, to int64) (err error) {
	tx, err := s.to.files().write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = settle(tx, err) }()
	insert, err := tx.PrepareContext(ctx, "INSERT INTO events (seq, schema, environment, body, prev, hash, rows) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING")
	if err != nil {
		return err
	}
	var failed error
	put := func(e entry) {
		s.entries++
		if _, err := insert.ExecContext(ctx, e.seq, e.schema, string(e.environment), blob(e.body), blob(e.prev), blob(e.hash), blob(e.rows)); failed == nil {
			failed = err
		}
	}
	if err := s.readable(ctx, from, to, put); err != nil {
		return err
	}
	return failed
}

// readable calls put for the entries of a range that can be read.
func (s *salvage) readable(ctx context.Context, from, to int64, put func(entry)) error {
	last := from - 1
	err := eachEntry(ctx, s.from.files().read, from, to, func(e entry) {
		last, s.failures = e.seq, 0
		put(e)
	})
	if err == nil || !isDamage(err) || ctx.Err() != nil {
		return err
	}
	from = last + 1
	if s.failures++; from >= to || s.failures > maxFailures {
		return nil
	}
	middle := from + (to-from)/2
	return errors.Join(s.readable(ctx, from, middle, put), s.readable(ctx, middle+1, to, put))
}

// copyTable puts the best of what there is of each row into the new file.
func (s *salvage) copyTable(ctx context.Context, t *table) error {
	best, err := s.best(ctx, t)
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(slices.Collect(maps.Values(best)), batchSize) {
		if err := s.put(ctx, t, batch); err != nil {
			return err
		}
	}
	for key := range best {
		s.rows++
		delete(s.found.expects, string(t.kind)+key)
	}
	return nil
}

// best reads a table and its twin, and keeps of each row what the chain has of
// it, else one that is whole.
func (s *salvage) best(ctx context.Context, t *table) (map[string]row, error) {
	best := map[string]row{}
	for source := t; source != nil; source = source.twin {
		s.failures = 0
		err := s.scan(ctx, source, 0, math.MaxInt64, func(r row) {
			have, known := best[r.key()]
			if r.intact() && (!known || !s.expected(have) && s.expected(r)) {
				best[r.key()] = r
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return best, nil
}

// put writes rows into the new file.
func (s *salvage) put(ctx context.Context, t *table, batch []row) error {
	return s.to.update(ctx, func(ctx context.Context, w *writing) error {
		for _, r := range batch {
			if err := w.put(ctx, t, r.values...); err != nil {
				return err
			}
		}
		return nil
	})
}

// expected says whether a row is what the chain has of it.
func (s *salvage) expected(r row) bool {
	want, ok := s.found.expects[string(r.table.kind)+r.key()]
	return ok && want.digest == r.sum()
}

// scan calls each for the rows of a table that can be read.
func (s *salvage) scan(ctx context.Context, t *table, after, upTo int64, each func(row)) error {
	for after < upTo {
		batch, last, err := readBatch(ctx, s.from.files().read, t, after, upTo)
		for _, r := range batch {
			each(r)
			s.failures = 0
		}
		after = last
		switch {
		case err == nil && len(batch) < batchSize:
			return nil
		case err == nil:
			continue
		case !isDamage(err) || ctx.Err() != nil:
			return err
		}
		if s.failures++; upTo-after <= 1 || s.failures > maxFailures {
			return nil
		}
		middle := after + (upTo-after)/2
		if err := s.scan(ctx, t, after, middle, each); err != nil {
			return err
		}
		after = middle
	}
	return nil
}

// settleRows tells the chain which rows are no more, and sees that numbers of
// releases are not given twice.
func (s *salvage) settleRows(ctx context.Context) error {
	return s.to.update(ctx, func(ctx context.Context, w *writing) error {
		for key := range s.found.expects {
			for _, t := range s.to.tables.list() {
				if t.kind == key[0] {
					w.gone(t, key[1:])
				}
			}
		}
		highest, err := w.highest(ctx)
		if err != nil {
			return err
		}
		for name, number := range highest {
			if err := w.numberAbove(ctx, name, number); err != nil {
				return err
			}
		}
		return nil
	})
}

// highest are the highest numbers of releases, by environment.
func (w *writing) highest(ctx context.Context) (map[string]int64, error) {
	rows, err := w.tx.QueryContext(ctx, "SELECT environment, max(number) FROM releases GROUP BY environment")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what ended it early is in rows.Err
	highest := map[string]int64{}
	for rows.Next() {
		var name string
		var number int64
		if err := rows.Scan(&name, &number); err != nil {
			return nil, err
		}
		highest[name] = number
	}
	return highest, rows.Err()
}

// numberAbove sees that the next release of an environment has a number above
// another.
func (w *writing) numberAbove(ctx context.Context, name string, number int64) error {
	numbers := w.l.tables.numbers
	have, found, err := w.get(ctx, numbers, name)
	if err != nil || found && have.values[1].(int64) > number {
		return err
	}
	return w.put(ctx, numbers, name, number+1)
}

// tell writes down what is damaged in the new file, too, and who went on.
func (s *salvage) tell(ctx context.Context) error {
	left, err := s.to.inspect(ctx, "", func(time.Duration) {})
	if err != nil {
		return err
	}
	s.to.mended()
	return s.to.update(ctx, func(ctx context.Context, w *writing) error {
		for _, f := range left.list {
			if err := w.put(ctx, s.to.tables.accepted, f.record, f.fingerprint[:]); err != nil {
				return err
			}
		}
		w.events = []kiln.Event{s.event()}
		return nil
	})
}

// event says what was accepted.
func (s *salvage) event() kiln.Event {
	data := map[string]string{"damage": string(s.found.report.Damage)}
	var names []string
	faults := s.found.report.Faults
	if len(faults) == 0 {
		faults = s.from.Damage()
	}
	for i, f := range faults {
		if i == namedRecords {
			break
		}
		data[fmt.Sprintf("record_%02d", i+1)] = f.Record + ": " + f.Problem
		names = append(names, f.Record)
	}
	total := len(faults) + s.found.report.More
	text := strings.Join(names, ", ")
	if more := total - len(names); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return kiln.Event{
		At: time.Now().UTC(), Kind: "ledger.accepted", Subject: "ledger", Actor: s.actor, Data: data,
		Message: "damaged records of the ledger were given up or are kept as they are: " + text,
	}
}
