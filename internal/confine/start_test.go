package confine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestWhatIsStartedAsAnotherUserHasNoRights(t *testing.T) {
	if os.Getenv("KILN_TEST_ROOT") == "" {
		t.Skip("not root")
	}
	folder := filepath.Join(t.TempDir(), "closed") // which nobody but root may enter
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(folder, "cat")
	content, err := os.ReadFile("/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, content, 0o755); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd := exec.CommandContext(t.Context(), program, "/proc/self/status")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := Start(cmd, 64739, 64740); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &said)
	}
	for _, want := range []string{
		"Uid:\t64739\t64739\t64739\t64739\n", "Gid:\t64740\t64740\t64740\t64740\n", "Groups:\t \n", "NoNewPrivs:\t1\n",
		"CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "CapAmb:\t0000000000000000\n",
	} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("no %q in\n%s", want, &said)
		}
	}
	// This process has what it had: root's programs can be started.
	out, err := exec.CommandContext(t.Context(), "/bin/cat", "/proc/self/status").Output()
	if err != nil || strings.Contains(string(out), "CapEff:\t0000000000000000\n") || !strings.Contains(string(out), "NoNewPrivs:\t0\n") {
		t.Errorf("%v: %s", err, out)
	}
	if err := Start(exec.CommandContext(t.Context(), filepath.Join(folder, "none")), 64739, 64740); err == nil {
		t.Error("what is not there was started")
	}
}
