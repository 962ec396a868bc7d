package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	logFile    = "access.log"
	logKept    = 4        // older files: access.log.1 to .4
	logSize    = 32 << 20 // bytes of one file
	logBatch   = 64 << 10 // bytes that wake the writer
	logPending = 4 << 20  // bytes that may wait; what is more is dropped and counted
	logEvery   = 500 * time.Millisecond
)

// accessLog collects lines and writes them in batches, so that a request never
// waits for a disk.
type accessLog struct {
	dir   string
	log   *slog.Logger
	start time.Time // gateway time 0
	size  int64     // of a file before it is rotated

	mu      sync.Mutex
	pending []byte
	dropped uint64
	second  int64 // that stamp was made for
	stamp   []byte
	wake    chan struct{}

	// of run alone
	file    *os.File
	written int64
	spare   []byte
	failing bool
}

func newAccessLog(dir string, start time.Time, log *slog.Logger) *accessLog {
	return &accessLog{dir: dir, log: log, start: start, size: logSize, second: -1, wake: make(chan struct{}, 1)}
}

// add appends a line for e, which ended at now.
func (l *accessLog) add(e *entry, now int64) {
	l.mu.Lock()
	if len(l.pending) >= logPending {
		l.dropped++
		l.mu.Unlock()
		return
	}
	was := len(l.pending)
	l.pending = e.appendJSON(l.pending, l.at(now), time.Duration(now-e.start))
	full := was < logBatch && len(l.pending) >= logBatch
	l.mu.Unlock()
	if full {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// at formats a time in UTC with milliseconds; the seconds are kept.
func (l *accessLog) at(now int64) []byte {
	t := l.start.Add(time.Duration(now))
	if s := t.Unix(); s != l.second {
		l.second = s
		l.stamp = t.UTC().AppendFormat(l.stamp[:0], "2006-01-02T15:04:05.000Z")
		return l.stamp
	}
	ms := t.Nanosecond() / int(time.Millisecond)
	n := len(l.stamp)
	l.stamp[n-4], l.stamp[n-3], l.stamp[n-2] = byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10)
	return l.stamp
}

// run writes until ctx ends, and then what is left.
func (l *accessLog) run(ctx context.Context) {
	t := time.NewTicker(logEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			l.flush()
			if l.file != nil {
				_ = l.file.Close()
			}
			return
		case <-t.C:
		case <-l.wake:
		}
		l.flush()
	}
}

func (l *accessLog) flush() {
	l.mu.Lock()
	batch, dropped := l.pending, l.dropped
	l.pending, l.dropped = l.spare[:0], 0
	l.mu.Unlock()
	l.spare = nil
	if cap(batch) <= 4*logBatch {
		l.spare = batch
	}
	if dropped > 0 {
		l.log.Warn("lines of the access log were dropped", "lines", dropped)
	}
	if len(batch) == 0 {
		return
	}
	err := l.write(batch)
	if err != nil && !l.failing {
		l.log.Error("the access log cannot be written", "error", err)
	}
	l.failing = err != nil
}

func (l *accessLog) write(batch []byte) error {
	if l.file != nil && l.written+int64(len(batch)) > l.size {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.file == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(batch)
	l.written += int64(n)
	if err != nil {
		return fmt.Errorf("write the access log: %w", err)
	}
	return nil
}

func (l *accessLog) open() error {
	f, err := os.OpenFile(filepath.Join(l.dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640) //nolint:gosec // the group may read it
	if err != nil {
		return fmt.Errorf("open the access log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("open the access log: %w", err)
	}
	l.file, l.written = f, info.Size()
	if l.written > l.size {
		return l.rotate()
	}
	return nil
}

// rotate moves access.log to .1, .1 to .2 and so on; the oldest goes.
func (l *accessLog) rotate() error {
	_ = l.file.Close()
	l.file = nil
	name := func(n int) string { return filepath.Join(l.dir, fmt.Sprintf("%s.%d", logFile, n)) }
	for n := logKept - 1; n >= 1; n-- {
		if err := os.Rename(name(n), name(n+1)); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("rotate the access log: %w", err)
		}
	}
	if err := os.Rename(filepath.Join(l.dir, logFile), name(1)); err != nil {
		return fmt.Errorf("rotate the access log: %w", err)
	}
	return l.open()
}
