package confine

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTheGatewayDiesBeforeTheKeeper where memory ends.
func TestTheGatewayDiesBeforeTheKeeper(t *testing.T) {
	file := filepath.Join(t.TempDir(), "oom_score_adj")
	for keeper, want := range map[string]string{"-900\n": "-500", "-300\n": "-300\n", "100\n": "100\n"} {
		if err := os.WriteFile(file, []byte(keeper), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := yield(file); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("of a keeper with %q: %q, want %q: %v", keeper, got, want, err)
		}
	}
}
