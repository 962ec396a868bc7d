package kiln_test

import (
	"encoding/json"
	"testing"

	"github.com/kilnproject/kiln"
)

func TestIdentityIsTheSameAfterStorage(t *testing.T) {
	made := kiln.Release{
		Number: 1, Bundle: kiln.DigestOf([]byte("bundle")), Values: map[string]json.RawMessage{},
		Services: []kiln.ReleaseService{}, Routes: []kiln.Route{},
	}
	stored, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	var read kiln.Release
	if err := json.Unmarshal(stored, &read); err != nil {
		t.Fatal(err)
	}
	read.Number = 2
	if made.Identity() != read.Identity() {
		t.Error("a release without values is another one after it was stored")
	}
	read.Values = map[string]json.RawMessage{"count": json.RawMessage("3")}
	if made.Identity() == read.Identity() {
		t.Error("values are part of the identity")
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1000: "1000B", 1 << 20: "1MiB", 1536 << 20: "1536MiB", 1 << 50: "1024TiB"} {
		if got := kiln.Size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
