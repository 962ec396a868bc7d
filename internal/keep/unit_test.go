package keep

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/logs"
)

// TestSplitLosesNothing cuts a text into pieces anywhere and wants the lines
// that it has.
func TestSplitLosesNothing(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		id := fmt.Sprint("i", n)
		pieces := rapid.SliceOf(rapid.SliceOfN(rapid.SampledFrom([]byte("abc\n\n\xff\x00\xc3\xa9")), 0, 40)).Draw(t, "pieces")
		out := &output{instance: id}
		s := &stream{out: out, name: "stdout"}
		var b logs.Batch
		for _, p := range pieces {
			buf := bytes.Clone(p)
			s.split(&b, buf, time.Unix(1, 0))
			clear(buf) // what is kept must not be the buffer
		}
		w := logs.NewWriter(filepath.Join(dir, id), 0)
		w.Write(&b)
		_ = w.Close()
		got, err := logs.Last(filepath.Join(dir, id), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		whole := slices.Concat(pieces...)
		end := bytes.LastIndexByte(whole, '\n') + 1
		if string(s.part) != string(whole[end:]) {
			t.Fatalf("kept %q, want %q", s.part, whole[end:])
		}
		want := slices.Collect(strings.Lines(string(whole[:end])))
		if len(got) != len(want) {
			t.Fatalf("%d lines, want %d", len(got), len(want))
		}
		for i, l := range got {
			if l.Text != strings.ToValidUTF8(valid(strings.TrimSuffix(want[i], "\n")), "\uFFFD") {
				t.Fatalf("line %d is %q, want %q", i, l.Text, want[i])
			}
		}
	})
}

// valid replaces each invalid byte by itself, as JSON does.
func valid(s string) string {
	var b strings.Builder
	for _, r := range s {
		b.WriteRune(r)
	}
	return b.String()
}

func TestLongLinesAreDividedBetweenCharacters(t *testing.T) {
	s := &stream{out: &output{instance: "i"}, name: "stdout"}
	var b logs.Batch
	text := strings.Repeat("é", logs.MaxText)
	for piece := range slices.Chunk([]byte(text), 1000) {
		s.split(&b, piece, time.Unix(1, 0))
	}
	s.split(&b, []byte("\n"), time.Unix(1, 0))
	dir := t.TempDir()
	w := logs.NewWriter(dir, 0)
	w.Write(&b)
	_ = w.Close()
	got, err := logs.Last(dir, 100)
	if err != nil {
		t.Fatal(err)
	}
	all := ""
	for _, l := range got {
		if len(l.Text) > logs.MaxText {
			t.Errorf("a line of %d bytes", len(l.Text))
		}
		all += l.Text
	}
	if all != text || len(got) != 2 {
		t.Fatalf("%d lines of %d bytes together", len(got), len(all))
	}
}

func TestBadRequests(t *testing.T) {
	r := newRig(t, false)
	cases := map[string]struct{ send, want string }{
		"garbage":       {"hello\n", "read the request"},
		"other version": {`{"version":2,"method":"ping"}` + "\n", "version 1"},
		"no version":    {`{"method":"ping"}` + "\n", "version 1"},
		"no such":       {`{"version":1,"method":"dance"}` + "\n", "no method"},
		"no process":    {`{"version":1,"method":"start"}` + "\n", "no process"},
		"too long":      {`{"version":1,"method":"` + strings.Repeat("x", maxRequest) + `"}` + "\n", "longer than"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("unix", filepath.Join(r.dir, "run", "keep.sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			go func() { _, _ = io.WriteString(conn, c.send) }()
			var got response
			if err := readLine(bufio.NewReader(conn), maxResponse, &got); err != nil {
				t.Fatal(err)
			}
			if got.Error == nil || !strings.Contains(got.Error.Message, c.want) {
				t.Fatalf("answer %+v, want %q", got.Error, c.want)
			}
		})
	}
	if info, err := r.Ping(t.Context()); err != nil || info.Version != "test" {
		t.Fatalf("%+v, %v", info, err)
	}
}

func TestClientSaysWhereNobodyAnswers(t *testing.T) {
	_, err := Dial(filepath.Join(t.TempDir(), "keep.sock"))
	e := (*kiln.Error)(nil)
	if !errors.As(err, &e) || e.Code != kiln.CodeUnavailable || e.Hint == "" {
		t.Fatalf("Dial = %#v", err)
	}
}

func TestDeepFolders(t *testing.T) {
	r := &rig{t: t, dir: filepath.Join(t.TempDir(), strings.Repeat("deep/", 30))}
	r.opt = Options{DataDir: r.dir}
	r.start()
	t.Cleanup(r.cleanup)
	r.run("web-1", "exit 0")
	r.exit("web-1")
}

func TestJournalIsReadAsFarAsItGoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), journalName)
	content := `{"boot":"b"}
{"starting":{"id":"web-1"}}
garbage
{"started":{"id":"web-1","pid":7,"ticks":8}}
{"starting":{"id":"web-2"}}
{"ended":{"id":"web-1","exit":{"code":3}}}
{"ended":{"id":"nobody","exit":{"code":3}}}
{"starting":{"id":"../web"}}
{"forgotten":"web-2"}
{"listeners":["tcp://127.0.0.1:80"]}
{"starting":{"id":"we`
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readJournal(path)
	if err != nil || got.boot != "b" || len(got.processes) != 1 || len(got.listeners) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	one := got.processes["web-1"]
	if one.started.PID != 7 || one.exit.Code != 3 {
		t.Fatalf("%+v", one)
	}
}

func TestReplacedPIDIsNotAdopted(t *testing.T) {
	stat, err := readStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openProcess(os.Getpid(), stat.ticks+1); !errors.Is(err, errGone) {
		t.Fatalf("another start time: %v", err)
	}
	fd, err := openProcess(os.Getpid(), stat.ticks)
	if err != nil {
		t.Fatal(err)
	}
	_ = os.NewFile(uintptr(fd), "").Close()
}

func TestExitOfAStranger(t *testing.T) {
	cmd := exec.Command("sh", "-c", "read x; exit 6")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	_ = in.Close()
	_ = cmd.Wait()
	e := strangerExit(pidfd)
	if !e.Lost && e.Code != 6 {
		t.Fatalf("exit %+v", e)
	}
	t.Logf("exit %+v", e) // lost before Linux 6.15
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("7 (a) b) S 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseStat(b) })
}

func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{"tcp://127.0.0.1:80", "udp://[::1]:53", "tcp://:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseEndpoint(s)
		if err == nil && (e.address.Port() == 0 || !e.address.IsValid()) {
			t.Fatalf("%q is %+v", s, e)
		}
	})
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"boot":"b"}` + "\n" + `{"starting":{"id":"web-1"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := past{processes: map[string]*pastProcess{}}
		for line := range bytes.Lines(b) {
			var r record
			if json.Unmarshal(line, &r) == nil {
				p.add(r)
			}
		}
		for id := range p.processes {
			if strings.Contains(id, "/") {
				t.Fatalf("a process called %q", id)
			}
		}
	})
}
