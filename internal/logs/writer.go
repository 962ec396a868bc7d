package logs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

const (
	// MinBytes is the least that a writer is bounded to: four files, each of
	// which holds any one line, whose text may grow sixfold when escaped.
	MinBytes = 512 << 10
	// files is how many files share the bound; the oldest goes first.
	files = 4
)

// Writer appends lines to an instance's folder and keeps all its files
// together within a bound. It never waits for room: what a full disk does not
// take is dropped, counted, and told in a line of its own once there is room
// again. Not for concurrent use.
type Writer struct {
	dir     string
	limit   int64 // of one file, bytes
	file    *os.File
	size    int64
	numbers []int // of the files that were current before, ascending
	lost    uint64
	untold  uint64 // of lost, those that no line has told yet
	cause   error  // why lines were lost last
	notice  Batch
}

// NewWriter returns a writer for dir, which is made with the first line. All
// files in it together stay below maxBytes, or MinBytes when that is less.
func NewWriter(dir string, maxBytes int64) *Writer {
	return &Writer{dir: dir, limit: max(maxBytes, MinBytes) / files}
}

// open opens current and separates a line that a crash cut short.
func (w *Writer) open() error {
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return fmt.Errorf("make log folder: %w", err)
	}
	if err := w.count(); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(w.dir, currentName), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return errors.Join(fmt.Errorf("open log file: %w", err), f.Close())
	}
	if end > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, end-1); err != nil {
			return errors.Join(fmt.Errorf("open log file: %w", err), f.Close())
		}
		if last[0] != '\n' {
			if _, err := f.WriteString("\n"); err != nil {
				return errors.Join(fmt.Errorf("end a torn log line: %w", err), f.Close())
			}
			end++
		}
	}
	w.file, w.size = f, end
	return nil
}

// count learns the numbers that are there.
func (w *Writer) count() error {
	old, err := segments(w.dir)
	if err != nil {
		return err
	}
	w.numbers = w.numbers[:0]
	for _, s := range old {
		if s.number > 0 {
			w.numbers = append(w.numbers, s.number)
		}
	}
	return nil
}

// Write appends a batch's lines. It returns no error: lines that could not be
// written are counted by Lost.
func (w *Writer) Write(b *Batch) {
	if w.file == nil {
		if err := w.open(); err != nil {
			w.cause = err
			w.lose(b.Len())
			return
		}
	}
	if w.untold > 0 {
		w.tell()
	}
	from, first := 0, 0
	for i, end := range b.ends {
		start := from
		if i > 0 {
			start = b.ends[i-1]
		}
		if w.size+int64(end-from) <= w.limit {
			continue
		}
		// This line does not fit any more: write those before it, then turn.
		if start > from && !w.put(b.buf[from:start]) {
			w.lose(i - first)
		}
		from, first = start, i
		w.rotate()
	}
	if from < len(b.buf) && !w.put(b.buf[from:]) {
		w.lose(len(b.ends) - first)
	}
}

// put writes whole lines or nothing.
func (w *Writer) put(lines []byte) bool {
	if w.file == nil {
		if err := w.open(); err != nil {
			w.cause = err
			return false
		}
	}
	n, err := w.file.Write(lines)
	if err == nil {
		w.size += int64(n)
		return true
	}
	w.cause = err
	if n > 0 {
		if terr := w.file.Truncate(w.size); terr != nil {
			_ = w.file.Close() // the next open ends the torn line
			w.file = nil
		}
	}
	return false
}

// rotate gives current the next number and removes what is beyond the bound.
// On an error lines go on to the same file, or are lost when there is none.
func (w *Writer) rotate() {
	if w.size == 0 {
		return
	}
	next := 1
	if len(w.numbers) > 0 {
		next = w.numbers[len(w.numbers)-1] + 1
	}
	for len(w.numbers) >= files-1 { // before the rename: a full disk gets room by it
		err := os.Remove(w.path(w.numbers[0]))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			w.cause = err
			break
		}
		w.numbers = slices.Delete(w.numbers, 0, 1)
	}
	if w.file != nil {
		_ = w.file.Close()
		w.file = nil
	}
	err := os.Rename(filepath.Join(w.dir, currentName), w.path(next))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.restart(err)
		return
	}
	w.size = 0
	if err := w.open(); err != nil {
		w.cause = err
	}
}

// restart empties current, where it cannot be renamed: the bound on the disk
// matters more than old lines.
func (w *Writer) restart(cause error) {
	w.cause = cause
	if err := os.Truncate(filepath.Join(w.dir, currentName), 0); err == nil {
		w.size = 0
	}
}

func (w *Writer) lose(lines int) {
	w.lost += uint64(lines)
	w.untold += uint64(lines)
}

// tell writes how many lines were lost, where they would have been.
func (w *Writer) tell() {
	text := fmt.Sprintf("kiln: %d lines lost here: %v", w.untold, w.cause)
	w.notice.Reset()
	w.notice.Add(time.Now(), filepath.Base(w.dir), "stderr", []byte(text))
	if w.put(w.notice.buf) {
		w.untold = 0
	}
}

// Lost counts the lines that were dropped, and Cause says why the last were.
func (w *Writer) Lost() uint64 { return w.lost }

// Cause is why lines were dropped last, nil when none ever were.
func (w *Writer) Cause() error { return w.cause }

// Close closes the file; another Write opens it again.
func (w *Writer) Close() error {
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	if err != nil {
		return fmt.Errorf("close log file: %w", err)
	}
	return nil
}

func (w *Writer) path(number int) string { return filepath.Join(w.dir, strconv.Itoa(number)) }
