package bake

import (
	"testing"

	"github.com/kilnproject/kiln"
)

// TestGateIsNoInput says that changing what an image must be bakes nothing
// again.
func TestGateIsNoInput(t *testing.T) {
	plain := kiln.Image{Name: "a", Platform: "linux/amd64", Debian: &kiln.Debian{Suite: "bookworm"}}
	gated := plain
	gated.Gate = kiln.Gate{FailOn: kiln.SeverityLow, Ignore: []kiln.GateIgnore{{ID: "GO-1", Reason: "x"}}}
	if debianInputs(plain, nil).digest() != debianInputs(gated, nil).digest() {
		t.Error("a Debian image is baked again for its gate")
	}
	plain = kiln.Image{Name: "a", Platform: "linux/amd64", Dockerfile: &kiln.Dockerfile{Context: ".", File: "Dockerfile"}}
	gated.Dockerfile, gated.Debian = plain.Dockerfile, nil
	f, r := &folder{}, &recipe{}
	one, err := dockerfileInputs(plain, r, f, nil)
	if err != nil {
		t.Fatal(err)
	}
	two, err := dockerfileInputs(gated, r, f, nil)
	if err != nil {
		t.Fatal(err)
	}
	if one.digest() != two.digest() {
		t.Error("a Dockerfile's image is baked again for its gate")
	}
}
