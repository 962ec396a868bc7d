package ledger

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestACopyIsOneMoment is taken while the ledger is written.
func TestACopyIsOneMoment(t *testing.T) {
	l := lived(t, filepath.Join(t.TempDir(), "ledger.db"))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			if err := l.Append(ctx, event("p", n)); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	for range 3 {
		path, report, err := l.Copy(t.Context(), t.TempDir())
		check(t, err)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		if left, _ := filepath.Glob(path + "?*"); len(left) > 0 {
			t.Errorf("beside the copy is %v", left)
		}
		copied := openAt(t, path)
		if r := sound(t, copied); r.Tip != report.Tip {
			t.Errorf("tip %s, not %s", r.Tip, report.Tip)
		}
		check(t, copied.Close())
		// The history went on through it.
		if r, err := l.Verify(t.Context(), report.Tip); err != nil || len(r.Faults) > 0 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	stop()
	wg.Wait()
}

func TestADamagedLedgerIsNotCopied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := lived(t, path)
	check(t, l.Close())
	flip(t, path, `"subject":"web-11"`)
	l = openAt(t, path)
	if _, _, err := l.Copy(t.Context(), t.TempDir()); !isRefusal(err) {
		t.Errorf("before it is known to be damaged: %v", err)
	}
	_ = faultsOf(t, l)
	if _, _, err := l.Copy(t.Context(), t.TempDir()); !isRefusal(err) {
		t.Errorf("after that: %v", err)
	}
}
