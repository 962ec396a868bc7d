package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/kilnproject/kiln"
)

// acknowledgement is what a caller was told is on the disk.
type acknowledgement struct {
	after int    // as many operations
	tip   []byte // of the file beside the ledger at that time
	event string // its subject
	// release is one that stands in a state since then.
	release *kiln.ReleaseMark
}

// history records a ledger's whole life: it begins as an older version left
// it, is opened, migrated, written by several at once, pruned, closed, and
// opened again.
type history struct {
	t       *testing.T
	disk    *disk
	options options
	path    string
	begin   []byte // what was on the disk before

	mu    sync.Mutex
	acked []acknowledgement
}

func recordHistory(t *testing.T, synchronous string) *history {
	t.Helper()
	h := &history{t: t, disk: &disk{}, path: written(t, 2), options: standard()}
	h.options.vfs, h.options.synchronous, h.options.checkpoint = recordingVFS, synchronous, 30
	var err error
	h.begin, err = os.ReadFile(h.path)
	check(t, err)
	stop := record(h.disk)
	defer stop()
	for life := range 3 {
		l, err := open(t.Context(), h.path, h.options)
		check(t, err)
		var wg sync.WaitGroup
		for w := range 3 {
			wg.Go(func() { h.write(l, fmt.Sprintf("%d-%d", life, w), 12) })
		}
		wg.Wait()
		check(t, l.Prune(t.Context(), 60))
		h.write(l, fmt.Sprintf("%d-last", life), 5)
		check(t, l.Close())
	}
	return h
}

func (h *history) write(l *Ledger, name string, times int) {
	ctx := context.Background()
	for n := range times {
		e := event("p", n)
		e.Subject = fmt.Sprintf("%s-%d", name, n)
		one := kiln.Instance{ID: e.Subject, Environment: "p", State: kiln.InstanceReady}
		h.acknowledge(l, l.Commit(ctx, kiln.Record{Events: []kiln.Event{e}, Instances: []kiln.Instance{one}}), e.Subject, nil)
		if n%4 != 0 {
			continue
		}
		r, err := l.CreateRelease(ctx, kiln.Release{Environment: name, State: kiln.ReleasePending})
		h.acknowledge(l, err, "", &kiln.ReleaseMark{Environment: name, Number: r.Number, State: kiln.ReleasePending})
		m := kiln.ReleaseMark{Environment: name, Number: r.Number, State: kiln.ReleaseLive}
		h.acknowledge(l, l.Commit(ctx, kiln.Record{Marks: []kiln.ReleaseMark{m}}), "", &m)
	}
}

func (h *history) acknowledge(l *Ledger, err error, event string, release *kiln.ReleaseMark) {
	if err != nil {
		h.t.Error(err)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	tip, err := os.ReadFile(l.path + ".tip") // before the operations are counted: it is at most as new
	if err != nil {
		h.t.Error(err)
	}
	h.acked = append(h.acked, acknowledgement{h.disk.length(), tip, event, release})
}

// cut has the power go after so many operations, opens what is left, and says
// what is wrong with it.
func (h *history) cut(p *platter, after int, chance *rand.Rand) error {
	dir, err := os.MkdirTemp("", "cut")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := p.cut(dir, chance); err != nil {
		return err
	}
	path := filepath.Join(dir, filepath.Base(h.path))
	var told []acknowledgement
	for _, a := range h.acked {
		if a.after <= after {
			told = append(told, a)
		}
	}
	if len(told) > 0 {
		if err := os.WriteFile(path+".tip", told[len(told)-1].tip, 0o600); err != nil {
			return err
		}
	}
	quick := standard()
	quick.synchronous = "OFF" // this disk does not fail
	l, err := open(context.Background(), path, quick)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	return errors.Join(h.compare(l, told), l.Close())
}

func (h *history) compare(l *Ledger, told []acknowledgement) error {
	ctx := context.Background()
	report, err := l.Verify(ctx, "")
	if err != nil || len(report.Faults) > 0 {
		return fmt.Errorf("%w %v", err, report.Faults)
	}
	have := map[string]bool{}
	events, err := l.Events(ctx, "p", 0, 1_000_000)
	if err != nil {
		return err
	}
	for _, e := range events {
		have[e.Subject] = true
	}
	for _, a := range told {
		switch {
		case a.release != nil:
			r, err := l.Release(ctx, a.release.Environment, a.release.Number)
			if err != nil || a.release.State == kiln.ReleaseLive && r.State != a.release.State {
				return fmt.Errorf("release %+v: %+v, %w", a.release, r, err)
			}
		case !have[a.event]:
			// Its event may have been pruned; the instance is alive.
			if _, err := l.Instance(ctx, a.event); err != nil {
				return fmt.Errorf("%s was acknowledged: %w", a.event, err)
			}
		}
	}
	return nil
}

// cuts has the power go at random points, and returns what went wrong.
func (h *history) cuts(points int, seed uint64) []error {
	chance := rand.New(rand.NewPCG(seed, 0))
	after := make([]int, points)
	for i := range after {
		if after[i] = chance.IntN(len(h.disk.ops) + 1); i%2 == 0 { // just when somebody was told
			after[i] = h.acked[chance.IntN(len(h.acked))].after
		}
	}
	slices.Sort(after)
	p := &platter{files: map[string]*content{filepath.Base(h.path): {there: true, sure: h.begin}}}
	var out []error
	done := 0
	for _, n := range after {
		for ; done < n; done++ {
			p.do(h.disk.ops[done])
		}
		if err := h.cut(p, n, chance); err != nil {
			out = append(out, fmt.Errorf("after %d of %d operations: %w", n, len(h.disk.ops), err))
		}
	}
	return out
}

// TestAPowerCutLosesNothingAcknowledged cuts the power at random points: what
// was not synced is lost, kept, or torn at sectors, in any order. KILN_POWER_CUTS
// says at how many points, KILN_POWER_SEED replays.
func TestAPowerCutLosesNothingAcknowledged(t *testing.T) {
	points, seed := few(100), rand.Uint64()
	if n, err := strconv.Atoi(os.Getenv("KILN_POWER_CUTS")); err == nil {
		points = n
	}
	if n, err := strconv.ParseUint(os.Getenv("KILN_POWER_SEED"), 10, 64); err == nil {
		seed = n
	}
	h := recordHistory(t, "FULL")
	t.Logf("%d operations, %d acknowledgements, %d points, KILN_POWER_SEED=%d", len(h.disk.ops), len(h.acked), points, seed)
	for _, err := range h.cuts(points, seed) {
		t.Error(err)
	}
}

// TestThePowerCutBites: a ledger that does not sync, or not each transaction,
// loses something.
func TestThePowerCutBites(t *testing.T) {
	for _, synchronous := range []string{"OFF", "NORMAL"} {
		if h := recordHistory(t, synchronous); len(h.cuts(20, 1)) == 0 {
			t.Errorf("synchronous=%s lost nothing", synchronous)
		}
	}
}
