package main

import (
	"github.com/kilnproject/kiln/test/rig"
)

// benchUpgrade goes back and forth between two versions of Kiln itself under
// load.
func benchUpgrade(b *bench) {
	r := rig.NewApart(b)
	r.App()
	define(r, "v1", 3)
	up(r)
	folders := []string{r.Build("0.2.0-rig"), r.Build(rig.Version)}
	before := pids(r)
	failed, sent := 0, 0
	for i := range 6 {
		report := underLoad(r, 500, func() { r.Kiln("upgrade", "--from", folders[i%2]) })
		failed += report.Failed
		sent += report.Sent
		b.Logf("run %d: %s", i+1, report)
	}
	b.judge(failed == 0, "upgrade of Kiln: failed GETs at 500 a second", "0", "%d of %d", failed, sent)
	touched := 0
	for pid := range pids(r) {
		if !before[pid] {
			touched++
		}
	}
	b.judge(touched == 0, "upgrade of Kiln: instances that were replaced", "0", "%d of %d", touched, len(before))
}

func pids(r *rig.Rig) map[int]bool {
	out := map[int]bool{}
	for _, i := range ready(r) {
		out[i.PID] = true
	}
	return out
}
