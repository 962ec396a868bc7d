package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// maxGroup bounds the requests of one transaction.
const maxGroup = 256

// request is one caller's share of a transaction.
type request struct {
	do   func(ctx context.Context, tx *sql.Tx) error
	done chan error
	lead chan struct{} // closed when this caller must lead
}

// update runs do in a transaction together with what others ask for at the
// same time: one of the callers leads and writes for all who wait. It returns
// once the transaction is on disk. A request whose do fails changes nothing
// and does not touch the others.
func (l *Ledger) update(ctx context.Context, do func(ctx context.Context, tx *sql.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{do: do, done: make(chan error, 1), lead: make(chan struct{})}
	l.mu.Lock()
	l.queue = append(l.queue, r)
	if !l.leading {
		l.leading = true
		close(r.lead)
	}
	l.mu.Unlock()
	select {
	case err := <-r.done:
		return err
	case <-r.lead:
	}
	l.lead(context.WithoutCancel(ctx))
	return <-r.done
}

// lead writes one group, which holds the leader's own request, and hands over
// to the first who came meanwhile.
func (l *Ledger) lead(ctx context.Context) {
	l.mu.Lock()
	n := min(len(l.queue), maxGroup)
	group := l.queue[:n:n]
	l.queue = append([]*request(nil), l.queue[n:]...)
	l.mu.Unlock()

	before := l.tip
	errs := make([]error, len(group))
	if err := l.transact(ctx, group, errs); err != nil {
		l.tip = before
		for i := range errs {
			errs[i] = err
		}
	}
	grown := l.tip.seq != before.seq

	l.mu.Lock()
	if len(l.queue) > 0 {
		close(l.queue[0].lead)
	} else {
		l.leading = false
	}
	if grown {
		l.notify()
	}
	l.mu.Unlock()
	for i, r := range group {
		r.done <- errs[i]
	}
}

// transact runs a group in one transaction, each request behind a savepoint.
func (l *Ledger) transact(ctx context.Context, group []*request, errs []error) error {
	tx, err := l.write.BeginTx(ctx, nil)
	if err != nil {
		return explain("write to the ledger", err)
	}
	for i, r := range group {
		before := l.tip
		if errs[i], err = guarded(ctx, tx, r.do); err != nil {
			return explain("write to the ledger", errors.Join(err, tx.Rollback()))
		}
		if errs[i] != nil {
			l.tip = before
		}
	}
	return explain("write to the ledger", tx.Commit())
}

// guarded runs do behind a savepoint. The first error is do's, whose changes
// were taken back; the second is of the transaction as a whole.
func guarded(ctx context.Context, tx *sql.Tx, do func(context.Context, *sql.Tx) error) (own, all error) {
	if _, err := tx.ExecContext(ctx, "SAVEPOINT request"); err != nil {
		return nil, err
	}
	own = do(ctx, tx)
	if own != nil {
		if _, err := tx.ExecContext(ctx, "ROLLBACK TO request"); err != nil {
			return nil, fmt.Errorf("%w (after: %w)", err, own)
		}
	}
	_, err := tx.ExecContext(ctx, "RELEASE request")
	return explain("write to the ledger", own), err
}
