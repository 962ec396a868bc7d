package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestALogThatGrowsIsCutWhileItIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keep.log")
	if err := cut(path, 100); err != nil {
		t.Fatalf("without a file: %v", err)
	}
	writer, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Close() }()
	size := func(name string) int64 {
		info, err := os.Stat(name)
		if err != nil {
			return -1
		}
		return info.Size()
	}
	for n := range 100 {
		if _, err := fmt.Fprintf(writer, "line %2d\n", n); err != nil {
			t.Fatal(err)
		}
		if err := cut(path, 100); err != nil {
			t.Fatal(err)
		}
		if size(path) > 100 || size(path+".1") > 100 {
			t.Fatalf("%d and %d bytes after line %d", size(path), size(path+".1"), n)
		}
	}
	before, err := os.ReadFile(path + ".1")
	if err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if both := string(append(before, now...)); !strings.HasSuffix(both, "line 98\nline 99\n") || bytes.Contains(now, []byte{0}) {
		t.Errorf("%q", both)
	}
}

func TestLogsAreBoundedAtStartAndEveryMinute(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kilnd.log")
	grow := func() {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, logBytes+1); err != nil {
			t.Fatal(err)
		}
	}
	grow()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- boundLogs(ctx, slog.New(slog.DiscardHandler), logEvery, path) }()
		for range 2 {
			<-time.After(logEvery - time.Second)
			synctest.Wait()
			if info, err := os.Stat(path); err != nil || info.Size() != 0 {
				t.Errorf("%+v, %v", info, err)
			}
			grow()
			<-time.After(time.Second)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
