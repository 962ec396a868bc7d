// Package logs keeps what instances write. Each instance has a folder of its
// own, "<root>/<environment>/<instance>", with files of kiln.LogLine as JSON,
// one a line: "current", and "1", "2", ... that were current before, the
// highest the newest. It holds no processes: the keeper writes, the engine
// reads.
//
// A line that was cut short by a crash is skipped by readers.
package logs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

const currentName = "current"

// segment is one file of an instance's folder.
type segment struct {
	number int // 0 for current
	path   string
	size   int64
}

// segments lists a folder's files, oldest first, current last.
func segments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list log files: %w", err)
	}
	var out []segment
	for _, e := range entries {
		s := segment{path: filepath.Join(dir, e.Name())}
		if e.Name() != currentName {
			n, err := strconv.Atoi(e.Name())
			if err != nil || n < 1 || strconv.Itoa(n) != e.Name() {
				continue
			}
			s.number = n
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // rotated away since
		}
		if err != nil {
			return nil, fmt.Errorf("list log files: %w", err)
		}
		if !info.Mode().IsRegular() {
			continue
		}
		s.size = info.Size()
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b segment) int {
		if (a.number == 0) != (b.number == 0) {
			return cmp.Compare(b.number, a.number) // current after all others
		}
		return cmp.Compare(a.number, b.number)
	})
	return out, nil
}
