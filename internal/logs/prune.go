package logs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Usage returns the bytes of all logs below root.
func Usage(root string) (int64, error) {
	all, err := folders(root)
	if err != nil {
		return 0, err
	}
	return total(all), nil
}

func total(all []folder) int64 {
	var sum int64
	for _, f := range all {
		sum += f.size
	}
	return sum
}

// Prune removes the folders of instances that are not alive, the longest
// silent first, until what is below root fits in keepBytes. It returns what it
// freed, also with an error.
func Prune(root string, keepBytes int64, alive func(environment, instance string) bool) (freed int64, err error) {
	all, err := folders(root)
	if err != nil {
		return 0, err
	}
	sum := total(all)
	slices.SortFunc(all, func(a, b folder) int { return cmp.Or(a.newest.Compare(b.newest), cmp.Compare(a.instance, b.instance)) })
	for _, f := range all {
		if sum-freed <= keepBytes {
			break
		}
		if alive(f.environment, f.instance) {
			continue
		}
		if err := os.RemoveAll(f.dir); err != nil {
			return freed, fmt.Errorf("remove logs: %w", err)
		}
		freed += f.size
		_ = os.Remove(filepath.Dir(f.dir)) // an environment's folder, when it is empty now
	}
	return freed, nil
}

// folder is an instance's folder.
type folder struct {
	environment, instance, dir string
	size                       int64
	newest                     time.Time // last write
}

// folders lists all below root, without order. A root that is missing has none.
func folders(root string) ([]folder, error) {
	var out []folder
	environments, err := subfolders(root)
	if err != nil {
		return nil, err
	}
	for _, e := range environments {
		instances, err := subfolders(filepath.Join(root, e))
		if err != nil {
			return nil, err
		}
		for _, i := range instances {
			f := folder{environment: e, instance: i, dir: filepath.Join(root, e, i)}
			if err := f.measure(); err != nil {
				return nil, err
			}
			out = append(out, f)
		}
	}
	return out, nil
}

func (f *folder) measure() error {
	all, err := segments(f.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, s := range all {
		f.size += s.size
		if info, err := os.Stat(s.path); err == nil && info.ModTime().After(f.newest) {
			f.newest = info.ModTime()
		}
	}
	return nil
}

func subfolders(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, nil
}
