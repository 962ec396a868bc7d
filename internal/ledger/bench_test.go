package ledger

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/kilnproject/kiln"
)

// filled is a ledger of KILN_BENCH_EVENTS events, 20,000 when not said.
func filled(b *testing.B) *Ledger {
	b.Helper()
	path := filepath.Join(b.TempDir(), "ledger.db")
	l, err := Open(b.Context(), path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	total := 20_000
	if n, err := strconv.Atoi(os.Getenv("KILN_BENCH_EVENTS")); err == nil {
		total = n
	}
	const batch = 1000
	events := make([]kiln.Event, batch)
	for n := 0; n < total; n += batch {
		for i := range events {
			events[i] = event([]string{"production", "staging"}[i%2], n+i)
			events[i].Data = map[string]string{"service": "web", "fleet": "production/web/0123456789ab"}
		}
		if err := l.Append(b.Context(), events...); err != nil {
			b.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d events, %d MB", total, info.Size()>>20)
	return l
}

func BenchmarkLast100(b *testing.B) {
	l := filled(b)
	for b.Loop() {
		if list, err := l.Events(b.Context(), "production", 0, 100); err != nil || len(list) != 100 {
			b.Fatal(len(list), err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	l := filled(b)
	for b.Loop() {
		if r, err := l.Verify(b.Context(), ""); err != nil || len(r.Faults) > 0 {
			b.Fatal(r, err)
		}
	}
}

// BenchmarkAppend appends one event from each of many callers at once.
func BenchmarkAppend(b *testing.B) {
	l := filled(b)
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Append(b.Context(), event("production", 1)); err != nil {
				b.Error(err)
			}
		}
	})
}
