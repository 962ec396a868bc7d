package kilntest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/kilnproject/kiln"
)

var errTimeout = errors.New("timeout")

// lastLines is how many lines a cause of death holds.
const lastLines = 20

// logReader is woken when a line was written.
type logReader struct{ woken chan struct{} }

// Write makes an instance write a line.
func (f *Fake) Write(instance, stream, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log(instance, stream, text)
}

func (f *Fake) log(instance, stream, text string) {
	f.lines = append(f.lines, kiln.LogLine{At: time.Now().UTC(), Instance: instance, Stream: stream, Text: text})
	for r := range f.readers {
		select {
		case r.woken <- struct{}{}:
		default:
		}
	}
}

func (f *Fake) lastLog(instance string) []string {
	var out []string
	for _, l := range f.lines {
		if l.Instance == instance {
			out = append(out, l.Text)
		}
	}
	return out[max(0, len(out)-lastLines):]
}

// Logs implements kiln.Engine.
func (f *Fake) Logs(ctx context.Context, w io.Writer, query kiln.LogQuery) error {
	r := &logReader{woken: make(chan struct{}, 1)}
	f.mu.Lock()
	f.readers[r] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.readers, r)
		f.mu.Unlock()
	}()
	encode := json.NewEncoder(w)
	for from, tail := 0, query.Tail; ; tail = 0 {
		lines, next := f.selected(query, from, tail)
		from = next
		for _, l := range lines {
			if err := encode.Encode(l); err != nil {
				return fmt.Errorf("write logs: %w", err)
			}
		}
		if !query.Follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.woken:
		}
	}
}

// selected returns the lines of a query from a position on, the last tail of
// each instance, and the next position.
func (f *Fake) selected(q kiln.LogQuery, from, tail int) ([]kiln.LogLine, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []kiln.LogLine
	seen := map[string]int{}
	for _, l := range slices.Backward(f.lines[from:]) {
		i := f.owners[l.Instance]
		if i == nil || q.Environment != "" && i.Environment != q.Environment ||
			q.Service != "" && i.Service != q.Service || q.Instance != "" && i.ID != q.Instance || l.At.Before(q.Since) {
			continue
		}
		if seen[i.ID]++; tail > 0 && seen[i.ID] > tail {
			continue
		}
		out = append(out, l)
	}
	slices.Reverse(out)
	return out, len(f.lines)
}
