package local_test

import (
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
)

func TestStartsProbesRoutesAndStops(t *testing.T) {
	b := newBed(t)
	f := web(2)
	o := b.ready(f)
	table := b.gateway.wait(t, "traffic", func(t kiln.Traffic) bool { return len(t.Fleets[f.ID()]) == 2 })
	if len(table.DNS) != 1 {
		t.Errorf("zones: %+v", table.DNS)
	}
	for _, i := range o.Fleets[0].Instances {
		if got := get(t, i, "/env"); !strings.Contains(got, "1000 1000 ") || !strings.Contains(got, "WHO=image") {
			t.Errorf("%s says %s", i.ID, got)
		}
	}
	b.apply()
	b.wait("the end", func(kiln.Observation) bool { return b.empty("test") })
	b.gateway.wait(t, "no traffic", func(t kiln.Traffic) bool { return len(t.Fleets) == 0 })
}
