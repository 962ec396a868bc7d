package control

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnproject/kiln/internal/kilntest"
	"github.com/kilnproject/kiln/internal/ledger"
)

// BenchmarkRollback is from the command to the answer, and to the moment when
// the engine took the new table: ledger on a disk, engine in memory.
func BenchmarkRollback(b *testing.B) {
	l, err := ledger.Open(b.Context(), filepath.Join(b.TempDir(), "ledger.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	engine := kilntest.NewFake()
	c := New(Options{Ledger: l, Store: store{}, Baker: &baker{}, Engine: engine, Loader: loader{}, Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	defer func() { stop(); <-ended }()
	var routed time.Duration
	b.ResetTimer()
	for n := range b.N {
		b.StopTimer()
		for _, v := range []int{2 * n, 2*n + 1} {
			if _, err := c.Up(ctx, shop("production", fmt.Sprint(v)).request(), nil); err != nil {
				b.Fatal(err)
			}
		}
		calls := len(engine.Calls())
		b.StartTimer()
		began := time.Now()
		r, err := c.Rollback(ctx, RollbackRequest{Environment: "production"}, nil)
		if err != nil || !r.Parked {
			b.Fatalf("%+v, %v", r, err)
		}
		routed += engine.Calls()[calls].At.Sub(began)
	}
	b.ReportMetric(float64(routed.Microseconds())/float64(b.N), "µs-to-route/op")
}
