package ledger

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/kilnproject/kiln"
)

// TestMain lets the test binary be the writer that is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv("KILN_TEST_LEDGER_WRITER"); path != "" {
		if err := writeForEver(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// writeForEver appends from several goroutines and prints each acknowledged
// subject.
func writeForEver(path string) error {
	ctx := context.Background()
	l, err := Open(ctx, path)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := 0; err == nil; n++ {
				subject := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, n)
				one := l.Append(ctx, kiln.Event{Environment: "p", Kind: "test.written", Subject: subject})
				mu.Lock()
				if err = one; err == nil {
					_, _ = fmt.Fprintln(os.Stdout, subject)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return err
}

func TestKilledWriterLosesNothingAcknowledged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	rounds := few(20)
	acknowledged := map[string]bool{}
	for range rounds {
		writeAndKill(t, path, 1+rand.IntN(120), acknowledged)
		l := openAt(t, path)
		sound(t, l)
		present := map[string]bool{}
		for after := int64(0); ; {
			page, err := l.Events(t.Context(), "p", after, 0)
			check(t, err)
			if len(page) == 0 {
				break
			}
			for _, e := range page {
				present[e.Subject], after = true, e.Sequence
			}
		}
		for subject := range acknowledged {
			if !present[subject] {
				t.Fatalf("%s of %d was acknowledged and is gone", subject, len(acknowledged))
			}
		}
		check(t, l.Close())
	}
}

// writeAndKill kills a writer after so many acknowledgements.
func writeAndKill(t *testing.T, path string, after int, acknowledged map[string]bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "KILN_TEST_LEDGER_WRITER="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		if text := lines.Text(); text != "" {
			acknowledged[text] = true
		}
		if n == after {
			check(t, cmd.Process.Kill())
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the writer ended by itself, after " + strconv.Itoa(after))
	}
}
