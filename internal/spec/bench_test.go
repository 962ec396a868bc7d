package spec_test

import (
	"os"
	"testing"

	"github.com/kilnproject/kiln/internal/spec"
)

// BenchmarkLoad loads the example: both the client and the daemon do so with
// every `kiln up`.
func BenchmarkLoad(b *testing.B) {
	fsys := os.DirFS("../../examples/shop")
	for b.Loop() {
		if _, err := spec.Load(fsys, spec.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
