package control

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// TestAClockThatJumpsEndsNothingAndKeepsNothing sets the clock of the wall by
// hours, before and after a restart: releases are parked, and environments
// live, for as long as they should.
func TestAClockThatJumpsEndsNothingAndKeepsNothing(t *testing.T) {
	for _, jump := range []time.Duration{time.Hour, -1000 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			onBench(t, func(_ *testing.T, b *bench) {
				var offset atomic.Int64
				b.halt()
				b.clock = func() time.Time { return time.Now().Round(0).Add(time.Duration(offset.Load())) } // without the clock that does not jump
				b.start()
				b.mustUp(preview("1"))
				b.mustUp(preview("2"))
				b.settled()
				b.halt() // what it knows now is from the ledger
				b.start()
				b.settled()
				kilntest.Pass(time.Minute)
				offset.Store(int64(jump))
				kilntest.Pass(28 * time.Minute)
				b.settled()
				b.wantStates("preview-x", kiln.ReleaseParked, kiln.ReleaseLive)
				kilntest.Pass(2 * time.Minute)
				b.settled()
				b.wantStates("preview-x", kiln.ReleaseRetired, kiln.ReleaseLive)
				kilntest.Pass(previewTTL - time.Hour)
				b.settled()
				b.wantStates("preview-x", kiln.ReleaseRetired, kiln.ReleaseLive)
				kilntest.Pass(time.Hour)
				b.settled()
				b.wantStates("preview-x", kiln.ReleaseRetired, kiln.ReleaseRetired)
			})
		})
	}
}

// TestAClockThatWasSetBackWhileNobodyRanKeepsNothingForLonger restarts with a
// clock of long ago, as a machine without a battery has.
func TestAClockThatWasSetBackWhileNobodyRanKeepsNothingForLonger(t *testing.T) {
	onBench(t, func(_ *testing.T, b *bench) {
		b.mustUp(preview("1"))
		b.mustUp(preview("2"))
		b.settled()
		b.halt()
		b.clock = func() time.Time { return time.Now().Add(-10000 * time.Hour) }
		b.start()
		kilntest.Pass(31 * time.Minute)
		b.settled()
		b.wantStates("preview-x", kiln.ReleaseRetired, kiln.ReleaseLive)
		kilntest.Pass(previewTTL)
		b.settled()
		b.wantStates("preview-x", kiln.ReleaseRetired, kiln.ReleaseRetired)
	})
}
