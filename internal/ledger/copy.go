package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// copyTo writes a consistent copy of the ledger; an older copy of that name is
// replaced at the end.
func (l *Ledger) copyTo(ctx context.Context, path string) error {
	temporary := path + ".tmp"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("copy the ledger: %w", err)
	}
	if _, err := l.write.ExecContext(ctx, "VACUUM INTO ?", temporary); err != nil {
		return fmt.Errorf("copy the ledger: %w", err)
	}
	if err := syncPath(temporary); err != nil {
		return fmt.Errorf("copy the ledger: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("copy the ledger: %w", err)
	}
	return syncPath(filepath.Dir(path))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
