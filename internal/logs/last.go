package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/kilnproject/kiln"
)

// Last returns the newest n lines of an instance's folder, oldest first,
// reading from the end. A folder that is not there has none.
func Last(dir string, n int) ([]kiln.LogLine, error) {
	c := &cursor{dir: dir}
	defer c.close()
	if err := c.seekLast(n); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, fmt.Errorf("read the last lines: %w", err)
	}
	var out []kiln.LogLine
	for {
		err := c.fill()
		if errors.Is(err, io.EOF) {
			return out[max(0, len(out)-n):], nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the last lines: %w", err)
		}
		out = append(out, c.take())
	}
}

// seekLast puts the cursor before the newest n lines, and its end after them.
// io.EOF without any.
func (c *cursor) seekLast(n int) error {
	var err error
	for range 5 { // again when a file is rotated away meanwhile
		if err = c.trySeekLast(n); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

func (c *cursor) trySeekLast(n int) error {
	all, err := segments(c.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(all) == 0 {
		return io.EOF
	}
	if err != nil {
		return err
	}
	for i := len(all) - 1; ; i-- {
		offset, found, stop, err := lastLines(all[i].path, n)
		if err != nil {
			return err
		}
		if i == len(all)-1 {
			c.end = &stop
		}
		n -= found
		if n > 0 && i > 0 {
			continue
		}
		if err := c.open(all[i].path, offset); err != nil {
			return err
		}
		if !os.SameFile(c.info, stop.info) {
			return fmt.Errorf("%s was rotated: %w", all[i].path, fs.ErrNotExist)
		}
		return nil
	}
}

// lastLines finds where the newest n lines of a file begin, how many of them
// it has, and where it ends.
func lastLines(path string, n int) (offset int64, found int, stop end, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, end{}, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, end{}, err
	}
	stop = end{info: info, size: info.Size()}
	buf := make([]byte, 64<<10)
	newlines := 0 // the newest line has one too
	for pos := stop.size; pos > 0; {
		size := min(pos, int64(len(buf)))
		pos -= size
		if _, err := f.ReadAt(buf[:size], pos); err != nil {
			return 0, 0, end{}, err
		}
		for at := size; ; {
			i := bytes.LastIndexByte(buf[:at], '\n')
			if i < 0 {
				break
			}
			if newlines == n {
				return pos + int64(i) + 1, n, stop, nil
			}
			newlines++
			at = int64(i)
		}
	}
	return 0, newlines, stop, nil
}
