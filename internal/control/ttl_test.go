package control

import (
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// previewTTL is long beside the pauses between looks, and short enough for every
// look in it to be had in a test.
const previewTTL = 6 * time.Hour

// preview is a shop that ends by itself.
func preview(version string) app {
	a := shop("preview-x", version)
	a.Environment.TTL = previewTTL
	return a
}

func TestAnEnvironmentEndsItsTTLAfterTheLastRelease(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.mustUp(preview("1"))
		b.settled()
		kilntest.Pass(previewTTL - time.Hour)
		b.mustUp(preview("2"))
		b.settled()
		b.halt() // a restart does not begin anew
		b.start()
		kilntest.Pass(previewTTL - time.Hour)
		b.settled()
		b.wantRunning("preview-x", map[string]int{"web 2": 3, "orders 2": 2, "mailer 2": 1})
		kilntest.Pass(2 * time.Hour)
		b.settled()
		b.wantRunning("preview-x", nil)
		b.wantStates("preview-x", kiln.ReleaseRetired, kiln.ReleaseRetired)
		told := 0
		check(t, b.Events(t.Context(), EventQuery{Environment: "preview-x"}, func(e kiln.Event) error {
			if e.Kind == "environment.expired" {
				told++
			}
			return nil
		}))
		if told != 1 {
			t.Errorf("the end was told %d times", told)
		}
		b.wantStates("production", kiln.ReleaseLive)
		b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1})
		b.mustUp(preview("2"))
		b.settled()
		b.wantRunning("preview-x", map[string]int{"web 2": 3, "orders 2": 2, "mailer 2": 1})
	})
}

func TestARollbackIsAReleaseThatGoesLive(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(preview("1"))
		b.mustUp(preview("2"))
		b.settled()
		kilntest.Pass(previewTTL * 2 / 3)
		_, err := b.Rollback(t.Context(), RollbackRequest{Environment: "preview-x"}, nil)
		check(t, err)
		kilntest.Pass(previewTTL * 2 / 3)
		b.settled()
		b.wantRunning("preview-x", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1})
		kilntest.Pass(previewTTL/3 + time.Hour)
		b.settled()
		b.wantRunning("preview-x", nil)
	})
}

func TestAnotherTTLIsAnotherRelease(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(preview("1"))
		b.settled()
		longer := preview("1")
		longer.Environment.TTL = 3 * previewTTL
		if r, err := b.up(longer); err != nil || r.Nothing {
			t.Fatalf("%+v, %v", r, err)
		}
		kilntest.Pass(previewTTL + previewTTL/2)
		b.settled()
		b.wantStates("preview-x", kiln.ReleaseRetired, kiln.ReleaseLive)
	})
}
