package gateway

import (
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// TestTheSumOfLatenciesStays: a histogram needs it, also of instances that left.
func TestTheSumOfLatenciesStays(t *testing.T) {
	r := newRegistry()
	f, members := r.enter("e/web/1", []kiln.Endpoint{{Instance: "web-1"}})
	members[0].stats.answered(200, 2*time.Second, 0, 0)
	members[0].stats.answered(200, -time.Second, 0, 0) // a clock that went back takes nothing away
	members[0].stats.failed()
	for _, left := range []bool{false, true} {
		if left {
			r.depart(kiln.Traffic{Fleets: map[kiln.FleetID][]kiln.Endpoint{f.id: nil}}, time.Now())
		}
		sum := r.measure()[0]
		if sum.Instance != "" || sum.Took != 2*time.Second || sum.Requests != 3 {
			t.Errorf("left %v: %+v", left, sum)
		}
	}
}

func TestConnectionsAreCounted(t *testing.T) {
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.set()
	count := func(want int) {
		t.Helper()
		for {
			ready, err := r.client.Ready(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if ready.Connections == want {
				return
			}
		}
	}
	count(0)
	c := dial(t, address)
	count(1)
	c.Close()
	count(0)
}
