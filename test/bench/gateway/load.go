package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"
)

// wrk returns the requests a second of a closed loop.
func wrk(ctx context.Context, address string, each time.Duration, connections int) (float64, error) {
	seconds := strconv.Itoa(max(1, int(each.Seconds())))
	out, err := exec.CommandContext(ctx, "wrk", "-t2", "-c"+strconv.Itoa(connections), "-d"+seconds+"s", "http://"+address+"/").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk: %w: %s", err, out)
	}
	if bytes.Contains(out, []byte("Non-2xx")) || bytes.Contains(out, []byte("Socket errors")) {
		return 0, fmt.Errorf("wrk saw errors: %s", out)
	}
	m := regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`).FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("wrk said no rate: %s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// openLoop sends at a fixed rate, whether or not answers come, and returns the
// 99th percentile of the time from when a request was due to its answer.
func openLoop(ctx context.Context, address string, each time.Duration, connections int, rate float64) (time.Duration, error) {
	var wg sync.WaitGroup
	took := make([][]time.Duration, connections)
	errs := make([]error, connections)
	begin := time.Now().Add(50 * time.Millisecond)
	step := time.Duration(float64(connections) / rate * float64(time.Second))
	for i := range connections {
		wg.Go(func() {
			first := begin.Add(step * time.Duration(i) / time.Duration(connections))
			took[i], errs[i] = paced(ctx, address, first, step, each)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	if len(all) == 0 {
		return 0, errors.New("no request was answered")
	}
	return all[len(all)*99/100], nil
}

// paced sends one request every step on one connection.
func paced(ctx context.Context, address string, first time.Time, step, each time.Duration) ([]time.Duration, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	request, b := []byte("GET / HTTP/1.1\r\nHost: "+address+"\r\n\r\n"), make([]byte, 4096)
	var took []time.Duration
	for due := first; due.Sub(first) < each; due = due.Add(step) {
		time.Sleep(time.Until(due))
		if _, err := c.Write(request); err != nil {
			return nil, err
		}
		if err := readAnswer(c, b); err != nil {
			return nil, err
		}
		took = append(took, time.Since(due))
	}
	return took, nil
}

// readAnswer reads one answer of the upstream's; b is scratch. It costs little,
// so that what is measured is the proxy.
func readAnswer(c net.Conn, b []byte) error {
	n := 0
	for !bytes.HasSuffix(b[:n], []byte(answerBody)) {
		got, err := c.Read(b[n:])
		if err != nil {
			return fmt.Errorf("read an answer: %w", err)
		}
		n += got
	}
	if !bytes.HasPrefix(b[:n], []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("the answer was %q", b[:n])
	}
	return nil
}
