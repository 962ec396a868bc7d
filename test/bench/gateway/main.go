// Command gateway measures Kiln's gateway beside nginx on this machine: one
// tiny upstream, small keep-alive responses, 64 connections, counts and access
// log on in both. It alternates pairs, so that what else the machine does
// falls on both, and prints the median and spread of the ratios:
//
//	go run ./test/bench/gateway [-pairs 10] [-time 5s]
//
// It needs nginx and wrk. It exits 1 when a bar is missed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

// The bars of the comparison, ours to nginx's.
const (
	barRate = 0.7 // at least, requests a second
	barTail = 1.5 // at most, 99th percentile at half of nginx's rate
)

func main() {
	if len(os.Args) == 2 && runPart(os.Args[1]) {
		return
	}
	pairs := flag.Int("pairs", 10, "pairs of runs")
	each := flag.Duration("time", 5*time.Second, "time of one run")
	connections := flag.Int("connections", 64, "client connections")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	ok, err := compare(ctx, *pairs, *each, *connections)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

// compare runs the pairs and says whether the bars hold.
func compare(ctx context.Context, pairs int, each time.Duration, connections int) (bool, error) {
	for _, tool := range []string{"nginx", "wrk"} {
		if _, err := exec.LookPath(tool); err != nil {
			return false, fmt.Errorf("%s is not installed: apt-get install %s", tool, tool)
		}
	}
	dir, err := os.MkdirTemp("", "kiln-bench-gateway-")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s, err := startStand(ctx, dir)
	if err != nil {
		return false, err
	}
	defer s.stop()
	rates, theirs, err := compareRates(ctx, s, pairs, each, connections)
	if err != nil {
		return false, err
	}
	tails, err := compareTails(ctx, s, pairs, each, connections, theirs/2)
	if err != nil {
		return false, err
	}
	rate, tail := median(rates), median(tails)
	fmt.Printf("requests a second, ratio to nginx:   median %.3f, from %.3f to %.3f, bar at least %.2f: %s\n",
		rate, slices.Min(rates), slices.Max(rates), barRate, verdict(rate >= barRate))
	fmt.Printf("p99 at half of nginx's rate, ratio:  median %.3f, from %.3f to %.3f, bar at most %.2f: %s\n",
		tail, slices.Min(tails), slices.Max(tails), barTail, verdict(tail <= barTail))
	return rate >= barRate && tail <= barTail, nil
}

func verdict(ok bool) string {
	if ok {
		return "holds"
	}
	return "MISSED"
}

// compareRates returns the ratios of the pairs, and nginx's median rate.
func compareRates(ctx context.Context, s *stand, pairs int, each time.Duration, connections int) (ratios []float64, theirs float64, err error) {
	var all []float64
	for i := range pairs {
		var got [2]float64
		for _, which := range order(i) {
			if got[which], err = wrk(ctx, s.address[which], each, connections); err != nil {
				return nil, 0, err
			}
		}
		all = append(all, got[nginx])
		ratios = append(ratios, got[ours]/got[nginx])
		fmt.Printf("pair %2d: nginx %8.0f/s  kiln %8.0f/s  ratio %.3f\n", i+1, got[nginx], got[ours], got[ours]/got[nginx])
	}
	return ratios, median(all), nil
}

// compareTails returns the ratios of the 99th percentiles at a fixed rate.
func compareTails(ctx context.Context, s *stand, pairs int, each time.Duration, connections int, rate float64) (ratios []float64, err error) {
	for i := range pairs {
		var got [2]time.Duration
		for _, which := range order(i) {
			if got[which], err = openLoop(ctx, s.address[which], each, connections, rate); err != nil {
				return nil, err
			}
		}
		ratio := float64(got[ours]) / float64(got[nginx])
		ratios = append(ratios, ratio)
		fmt.Printf("pair %2d at %.0f/s: p99 nginx %v  kiln %v  ratio %.3f\n", i+1, rate, got[nginx], got[ours], ratio)
	}
	return ratios, nil
}

// order alternates who is first.
func order(i int) [2]int {
	if i%2 == 0 {
		return [2]int{nginx, ours}
	}
	return [2]int{ours, nginx}
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
