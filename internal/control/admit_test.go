package control

import (
	"context"
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

// examiner finds what it is told to.
type examiner struct {
	holds    bool
	from, to kiln.ReleaseName
}

func (e *examiner) Verify(_ context.Context, r kiln.Release, _ bool, _ func(kiln.Progress)) (kiln.ReleaseProof, error) {
	p := kiln.ReleaseProof{Environment: r.Environment, Release: r.Number, Bundle: r.Bundle, Holds: e.holds}
	if !e.holds {
		p.Checks = []kiln.Check{{Subject: "web", Kind: kiln.CheckSignature, Outcome: kiln.OutcomeFail, Detail: "changed"}}
	}
	return p, nil
}

func (e *examiner) Diff(_ context.Context, from, to kiln.ReleaseName) (kiln.ReleaseDiff, error) {
	e.from, e.to = from, to
	return kiln.ReleaseDiff{From: from, To: to}, nil
}

func (e *examiner) Preview(_ context.Context, _ kiln.Digest, to []kiln.BundleImage) ([]kiln.ImageChange, error) {
	return []kiln.ImageChange{{Name: to[0].Name}}, nil
}

func TestReleasesAreExamined(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.mustUp(shop("production", "2"))
		b.settled()
		e := &examiner{holds: true}
		b.examiner = e
		proof, err := b.VerifyRelease(t.Context(), ProofRequest{Environment: "production"}, nil)
		if err != nil || proof.Release != 2 || slices.Contains(b.kinds(), "release.doubted") {
			t.Errorf("%+v, %v, %v", proof, err, b.kinds())
		}
		e.holds = false
		if proof, err = b.VerifyRelease(t.Context(), ProofRequest{Environment: "production", Release: 1}, nil); err != nil || proof.Release != 1 || !slices.Contains(b.kinds(), "release.doubted") {
			t.Errorf("%+v, %v, %v", proof, err, b.kinds())
		}
		_, err = b.DiffReleases(t.Context(), DiffRequest{To: ReleaseAsked{Environment: "production"}})
		if err != nil || e.from.Release != 1 || e.to.Release != 2 {
			t.Errorf("%+v to %+v, %v", e.from, e.to, err)
		}
		_, err = b.DiffReleases(t.Context(), DiffRequest{To: ReleaseAsked{"production", 1}})
		if !errors.Is(err, kiln.ErrNotFound) {
			t.Errorf("before the first: %v", err)
		}
		_, err = b.DiffReleases(t.Context(), DiffRequest{From: ReleaseAsked{"staging", 1}, To: ReleaseAsked{"production", 1}, Reach: kiln.Reach{"production"}})
		if !errors.Is(err, &kiln.Error{Code: kiln.CodeRefused}) {
			t.Errorf("out of reach: %v", err)
		}
		plan, err := b.Plan(t.Context(), shop("production", "3").request())
		if err != nil || len(plan.Images) != 1 {
			t.Errorf("%+v, %v", plan.Images, err)
		}
	})
}
