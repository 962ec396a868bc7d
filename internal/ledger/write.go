package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/kilnproject/kiln"
)

// maxGroup bounds the requests of one transaction.
const maxGroup = 256

// request is one caller's share of a transaction.
type request struct {
	do func(ctx context.Context, w *writing) error
	// alone is what is done instead, outside a transaction, while nothing is
	// written.
	alone func(ctx context.Context) error
	done  chan error
	lead  chan struct{} // closed when this caller must lead
}

// writing is a transaction: the rows that were put, and the events that go
// with them, become entries of the chain when append is called.
type writing struct {
	l      *Ledger
	tx     *sql.Tx
	stmts  map[string]*sql.Stmt
	rows   []byte // anchors of what was put
	events []kiln.Event
}

// update runs do in a transaction together with what others ask for at the
// same time: one of the callers leads and writes for all who wait. It returns
// once the transaction is on disk. A request whose do fails changes nothing
// and does not touch the others. While the ledger is damaged it is refused.
func (l *Ledger) update(ctx context.Context, do func(ctx context.Context, w *writing) error) error {
	return l.ask(ctx, &request{do: do})
}

// ask waits for its turn to lead, or until another one has done it.
func (l *Ledger) ask(ctx context.Context, r *request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.done, r.lead = make(chan error, 1), make(chan struct{})
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

// lead does for one group, which holds the leader's own request, and hands
// over to the first who came meanwhile.
func (l *Ledger) lead(ctx context.Context) {
	group := l.nextGroup()
	before := l.tip
	errs := make([]error, len(group))
	if alone := group[0].alone; alone != nil {
		errs[0] = alone(ctx)
	} else if err := l.writeGroup(ctx, group, errs); err != nil {
		l.tip = before
		for i := range errs {
			errs[i] = err
		}
	}
	grown := l.tip.seq != before.seq
	if grown && l.told != nil {
		l.told.write(l.tip)
	}

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

// nextGroup takes from the queue what goes into one transaction.
func (l *Ledger) nextGroup() []*request {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 1
	for l.queue[0].alone == nil && n < min(len(l.queue), maxGroup) && l.queue[n].alone == nil {
		n++
	}
	group := l.queue[:n:n]
	l.queue = append([]*request(nil), l.queue[n:]...)
	return group
}

func (l *Ledger) writeGroup(ctx context.Context, group []*request, errs []error) error {
	if err := l.refusal(); err != nil {
		return err
	}
	return l.transact(ctx, group, errs)
}

// transact runs a group in one transaction, each request behind a savepoint.
func (l *Ledger) transact(ctx context.Context, group []*request, errs []error) error {
	f := l.files()
	err := f.prepare(ctx, l.tables)
	if err != nil {
		return l.noticed("write to the ledger", err)
	}
	tx, err := f.write.BeginTx(ctx, nil)
	if err != nil {
		return l.noticed("write to the ledger", err)
	}
	w := &writing{l: l, tx: tx}
	for i, r := range group {
		before := l.tip
		if errs[i], err = w.guarded(ctx, r.do); err != nil {
			return l.noticed("write to the ledger", errors.Join(err, tx.Rollback()))
		}
		if errs[i] != nil {
			l.tip = before
		}
	}
	return l.noticed("write to the ledger", tx.Commit())
}

// guarded runs do behind a savepoint. The first error is do's, whose changes
// were taken back; the second is of the transaction as a whole.
func (w *writing) guarded(ctx context.Context, do func(context.Context, *writing) error) (own, all error) {
	if _, err := w.tx.ExecContext(ctx, "SAVEPOINT request"); err != nil {
		return nil, err
	}
	own = do(ctx, w)
	if own == nil {
		own = w.append(ctx)
	}
	w.rows, w.events = nil, nil
	if own != nil {
		if _, err := w.tx.ExecContext(ctx, "ROLLBACK TO request"); err != nil {
			return nil, fmt.Errorf("%w (after: %w)", err, own)
		}
	}
	_, err := w.tx.ExecContext(ctx, "RELEASE request")
	return w.l.noticed("write to the ledger", own), err
}

// statement is a prepared one.
func (w *writing) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	if s, ok := w.stmts[query]; ok {
		return s, nil
	}
	var s *sql.Stmt
	if ready, ok := w.l.files().prepared[query]; ok {
		s = w.tx.StmtContext(ctx, ready)
	} else {
		var err error
		if s, err = w.tx.PrepareContext(ctx, query); err != nil {
			return nil, err
		}
	}
	if w.stmts == nil {
		w.stmts = map[string]*sql.Stmt{}
	}
	w.stmts[query] = s
	return s, nil
}

// get reads a row by its key. One that is not what was written is an error:
// nothing is written over it.
func (w *writing) get(ctx context.Context, t *table, key ...any) (r row, found bool, err error) {
	s, err := w.statement(ctx, t.find) //nolint:sqlclosecheck // it is closed with the transaction
	if err != nil {
		return row{}, false, err
	}
	r, err = scanned(t, s.QueryRowContext(ctx, key...).Scan)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return row{}, false, nil
	case err != nil:
		return row{}, false, err
	case r.intact():
		return r, true, nil
	case t.twin != nil:
		w.l.found(r.fault())
		return w.get(ctx, t.twin, key...)
	}
	w.l.found(r.fault())
	return row{}, false, damaged(r.String())
}

// put writes a row, over one with the same key, in its place in the chain.
func (w *writing) put(ctx context.Context, t *table, values ...any) error {
	r := row{table: t, values: values, anchor: w.l.tip.seq + 1}
	sum := r.sum()
	for one := t; one != nil; one = one.twin {
		s, err := w.statement(ctx, one.put) //nolint:sqlclosecheck // it is closed with the transaction
		if err != nil {
			return err
		}
		if _, err := s.ExecContext(ctx, append(values[:len(values):len(values)], r.anchor, sum[:])...); err != nil {
			return err
		}
	}
	w.rows = appendAnchor(w.rows, anchor{kind: t.kind, final: r.final(), key: r.key(), digest: sum})
	return nil
}

// gone tells the chain that a row is no more and is not missed.
func (w *writing) gone(t *table, key string) {
	w.rows = appendAnchor(w.rows, anchor{kind: t.kind, final: true, key: key})
}
