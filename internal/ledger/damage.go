package ledger

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
)

// maxFaults bounds the list of what is damaged.
const maxFaults = 100

// wayOut is what to do about damage.
const wayOut = "kiln ledger verify lists all of it; then restore a backup, or go on without the damaged records: kiln ledger accept"

// damage is what was found not to be what was written.
type damage struct {
	mu     sync.Mutex
	faults []kiln.LedgerFault // the first maxFaults, each record once
	// news has a token when there are more of them.
	news chan struct{}
	// checking is closed while no first verification runs or is about to.
	checking chan struct{}
}

func newDamage() damage {
	idle := make(chan struct{})
	close(idle)
	return damage{news: make(chan struct{}, 1), checking: idle}
}

// first is closed once the first verification has ended.
func (d *damage) first() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.checking
}

// found notes damage. From then on nothing is written.
func (l *Ledger) found(faults ...kiln.LedgerFault) {
	d := &l.damage
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range faults {
		same := func(one kiln.LedgerFault) bool { return one.Record == f.Record }
		if len(d.faults) == maxFaults || slices.ContainsFunc(d.faults, same) {
			continue
		}
		d.faults = append(d.faults, f)
		select {
		case d.news <- struct{}{}:
		default:
		}
	}
}

// noticed is explain for an error that may be damage.
func (l *Ledger) noticed(doing string, err error) error {
	if err != nil && isDamage(err) {
		l.found(kiln.LedgerFault{Record: "database", Problem: err.Error()})
	}
	return explain(doing, err)
}

// Damage lists the records that were found not to be what was written, the
// first 100; none of a ledger that is sound as far as it is known.
func (l *Ledger) Damage() []kiln.LedgerFault {
	l.damage.mu.Lock()
	defer l.damage.mu.Unlock()
	return slices.Clone(l.damage.faults)
}

// refusal is why nothing is written; nil when there is no damage.
func (l *Ledger) refusal() error {
	faults := l.Damage()
	if len(faults) == 0 {
		return nil
	}
	more := ""
	if len(faults) > 1 {
		more = fmt.Sprintf(" and %d more", len(faults)-1)
	}
	return kiln.Errorf(kiln.CodeRefused, wayOut,
		"the ledger is damaged (%s: %s%s), and no history is written over it", faults[0].Record, faults[0].Problem, more)
}

// checkPatience is how long Writable waits for the first verification. A small
// ledger takes a fraction of it; who rolls back on a large one, in the first
// moments after a start, does not wait for the end.
const checkPatience = 3 * time.Second

// Writable says why no history is written at present: what is damaged. Soon
// after a start it waits for the verification that runs then, for three
// seconds at most.
func (l *Ledger) Writable(ctx context.Context) error {
	timer := time.NewTimer(checkPatience)
	defer timer.Stop()
	select {
	case <-l.damage.first():
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return l.refusal()
}

// willCheck says that a first verification is about to run.
func (l *Ledger) willCheck() {
	l.damage.mu.Lock()
	defer l.damage.mu.Unlock()
	l.damage.checking = make(chan struct{})
}

// checked says that the whole was verified.
func (l *Ledger) checked() {
	l.damage.mu.Lock()
	defer l.damage.mu.Unlock()
	select {
	case <-l.damage.checking:
	default:
		close(l.damage.checking)
	}
}

// mended forgets what was found.
func (l *Ledger) mended() {
	l.damage.mu.Lock()
	defer l.damage.mu.Unlock()
	l.damage.faults = nil
}

// damaged is the error for a record that cannot be what was written.
func damaged(record string) error {
	return kiln.Errorf(kiln.CodeRefused, wayOut, "%s of the ledger is damaged: %w", record, errDamaged)
}
