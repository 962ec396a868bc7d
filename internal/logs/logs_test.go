package logs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/kilnproject/kiln"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func epoch(ms int) time.Time { return time.UnixMilli(1_700_000_000_000 + int64(ms)).UTC() }

func put(t *testing.T, w *Writer, instance string, from, to int) {
	t.Helper()
	var b Batch
	for i := from; i < to; i++ {
		b.Add(epoch(i), instance, "stdout", fmt.Appendf(nil, "line %06d", i))
	}
	w.Write(&b)
}

func texts(lines []kiln.LogLine) []string {
	var out []string
	for _, l := range lines {
		out = append(out, l.Text)
	}
	return out
}

func parseLines(t *testing.T, b []byte) []kiln.LogLine {
	t.Helper()
	var out []kiln.LogLine
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		var l kiln.LogLine
		if err := d.Decode(&l); err == io.EOF {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
}

func read(t *testing.T, root string, q kiln.LogQuery) []kiln.LogLine {
	t.Helper()
	var b bytes.Buffer
	if err := Read(t.Context(), &b, root, q); err != nil {
		t.Fatal(err)
	}
	return parseLines(t, b.Bytes())
}

func TestWriterStaysWithinItsBound(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "production", "web-1")
	w := NewWriter(dir, MinBytes)
	for i := range 300 {
		put(t, w, "web-1", i*100, (i+1)*100)
		if n, err := Usage(root); err != nil || n > MinBytes {
			t.Fatalf("usage = %d, %v", n, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got := read(t, root, kiln.LogQuery{})
	if len(got) < 2000 || got[len(got)-1].Text != "line 029999" {
		t.Fatalf("%d lines, last %+v", len(got), got[len(got)-1])
	}
	for i := 1; i < len(got); i++ {
		if !got[i].At.After(got[i-1].At) {
			t.Fatalf("line %d is out of order", i)
		}
	}
	if w.Lost() != 0 {
		t.Fatalf("lost %d", w.Lost())
	}
}

func TestOneLineOfControlCharactersFits(t *testing.T) {
	root := t.TempDir()
	w := NewWriter(filepath.Join(root, "e", "web-1"), 1)
	defer w.Close()
	var b Batch
	text := bytes.Repeat([]byte{0}, MaxText)
	for i := range 20 {
		b.Add(epoch(i), "web-1", "stderr", text)
	}
	w.Write(&b)
	got := read(t, root, kiln.LogQuery{})
	if len(got) < 3 || got[0].Text != string(text) || w.Lost() != 0 {
		t.Fatalf("%d lines, %d lost", len(got), w.Lost())
	}
	if n, _ := Usage(root); n > MinBytes {
		t.Fatalf("usage = %d", n)
	}
}

func TestTornLineIsSkippedAndTheNextIsWhole(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "e", "web-1")
	w := NewWriter(dir, 0)
	put(t, w, "web-1", 0, 2)
	_ = w.Close()
	f, err := os.OpenFile(filepath.Join(dir, "current"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"at":"2023-11-14T22:13:20Z","instan`); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if got := texts(read(t, root, kiln.LogQuery{})); len(got) != 2 {
		t.Fatalf("with a torn line: %q", got)
	}
	w = NewWriter(dir, 0)
	put(t, w, "web-1", 2, 3)
	_ = w.Close()
	if got := texts(read(t, root, kiln.LogQuery{})); strings.Join(got, ",") != "line 000000,line 000001,line 000002" {
		t.Fatalf("after it: %q", got)
	}
}

func TestReadMergesFiltersAndTails(t *testing.T) {
	root := t.TempDir()
	for i, name := range []string{"e/web-1", "e/web-2", "e/web-api-1", "f/web-9"} {
		w := NewWriter(filepath.Join(root, name), 0)
		var b Batch
		for n := range 10 {
			b.Add(epoch(n*10+i), filepath.Base(name), "stdout", fmt.Appendf(nil, "%s %d", name, n))
		}
		w.Write(&b)
		_ = w.Close()
	}
	if err := os.WriteFile(filepath.Join(root, "stray"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		query kiln.LogQuery
		want  string
	}{
		{kiln.LogQuery{Environment: "e", Service: "web", Tail: 2}, "e/web-1 8,e/web-2 8,e/web-1 9,e/web-2 9"},
		{kiln.LogQuery{Environment: "e", Service: "web-api", Tail: 1}, "e/web-api-1 9"},
		{kiln.LogQuery{Instance: "web-9", Tail: 1}, "f/web-9 9"},
		{kiln.LogQuery{Environment: "e", Instance: "web-2", Since: epoch(81)}, "e/web-2 8,e/web-2 9"},
		{kiln.LogQuery{Environment: "../e"}, ""},
		{kiln.LogQuery{Tail: 1}, "e/web-1 9,e/web-2 9,e/web-api-1 9,f/web-9 9"},
	}
	for _, c := range cases {
		if got := strings.Join(texts(read(t, root, c.query)), ","); got != c.want {
			t.Errorf("%+v: %s, want %s", c.query, got, c.want)
		}
	}
	if got := read(t, filepath.Join(root, "nowhere"), kiln.LogQuery{}); len(got) != 0 {
		t.Errorf("lines from nowhere: %v", got)
	}
}

func TestLastReadsAcrossFiles(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "e", "web-1")
	w := NewWriter(dir, MinBytes)
	for i := range 30 {
		put(t, w, "web-1", i*100, (i+1)*100)
	}
	_ = w.Close()
	for _, n := range []int{0, 1, 20, 1500, 2500} {
		got, err := Last(dir, n)
		if err != nil || len(got) != n {
			t.Fatalf("Last(%d) = %d lines, %v", n, len(got), err)
		}
		for i, l := range got {
			if want := fmt.Sprintf("line %06d", 3000-n+i); l.Text != want {
				t.Fatalf("Last(%d)[%d] = %q, want %q", n, i, l.Text, want)
			}
		}
	}
	if got, err := Last(filepath.Join(root, "none"), 5); err != nil || len(got) != 0 {
		t.Fatalf("Last of nothing = %v, %v", got, err)
	}
	if got, err := Last(dir, 1<<20); err != nil || len(got) != 3000 {
		t.Fatalf("Last of more than there are = %d, %v", len(got), err)
	}
}

func TestFollowTakesInRotationsAndNewInstances(t *testing.T) {
	root := filepath.Join(t.TempDir(), "logs")
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- Read(ctx, pw, root, kiln.LogQuery{Environment: "e", Follow: true, Tail: 1})
		_ = pw.Close()
	}()
	s := bufio.NewScanner(pr)
	next := func() kiln.LogLine {
		t.Helper()
		if !s.Scan() {
			t.Fatal("the stream ended")
		}
		return parseLines(t, s.Bytes())[0]
	}
	one := NewWriter(filepath.Join(root, "e", "web-1"), MinBytes)
	defer one.Close()
	other := NewWriter(filepath.Join(root, "f", "web-1"), MinBytes)
	defer other.Close()
	put(t, other, "web-1", 0, 5)
	put(t, one, "web-1", 0, 1)
	if l := next(); l.Text != "line 000000" {
		t.Fatalf("first line %+v", l)
	}
	const lines = 5000 // more than three files, less than the reader may fall behind
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := 1; i < lines; i += 100 {
			put(t, one, "web-1", i, min(i+100, lines))
			runtimeYield(one.dir)
		}
	}()
	for i := 1; i < lines; i++ {
		if l := next(); l.Text != fmt.Sprintf("line %06d", i) {
			t.Fatalf("line %d is %+v", i, l)
		}
	}
	<-written
	two := NewWriter(filepath.Join(root, "e", "worker-2"), 0)
	defer two.Close()
	put(t, two, "worker-2", 7, 8)
	if l := next(); l.Instance != "worker-2" || l.Text != "line 000007" {
		t.Fatalf("line of the new instance: %+v", l)
	}
	cancel()
	if s.Scan() {
		t.Fatalf("one more line: %s", s.Text())
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// runtimeYield lets the reader run, by an operation of the disk.
func runtimeYield(dir string) { _, _ = os.ReadDir(dir) }

func TestPruneRemovesTheLongestSilentDead(t *testing.T) {
	root := t.TempDir()
	for i, name := range []string{"e/web-1", "e/web-2", "f/web-3"} {
		dir := filepath.Join(root, name)
		w := NewWriter(dir, 0)
		put(t, w, "x", 0, 100)
		_ = w.Close()
		if err := os.Chtimes(filepath.Join(dir, "current"), epoch(i), epoch(i)); err != nil {
			t.Fatal(err)
		}
	}
	total, err := Usage(root)
	if err != nil {
		t.Fatal(err)
	}
	alive := func(_, instance string) bool { return instance == "web-1" }
	freed, err := Prune(root, total*2/3, alive)
	if err != nil || freed != total/3 {
		t.Fatalf("freed %d of %d, %v", freed, total, err)
	}
	if _, err := os.Stat(filepath.Join(root, "e/web-2")); !os.IsNotExist(err) {
		t.Fatalf("web-2: %v", err)
	}
	if freed, err = Prune(root, 0, alive); err != nil || freed != total/3 {
		t.Fatalf("freed %d, %v", freed, err)
	}
	if _, err := os.Stat(filepath.Join(root, "f")); !os.IsNotExist(err) {
		t.Fatalf("an empty environment's folder stays: %v", err)
	}
	if _, err := os.Stat(filepath.Join(root, "e/web-1/current")); err != nil {
		t.Fatal(err)
	}
}

func FuzzBatch(f *testing.F) {
	f.Add([]byte("plain"), "web-1")
	f.Add([]byte("\x1b[31m\xff\xfe \u2028 \\ \" \x00\x7f"), "we\"b")
	f.Fuzz(func(t *testing.T, text []byte, instance string) {
		var b Batch
		b.Add(epoch(0), instance, "stdout", text)
		var l kiln.LogLine
		if err := json.Unmarshal(b.buf, &l); err != nil {
			t.Fatalf("%q: %v", b.buf, err)
		}
		want, _ := json.Marshal(string(text)) // the same replacement
		var w string
		_ = json.Unmarshal(want, &w)
		if l.Text != w || !utf8.ValidString(l.Text) || !l.At.Equal(epoch(0)) {
			t.Fatalf("%q became %q", text, l.Text)
		}
		if bytes.Count(b.buf, []byte("\n")) != 1 {
			t.Fatalf("not one line: %q", b.buf)
		}
	})
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"at":"2023-11-14T22:13:20Z","instance":"a","stream":"stdout","text":"x"}`+"\n{\n\n"), []byte("junk"))
	f.Fuzz(func(t *testing.T, current, older []byte) {
		dir := filepath.Join(t.TempDir(), "e", "i")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_ = os.WriteFile(filepath.Join(dir, "current"), current, 0o600)
		_ = os.WriteFile(filepath.Join(dir, "3"), older, 0o600)
		if _, err := Last(dir, 3); err != nil {
			t.Fatal(err)
		}
		if err := Read(t.Context(), io.Discard, filepath.Dir(filepath.Dir(dir)), kiln.LogQuery{}); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	w := NewWriter(filepath.Join(b.TempDir(), "e", "i"), 10<<20)
	defer w.Close()
	var batch Batch
	text := bytes.Repeat([]byte("x"), 100)
	b.SetBytes(100 * 100)
	for b.Loop() {
		batch.Reset()
		for range 100 {
			batch.Add(epoch(0), "web-01jabcdef", "stdout", text)
		}
		w.Write(&batch)
	}
}

// flood is a reader's output that writes more to the log than it takes.
type flood struct {
	t     *testing.T
	log   *Writer
	next  int
	taken bytes.Buffer
	calls int
	then  func(text string) // with what was taken last
}

func (f *flood) Write(b []byte) (int, error) {
	if f.calls++; f.calls > 100 {
		return 0, errors.New("the reader runs after the flood")
	}
	if f.then != nil {
		f.then(string(b))
	}
	put(f.t, f.log, "flood-1", f.next, f.next+1000)
	f.next += 1000
	return f.taken.Write(b)
}

func TestReadEndsAtWhatIsThereWhenItBegins(t *testing.T) {
	root := t.TempDir()
	w := NewWriter(filepath.Join(root, "e", "flood-1"), 64<<20)
	put(t, w, "flood-1", 0, 1000)
	out := &flood{t: t, log: w, next: 1000}
	if err := Read(t.Context(), out, root, kiln.LogQuery{}); err != nil {
		t.Fatal(err)
	}
	if got := parseLines(t, out.taken.Bytes()); len(got) != 1000 || got[999].Text != "line 000999" {
		t.Errorf("%d lines, the last %q", len(got), got[len(got)-1].Text)
	}
	// What is asked for next has gone on, and the files have turned meanwhile.
	turning := NewWriter(filepath.Join(root, "e", "flood-1"), MinBytes)
	put(t, turning, "flood-1", out.next, out.next+100)
	again := &flood{t: t, log: turning, next: out.next + 100}
	if err := Read(t.Context(), again, root, kiln.LogQuery{Tail: 500}); err != nil {
		t.Fatal(err)
	}
	if got := parseLines(t, again.taken.Bytes()); len(got) > 500 {
		t.Errorf("%d lines of 500", len(got))
	}
}

func TestAFloodDoesNotHideTheOthersFromWhoFollows(t *testing.T) {
	root := t.TempDir()
	w, quiet := NewWriter(filepath.Join(root, "e", "flood-1"), 64<<20), NewWriter(filepath.Join(root, "e", "quiet-1"), 0)
	put(t, w, "flood-1", 0, 1000)
	put(t, quiet, "quiet-1", 0, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &flood{t: t, log: w, next: 1000}
	seen := false
	out.then = func(text string) {
		if out.calls == 1 {
			put(t, quiet, "quiet-1", 500_000, 500_001)
		}
		if strings.Contains(text, "line 500000") {
			seen = true
			cancel()
		}
	}
	if err := Read(ctx, out, root, kiln.LogQuery{Follow: true}); err != nil || !seen {
		t.Errorf("seen %v, %v", seen, err)
	}
}
