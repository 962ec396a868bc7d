package buildkit

import "testing"

func TestNotInContext(t *testing.T) {
	for text, want := range map[string]string{
		`failed to solve: failed to compute cache key: failed to calculate checksum of ref ab::cd: "/missing": not found`: "missing",
		`failed to calculate checksum of ref ab::cd: "/a b/c": not found`:                                                 "a b/c",
		`failed to calculate checksum of ref ab::cd: "/a": permission denied`:                                             "",
		`"/missing": not found`: "",
		``:                      "",
	} {
		got, ok := notInContext(text)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%s: %q, %v", text, got, ok)
		}
	}
}
