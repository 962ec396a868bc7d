package control

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

func (b *bench) count(kind string) (n int) {
	for _, k := range b.kinds() {
		if k == kind {
			n++
		}
	}
	return n
}

func TestATamperedBundleIsNotRolledOut(t *testing.T) {
	p := &prover{}
	proving(t, p, func(t *testing.T, b *bench) {
		first := b.mustUp(shop("production", "1"))
		b.mustUp(shop("production", "2"))
		b.settled()
		live, calls := b.running("production"), len(b.engine.Calls())
		p.tamper(first.Release.Bundle, true)
		_, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production"}, nil)
		if !errors.Is(err, &kiln.Error{Code: kiln.CodeRefused}) || !strings.Contains(err.Error(), "nothing of production/1 starts") {
			t.Fatalf("rollback to a tampered release: %v", err)
		}
		b.settled()
		b.wantRunning("production", live)
		b.wantStates("production", kiln.ReleaseParked, kiln.ReleaseLive)
		if got := len(b.engine.Calls()); got != calls {
			t.Errorf("the engine was asked for %d things", got-calls)
		}
		if !slices.Contains(b.kinds(), "release.refused") {
			t.Errorf("the history does not tell: %v", b.kinds())
		}
		p.tamper(first.Release.Bundle, false)
		_, err = b.Rollback(t.Context(), RollbackRequest{Environment: "production"}, nil)
		check(t, err)
	})
}

func TestATamperedBundleEndsNothingThatRuns(t *testing.T) {
	p := &prover{}
	proving(t, p, func(t *testing.T, b *bench) {
		first := b.mustUp(shop("production", "1"))
		b.settled()
		live := b.running("production")
		b.halt()
		p.tamper(first.Release.Bundle, true)
		b.start()
		kilntest.Pass(5 * time.Minute)
		b.wantRunning("production", live)
		if n := b.count("release.refused"); n != 1 {
			t.Errorf("it was told %d times", n)
		}
		status, err := b.Status(t.Context())
		check(t, err)
		if p := status.Environments[0].Problems; len(p) != 1 || !strings.Contains(p[0], "changed after it was signed") {
			t.Errorf("problems: %q", p)
		}
		p.tamper(first.Release.Bundle, false)
		kilntest.Pass(time.Minute)
		if status, err = b.Status(t.Context()); err != nil || len(status.Environments[0].Problems) != 0 {
			t.Errorf("after it was mended: %v, %v", status.Environments[0].Problems, err)
		}
	})
}
