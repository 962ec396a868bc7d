// Command bench measures Kiln against its bars, with peers in the same run
// where a bar compares. It prints a row for each figure and never fails
// because of one: machines are noisy, and a person judges.
//
//	go run ./test/bench                 all of it
//	go run ./test/bench rollback kill   these only
package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// item is one group of figures.
type item struct {
	name string
	what string
	run  func(*bench)
}

func items() []item {
	return []item{
		{"start", "100 instances started and ready, beside podman and the bare OCI runtime", benchStart},
		{"replace", "500 instances replaced by a new release under load", benchReplace},
		{"nothing", "kiln up with nothing changed", benchNothing},
		{"change", "a changed line to live traffic", benchChange},
		{"rollback", "back to the parked release at 2,000 GET a second", benchRollback},
		{"kill", "an instance killed under load", benchKill},
		{"adopt", "the control plane killed and started again with 200 instances", benchAdopt},
		{"boot", "everything but the disk lost, as by a restart of the machine", benchBoot},
		{"death", "the gateway killed at 2,000 GET a second", benchGatewayDeath},
		{"upgrade", "Kiln itself replaced by another version under load", benchUpgrade},
		{"rest", "memory at rest, and kiln version", benchRest},
		{"memory", "Kiln's own memory per instance, from 100 to 500", benchMemory},
		{"ledger", "a ledger of a million events", benchLedger},
		{"judged", "what the gate adds where every image is known", benchJudged},
		{"rematch", "what runs matched again after the advisories changed", benchRematch},
		{"powercut", "a ledger whose power is cut", benchPowerCut},
		{"gateway", "the gateway beside nginx", benchGateway},
	}
}

func main() {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "error: the benchmarks run containers and networks and need root")
		os.Exit(1)
	}
	b := &bench{}
	all := items()
	chosen := os.Args[1:]
	for _, name := range chosen {
		if !slices.ContainsFunc(all, func(i item) bool { return i.name == name }) {
			fmt.Fprintf(os.Stderr, "error: no benchmark is called %q\nhint: %s\n", name, names(all))
			os.Exit(2)
		}
	}
	fmt.Printf("%d cores, %s, %s\n", runtime.NumCPU(), runtime.Version(), kernel())
	for _, i := range all {
		if len(chosen) == 0 || slices.Contains(chosen, i.name) {
			b.measure(i)
		}
	}
	b.print()
}

func names(all []item) string {
	var out []string
	for _, i := range all {
		out = append(out, i.name)
	}
	return "one of " + strings.Join(out, ", ")
}

func kernel() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return "kernel " + strings.TrimSpace(string(b))
}

// bench collects rows. It is the rig.TB of every rig that a measurement makes.
type bench struct {
	rows     []row
	cleanups []func()
}

type row struct {
	what, figure, bar string
	met               bool
	judged            bool
}

// stopped unwinds a measurement that cannot go on.
type stopped struct{ reason string }

func (b *bench) measure(i item) {
	fmt.Printf("\n== %s: %s\n", i.name, i.what)
	start := time.Now()
	defer func() {
		for _, f := range slices.Backward(b.cleanups) {
			f()
		}
		b.cleanups = nil
		if s, ok := recover().(stopped); ok {
			fmt.Println("  stopped:", s.reason)
			b.rows = append(b.rows, row{what: i.what, figure: "stopped: " + firstLine(s.reason)})
		}
		fmt.Printf("  (%.0f s)\n", time.Since(start).Seconds())
	}()
	i.run(b)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// judge records a figure and whether it meets its bar.
func (b *bench) judge(met bool, what, bar, format string, args ...any) {
	b.add(row{what: what, bar: bar, figure: fmt.Sprintf(format, args...), met: met, judged: true})
}

// note records a figure that has no bar.
func (b *bench) note(what, format string, args ...any) {
	b.add(row{what: what, figure: fmt.Sprintf(format, args...)})
}

func (b *bench) add(r row) {
	b.rows = append(b.rows, r)
	fmt.Printf("  %s: %s\n", r.what, r.figure)
}

func (b *bench) print() {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, r := range b.rows {
		verdict := ""
		if r.judged {
			verdict = "missed"
			if r.met {
				verdict = "met"
			}
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.what, r.figure, r.bar, verdict)
	}
	_ = w.Flush()
}

// Helper is for rig.TB.
func (b *bench) Helper() {}

// Fatalf stops the measurement that runs.
func (b *bench) Fatalf(format string, args ...any) { panic(stopped{fmt.Sprintf(format, args...)}) }

// Logf prints.
func (b *bench) Logf(format string, args ...any) { fmt.Printf("  "+format+"\n", args...) }

// Cleanup runs f when the measurement has ended, last first.
func (b *bench) Cleanup(f func()) { b.cleanups = append(b.cleanups, f) }

// spread is the median of several figures with the least and the most.
func spread(figures []float64) (median float64, text string) {
	sorted := slices.Sorted(slices.Values(figures))
	median = sorted[len(sorted)/2]
	if len(sorted)%2 == 0 {
		median = (sorted[len(sorted)/2-1] + sorted[len(sorted)/2]) / 2
	}
	return median, fmt.Sprintf("%.2f (%.2f to %.2f, %d runs)", median, sorted[0], sorted[len(sorted)-1], len(sorted))
}
