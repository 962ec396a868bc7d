package ledger

import (
	"context"
	"database/sql"
	"errors"

	"github.com/kilnproject/kiln"
)

// ReleasesBefore lists at most limit releases of an environment, the newest
// first: those below a number, or with 0 from the newest on.
func (l *Ledger) ReleasesBefore(ctx context.Context, environment string, below, limit int) ([]kiln.Release, error) {
	if below > 0 {
		return l.releases(ctx, "WHERE environment = ? AND number < ? ORDER BY number DESC LIMIT ?", environment, below, limit)
	}
	return l.releases(ctx, "WHERE environment = ? ORDER BY number DESC LIMIT ?", environment, limit)
}

// AllBut returns the sequence after which the newest so many events are, of
// one environment or, with "", of all: 0 when there are fewer.
func (l *Ledger) AllBut(ctx context.Context, environment string, newest int) (int64, error) {
	where, args := told(environment)
	var after int64
	err := l.files().read.QueryRowContext(ctx,
		"SELECT seq FROM events WHERE "+where+" ORDER BY seq DESC LIMIT 1 OFFSET ?", append(args, newest)...).Scan(&after)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return after, l.noticed("read events", err)
}
