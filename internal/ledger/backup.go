package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kilnproject/kiln"
)

// Copy writes the ledger as it is at one moment into an empty folder, verifies
// all of the copy, and returns its path and what was found of it: no fault, else
// Copy fails. What happens meanwhile is written, and not in it. A damaged ledger
// is not copied.
func (l *Ledger) Copy(ctx context.Context, dir string) (string, kiln.LedgerReport, error) {
	path := filepath.Join(dir, filepath.Base(l.path))
	report, err := l.copyInto(ctx, path)
	if err != nil {
		return "", report, explain("copy the ledger", noRoom(err))
	}
	return path, report, nil
}

func (l *Ledger) copyInto(ctx context.Context, path string) (report kiln.LedgerReport, err error) {
	if err := l.refusal(); err != nil {
		return report, err
	}
	if err := roomFor(l.path, filepath.Dir(path)); err != nil {
		return report, err
	}
	// SQLite takes an empty file, and keeps its mode.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return report, err
	}
	if err := f.Close(); err != nil {
		return report, err
	}
	from, err := l.pool(1, false)
	if err != nil {
		return report, err
	}
	_, err = from.ExecContext(ctx, "VACUUM INTO ?", path)
	if err := errors.Join(err, from.Close()); err != nil {
		return report, err
	}
	made, err := Examine(ctx, path)
	if err != nil {
		return report, err
	}
	report, err = made.Verify(ctx, "")
	if err := errors.Join(err, made.Close(), remove(path+".tip")); err != nil {
		return report, err
	}
	if len(report.Faults) > 0 {
		return report, fmt.Errorf("the copy is not what was written: %w", damaged(report.Faults[0].Record))
	}
	return report, nil
}
