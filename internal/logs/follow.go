package logs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// follow writes what is there and what comes, until ctx ends.
func (r *reader) follow(ctx context.Context) error {
	w, err := fsnotify.NewBufferedWatcher(64)
	if err != nil {
		return explain(err)
	}
	defer func() { _ = w.Close() }()
	if err := r.survey(ctx, w, r.query.Tail); err != nil {
		return ignoreEnd(ctx, err)
	}
	for ctx.Err() == nil {
		changed, err := await(ctx, w)
		if err != nil {
			return err
		}
		if err := r.catchUp(ctx, w, changed); err != nil {
			return ignoreEnd(ctx, err)
		}
	}
	return nil
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// survey takes in the folders that are there, and writes what they hold.
func (r *reader) survey(ctx context.Context, w *fsnotify.Watcher, tail int) error {
	if err := r.watch(w); err != nil {
		return err
	}
	if err := r.discover(tail); err != nil {
		return err
	}
	return r.drain(ctx, maps.Values(r.cursors))
}

// catchUp writes what is new in the changed folders. A change in one that is
// not an instance's may be a new instance, of which every line is new.
func (r *reader) catchUp(ctx context.Context, w *fsnotify.Watcher, changed map[string]bool) error {
	var some []*cursor
	for dir := range changed {
		c := r.cursors[dir]
		if c == nil {
			return r.survey(ctx, w, 0)
		}
		some = append(some, c)
	}
	return r.drain(ctx, slices.Values(some))
}

// watch makes sure that root, the selected environments' folders and the
// selected instances' folders are watched, from the outside in, so that what
// is made in between is seen by the round after.
func (r *reader) watch(w *fsnotify.Watcher) error {
	if err := os.MkdirAll(r.root, 0o700); err != nil {
		return fmt.Errorf("watch logs: %w", err)
	}
	watched := map[string]bool{}
	for _, dir := range w.WatchList() {
		watched[dir] = true
	}
	if err := add(w, watched, r.root); err != nil {
		return err
	}
	environments, err := r.environments()
	if err != nil {
		return err
	}
	for _, e := range environments {
		dir := filepath.Join(r.root, e)
		if err := add(w, watched, dir); err != nil {
			return err
		}
		instances, err := subfolders(dir)
		if err != nil {
			return err
		}
		for _, i := range instances {
			if !r.selects(e, i) {
				continue
			}
			if err := add(w, watched, filepath.Join(dir, i)); err != nil {
				return err
			}
		}
	}
	r.forget()
	return nil
}

func add(w *fsnotify.Watcher, watched map[string]bool, dir string) error {
	if watched[dir] {
		return nil
	}
	if err := w.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return explain(err)
	}
	return nil
}

// explain says which limit of inotify(7) was reached; its errors speak of
// files and disks.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EMFILE):
		return kiln.Errorf(kiln.CodeNoRoom, "sysctl fs.inotify.max_user_instances=1024", "watch logs: the user has too many watchers: %w", err)
	case errors.Is(err, unix.ENOSPC):
		return kiln.Errorf(kiln.CodeNoRoom, "sysctl fs.inotify.max_user_watches=524288", "watch logs: the user watches too many folders: %w", err)
	default:
		return fmt.Errorf("watch logs: %w", err)
	}
}

// forget drops the cursors of folders that were removed.
func (r *reader) forget() {
	for dir, c := range r.cursors {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			c.close()
			delete(r.cursors, dir)
		}
	}
}

// await returns the folders in which something changed, at least one unless
// ctx ended; an empty name stands for any, when changes were lost.
func await(ctx context.Context, w *fsnotify.Watcher) (map[string]bool, error) {
	changed := map[string]bool{}
	select {
	case <-ctx.Done():
		return nil, nil
	case err := <-w.Errors:
		if !errors.Is(err, fsnotify.ErrEventOverflow) {
			return nil, fmt.Errorf("watch logs: %w", err)
		}
		changed[""] = true
	case e := <-w.Events:
		changed[filepath.Dir(e.Name)] = true
	}
	for { // several changes at once are one
		select {
		case e := <-w.Events:
			changed[filepath.Dir(e.Name)] = true
		default:
			return changed, nil
		}
	}
}
