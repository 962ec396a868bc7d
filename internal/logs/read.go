package logs

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// Read writes the lines that a query selects below root, merged in the order
// of time, as JSON, one a line. Tail counts per instance, and Since applies
// too. With Follow it goes on until ctx ends, which is no error then, and takes
// in instances that appear later. An unknown environment or instance has no
// lines. The error of w ends it and is returned wrapped.
func Read(ctx context.Context, w io.Writer, root string, query kiln.LogQuery) error {
	r := &reader{root: root, query: query, out: w, cursors: map[string]*cursor{}}
	defer r.close()
	if query.Follow {
		return r.follow(ctx)
	}
	if err := r.discover(query.Tail); err != nil {
		return err
	}
	return r.drain(ctx, maps.Values(r.cursors))
}

// ServiceOf returns the service of an instance by its ID, "<service>-<rest>",
// the rest without a dash.
func ServiceOf(instance string) string {
	if i := strings.LastIndexByte(instance, '-'); i >= 0 {
		return instance[:i]
	}
	return instance
}

// reader merges the lines of many folders.
type reader struct {
	root    string
	query   kiln.LogQuery
	out     io.Writer
	cursors map[string]*cursor // by folder
	batch   Batch
}

func (r *reader) selects(environment, instance string) bool {
	q := r.query
	return (q.Environment == "" || q.Environment == environment) &&
		(q.Instance == "" || q.Instance == instance) &&
		(q.Service == "" || q.Service == ServiceOf(instance))
}

// environments lists the environments that have logs and are asked for.
func (r *reader) environments() ([]string, error) {
	all, err := subfolders(r.root)
	return slices.DeleteFunc(all, func(e string) bool { return r.query.Environment != "" && r.query.Environment != e }), err
}

// discover adds a cursor for each selected folder that has none; tail lines
// of those that it finds are wanted, 0 for all.
func (r *reader) discover(tail int) error {
	environments, err := r.environments()
	if err != nil {
		return err
	}
	for _, e := range environments {
		instances, err := subfolders(filepath.Join(r.root, e))
		if err != nil {
			return err
		}
		for _, i := range instances {
			dir := filepath.Join(r.root, e, i)
			if r.cursors[dir] != nil || !r.selects(e, i) {
				continue
			}
			c := &cursor{dir: dir}
			r.cursors[dir] = c
			if tail <= 0 {
				continue
			}
			if err := c.seekLast(tail); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read logs of %s: %w", i, err)
			}
		}
	}
	return nil
}

// drain writes all that some cursors have by now, in the order of time. What
// comes meanwhile is for the next time: one who floods must not hold it up.
func (r *reader) drain(ctx context.Context, some iter.Seq[*cursor]) error {
	var h cursors
	all := slices.Collect(some)
	defer func() {
		for _, c := range all {
			c.end = nil
		}
	}()
	for _, c := range all {
		if err := c.bound(); err != nil {
			return fmt.Errorf("read logs: %w", err)
		}
		if err := c.fill(); err == nil {
			h = append(h, c)
		} else if !errors.Is(err, io.EOF) {
			return fmt.Errorf("read logs: %w", err)
		}
	}
	heap.Init(&h)
	for n := 0; len(h) > 0; n++ {
		if n%256 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := r.emit(h[0].take()); err != nil {
			return err
		}
		switch err := h[0].fill(); {
		case err == nil:
			heap.Fix(&h, 0)
		case errors.Is(err, io.EOF):
			heap.Pop(&h)
		default:
			return fmt.Errorf("read logs: %w", err)
		}
	}
	return r.flush()
}

func (r *reader) emit(l kiln.LogLine) error {
	if l.At.Before(r.query.Since) {
		return nil
	}
	r.batch.Add(l.At, l.Instance, l.Stream, []byte(l.Text))
	if len(r.batch.buf) < 32<<10 {
		return nil
	}
	return r.flush()
}

func (r *reader) flush() error {
	if r.batch.Len() == 0 {
		return nil
	}
	_, err := r.out.Write(r.batch.buf)
	r.batch.Reset()
	if err != nil {
		return fmt.Errorf("write logs: %w", err)
	}
	return nil
}

func (r *reader) close() {
	for _, c := range r.cursors {
		c.close()
	}
}

// cursors is a heap by the time of the next line, then by folder.
type cursors []*cursor

func (h cursors) Len() int { return len(h) }
func (h cursors) Less(i, j int) bool {
	if c := h[i].head.At.Compare(h[j].head.At); c != 0 {
		return c < 0
	}
	return h[i].dir < h[j].dir
}
func (h cursors) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *cursors) Push(x any)   { *h = append(*h, x.(*cursor)) } // heap's contract
func (h *cursors) Pop() any {
	last := (*h)[len(*h)-1]
	*h = slices.Delete(*h, len(*h)-1, len(*h))
	return last
}
