package bake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kilnproject/kiln"
)

// shelf is a store in a folder, one file per blob.
type shelf struct{ dir string }

func (s shelf) Put(_ context.Context, r io.Reader, _ kiln.Digest) (kiln.Digest, int64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	d := kiln.DigestOf(b)
	return d, int64(len(b)), os.WriteFile(filepath.Join(s.dir, d.Hex()), b, 0o600)
}

func (s shelf) Open(d kiln.Digest) (*os.File, error) { return os.Open(filepath.Join(s.dir, d.Hex())) }

func (s shelf) Has(d kiln.Digest) bool {
	_, err := os.Stat(filepath.Join(s.dir, d.Hex()))
	return err == nil
}

func (s shelf) Verify(_ context.Context, d kiln.Digest) error {
	at := filepath.Join(s.dir, d.Hex())
	if b, err := os.ReadFile(at); err != nil || kiln.DigestOf(b) == d {
		return err
	}
	return errors.Join(kiln.ErrNotFound, os.Remove(at))
}
func (s shelf) Dir() string                                  { return s.dir }
func (shelf) Sync() error                                    { return nil }
func (shelf) Hold(context.Context) (release func(), _ error) { return func() {}, nil }

// plant puts files into a store as a tree.
func plant(t *testing.T, s Store, files map[string]string) kiln.Tree {
	t.Helper()
	var tree kiln.Tree
	for name, content := range files {
		if dir, ok := strings.CutSuffix(name, "/"); ok {
			tree.Entries = append(tree.Entries, kiln.TreeEntry{Path: dir, Mode: fs.ModeDir | 0o755})
			continue
		}
		d, n, err := s.Put(t.Context(), strings.NewReader(content), "")
		if err != nil {
			t.Fatal(err)
		}
		tree.Entries = append(tree.Entries, kiln.TreeEntry{Path: name, Mode: 0o644, Size: n, Digest: d})
	}
	slices.SortFunc(tree.Entries, func(a, b kiln.TreeEntry) int { return strings.Compare(a.Path, b.Path) })
	return tree
}

func fromFile(name string, contexts map[string]string) kiln.Image {
	return kiln.Image{Name: name, Platform: "linux/amd64", Dockerfile: &kiln.Dockerfile{Context: ".", File: "Dockerfile", Contexts: contexts}}
}

func TestCheckGraph(t *testing.T) {
	for name, c := range map[string]struct {
		images []kiln.Image
		want   string
	}{
		"chain":   {[]kiln.Image{fromFile("c", map[string]string{"x": "b"}), fromFile("b", map[string]string{"x": "a"}), fromFile("a", nil)}, ""},
		"circle":  {[]kiln.Image{fromFile("a", map[string]string{"x": "b"}), fromFile("b", map[string]string{"x": "a"})}, "in a circle: a from b from a"},
		"self":    {[]kiln.Image{fromFile("a", map[string]string{"x": "a"})}, "in a circle: a from a"},
		"unknown": {[]kiln.Image{fromFile("a", map[string]string{"x": "nonesuch"})}, `"nonesuch", which is not defined`},
		"twice":   {[]kiln.Image{fromFile("a", nil), fromFile("a", nil)}, "defined twice"},
		"none":    {[]kiln.Image{{Name: "a"}}, "has 0 of"},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkGraph(c.images)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func paths(entries []kiln.TreeEntry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.Path)
	}
	return out
}

func TestVisible(t *testing.T) {
	s := shelf{t.TempDir()}
	tree := plant(t, s, map[string]string{
		"app/": "", "app/Dockerfile": "", "app/a/": "", "app/a/x.log": "", "app/a/keep.log": "", "app/a-b": "", "app/node/": "", "app/node/big": "",
		"app/.dockerignore": "**/*.log\n!a/keep.log\nnode\n", "outside": "",
	})
	f, err := newFolder(s, tree, "app")
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.visible("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{".dockerignore", "Dockerfile", "a", "a/keep.log", "a-b"}
	if diff := cmp.Diff(want, paths(got)); diff != "" {
		t.Error(diff)
	}
}

func TestFolderRefusesEscapes(t *testing.T) {
	s := shelf{t.TempDir()}
	for _, root := range []string{"..", "../x", "/etc", "a/../.."} {
		if _, err := newFolder(s, kiln.Tree{}, root); err == nil {
			t.Errorf("context %q was taken", root)
		}
	}
	if _, err := newFolder(s, kiln.Tree{Entries: []kiln.TreeEntry{{Path: "../x", Mode: 0o644}}}, "."); err == nil {
		t.Error("an entry outside the tree was taken")
	}
	if _, err := newFolder(s, kiln.Tree{}, "absent"); err == nil {
		t.Error("an absent context was taken")
	}
}

func TestReferences(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		args map[string]string
		tgt  string
		want []string
	}{
		"plain":    {file: "FROM debian:12\n", want: []string{"debian:12"}},
		"context":  {file: "FROM base\n"},
		"scratch":  {file: "FROM scratch\n"},
		"argument": {file: "ARG V=12\nFROM debian:${V}\n", want: []string{"debian:12"}},
		"given":    {file: "ARG V=12\nFROM debian:$V\n", args: map[string]string{"V": "13"}, want: []string{"debian:13"}},
		"stages":   {file: "FROM a:1 AS build\nFROM scratch\nCOPY --from=build /x /x\nCOPY --from=b:2 /y /y\nCOPY --from=0 /z /z\n", want: []string{"a:1", "b:2"}},
		"mount":    {file: "FROM base\nRUN --mount=type=bind,from=tool:1,target=/t true\n", want: []string{"tool:1"}},
		"unused":   {file: "FROM a:1 AS one\nFROM b:1 AS two\n", want: []string{"b:1"}},
		"target":   {file: "FROM a:1 AS one\nFROM b:1 AS two\n", tgt: "one", want: []string{"a:1"}},
		"latest":   {file: "FROM base:latest\nCOPY --from=docker.io/library/base /x /x\n"},
		"replaced": {file: "FROM a:1 AS base\nFROM base\n"}, // by the context of that name
		"options":  {file: "FROM base\nARG UID=7\nRUN --mount=type=cache,target=/c,uid=$UID --mount=from=tool:1,target=/t true\n", want: []string{"tool:1"}},
		"platform": {file: "FROM --platform=$BUILDPLATFORM a:$TARGETARCH\n", want: []string{"a:amd64"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := shelf{t.TempDir()}
			f, err := newFolder(s, plant(t, s, map[string]string{"Dockerfile": c.file}), ".")
			if err != nil {
				t.Fatal(err)
			}
			image := fromFile("x", map[string]string{"base": "base"})
			image.Dockerfile.Args, image.Dockerfile.Target = c.args, c.tgt
			r, err := readRecipe(image, f)
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.references(image)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestWhatNoRunGetsIsRefused(t *testing.T) {
	for options, want := range map[string]string{
		"--network=host": "--network=host is not allowed", "--security=insecure": "insecure is not allowed",
		"--mount=type=secret,id=x,required=true": "type=secret,required=true is not supported", "--mount=type=ssh,required": "type=ssh,required=true is not supported",
		"--mount=type=secret,id=x": "", "--network=none": "", "--mount=type=secret,id=$STAGE": "",
	} {
		s := shelf{t.TempDir()}
		f, err := newFolder(s, plant(t, s, map[string]string{"Dockerfile": "FROM scratch\nARG STAGE=y\nRUN " + options + " true\n"}), ".")
		if err != nil {
			t.Fatal(err)
		}
		image := fromFile("x", nil)
		r, err := readRecipe(image, f)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.references(image)
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", options, err)
			}
			continue
		}
		var said *kiln.Error
		if !errors.As(err, &said) || said.Code != kiln.CodeRefused || !strings.Contains(said.Message, want) || said.Hint == "" ||
			len(said.Diagnostics) != 1 || said.Diagnostics[0].Line != 3 || !strings.HasPrefix(said.Diagnostics[0].Snippet, "RUN ") {
			t.Errorf("%s: %+v", options, err)
		}
	}
}

func TestMountsThatStayEmptyAreSaid(t *testing.T) {
	s := shelf{t.TempDir()}
	file := "FROM scratch\nRUN --mount=type=secret,id=x \\\n --mount=type=ssh true\nRUN --mount=type=cache,target=/c true\n"
	f, err := newFolder(s, plant(t, s, map[string]string{"Dockerfile": file}), ".")
	if err != nil {
		t.Fatal(err)
	}
	r, err := readRecipe(fromFile("x", nil), f)
	if err != nil {
		t.Fatal(err)
	}
	got := r.warnings(fromFile("x", nil))
	if len(got) != 2 || !strings.Contains(got[0], "line 2: --mount=type=secret") || !strings.Contains(got[1], "line 2: --mount=type=ssh") {
		t.Errorf("%q", got)
	}
}

// TestReadFollowsLinksInside: as BuildKit reads a Dockerfile.
func TestReadFollowsLinksInside(t *testing.T) {
	s := shelf{t.TempDir()}
	tree := plant(t, s, map[string]string{"c/real/D": "FROM scratch\n", "outside": "no"})
	for name, target := range map[string]string{
		"c/Dockerfile": "sub/D", "c/sub": "/real", "c/up": "../../../real/D", "c/out": "../outside", "c/loop": "loop", "c/folder": "real",
	} {
		tree.Entries = append(tree.Entries, kiln.TreeEntry{Path: name, Mode: fs.ModeSymlink | 0o777, Link: target})
	}
	tree.Entries = append(tree.Entries, kiln.TreeEntry{Path: "c/real", Mode: fs.ModeDir | 0o755})
	f, err := newFolder(s, tree, "c")
	if err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{"Dockerfile": true, "up": true, "sub/D": true, "out": false, "loop": false, "folder": false, "absent": false} {
		b, err := f.read(name)
		if (err == nil) != ok || ok && string(b) != "FROM scratch\n" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

// TestManyStages would take for ever if each number were followed anew.
func TestManyStages(t *testing.T) {
	var text strings.Builder
	text.WriteString("FROM a:1\n")
	for i := range 200 {
		fmt.Fprintf(&text, "FROM scratch\nCOPY --from=%d a a\nCOPY --from=%d b b\n", i, i)
	}
	s := shelf{t.TempDir()}
	f, err := newFolder(s, plant(t, s, map[string]string{"Dockerfile": text.String()}), ".")
	if err != nil {
		t.Fatal(err)
	}
	r, err := readRecipe(fromFile("x", nil), f)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.references(fromFile("x", nil)); err != nil || !slices.Equal(got, []string{"a:1"}) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestBrokenDockerfile(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		line int
	}{
		"unknown": {"FROM scratch\nRUNN x\n", 2},
		"empty":   {"", 0},
		"no from": {"RUN x\n", 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := shelf{t.TempDir()}
			f, err := newFolder(s, plant(t, s, map[string]string{"Dockerfile": c.file}), ".")
			if err != nil {
				t.Fatal(err)
			}
			_, err = readRecipe(fromFile("x", nil), f)
			known, ok := err.(*kiln.Error) //nolint:errorlint // it must be one itself
			if !ok || len(known.Diagnostics) != 1 || known.Diagnostics[0].Line != c.line {
				t.Errorf("got %#v", err)
			}
		})
	}
}

// TestADamagedImageIsNotKnown: it is removed, so that it is made anew.
func TestADamagedImageIsNotKnown(t *testing.T) {
	s := shelf{t.TempDir()}
	put := func(content string) kiln.Digest {
		d, _, err := s.Put(t.Context(), strings.NewReader(content), "")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	config, layer := put("{}"), put("layer")
	manifest := put(fmt.Sprintf(`{"config":{"digest":%q},"layers":[{"digest":%q,"size":5}]}`, config, layer))
	x := index{dir: t.TempDir(), store: s}
	for _, d := range []kiln.Digest{config, manifest} {
		if size, ok := x.whole(t.Context(), manifest); !ok || size != 5 {
			t.Fatalf("whole: %d, %v", size, ok)
		}
		at := filepath.Join(s.dir, d.Hex())
		sound, err := os.ReadFile(at)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, append([]byte(" "), sound...), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, ok := x.whole(t.Context(), manifest); ok || s.Has(d) {
			t.Errorf("%s is damaged: whole %v, there %v", d.Short(), ok, s.Has(d))
		}
		put(string(sound))
	}
}

func TestChanged(t *testing.T) {
	image := fromFile("x", map[string]string{"base": "golden"})
	image.Dockerfile.Context = "web"
	entry := func(name, content string) kiln.TreeEntry {
		return kiln.TreeEntry{Path: name, Digest: kiln.DigestOf([]byte(content))}
	}
	before := inputs{
		Format: format, Dockerfile: "d", Image: kiln.Image{Dockerfile: &kiln.Dockerfile{Args: map[string]string{"A": "1"}}},
		Context: []kiln.TreeEntry{entry("a", "1"), entry("b", "1")}, Bases: map[string]kiln.Digest{"base": "1"},
	}
	for want, change := range map[string]func(*inputs){
		"web/a changed":                              func(i *inputs) { i.Context = []kiln.TreeEntry{entry("a", "2"), entry("b", "1")} },
		"web/c is new":                               func(i *inputs) { i.Context = append(slices.Clone(i.Context), entry("c", "1")) },
		"web/b is gone":                              func(i *inputs) { i.Context = i.Context[:1] },
		"web/a and one other file changed":           func(i *inputs) { i.Context = []kiln.TreeEntry{entry("a", "2"), entry("b", "2")} },
		"web/Dockerfile changed":                     func(i *inputs) { i.Dockerfile = "e" },
		"base image.golden changed":                  func(i *inputs) { i.Bases = map[string]kiln.Digest{"base": "2"} },
		"argument A changed":                         func(i *inputs) { i.Image.Dockerfile = &kiln.Dockerfile{Args: map[string]string{"A": "2"}} },
		"its definition changed":                     func(i *inputs) { i.Image.Hermetic = true },
		"Kiln bakes differently since its last bake": func(i *inputs) { i.Format++ },
		"the store has lost it":                      func(*inputs) {},
	} {
		after := before
		change(&after)
		if got := changed(image, before, after); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestInputsDigest(t *testing.T) {
	s := shelf{t.TempDir()}
	digest := func(name string, files map[string]string, bases map[string]kiln.Digest) kiln.Digest {
		t.Helper()
		f, err := newFolder(s, plant(t, s, files), ".")
		if err != nil {
			t.Fatal(err)
		}
		image := fromFile(name, map[string]string{"base": "whatever"})
		r, err := readRecipe(image, f)
		if err != nil {
			t.Fatal(err)
		}
		in, err := dockerfileInputs(image, r, f, bases)
		if err != nil {
			t.Fatal(err)
		}
		return in.digest()
	}
	files := map[string]string{"Dockerfile": "FROM base\n", "x": "1", "ignored": "1", ".dockerignore": "ignored\n"}
	bases := map[string]kiln.Digest{"base": "1"}
	one := digest("a", files, bases)
	files["ignored"] = "2"
	if digest("b", files, bases) != one {
		t.Error("an ignored file or the image's name changes the inputs")
	}
	files["x"] = "2"
	if digest("a", files, bases) == one {
		t.Error("a changed file does not change the inputs")
	}
}

// newBaker is a baker with a folder of its own, which ends with the test.
func newBaker(t *testing.T, s Store) *Baker {
	t.Helper()
	b, err := New(t.Context(), Options{Dir: t.TempDir(), Store: s})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestLookupWithoutBaking(t *testing.T) {
	s := shelf{t.TempDir()}
	b := newBaker(t, s)
	req := kiln.BakeRequest{
		Images: []kiln.Image{
			{Name: "base", Platform: "linux/amd64", Debian: &kiln.Debian{Suite: "bookworm"}},
			fromFile("web", map[string]string{"base": "base"}),
			{Name: "ref", Platform: "linux/amd64", Reference: "example.com/x:1"},
			fromFile("alone", nil),
		},
		Tree: plant(t, s, map[string]string{"Dockerfile": "FROM scratch\n"}),
	}
	known, reasons, err := b.Lookup(t.Context(), req)
	if err != nil || len(known) != 0 {
		t.Fatal(known, err)
	}
	want := map[string]string{
		"base": "its packages are not resolved yet", "web": "its base image.base must be baked first",
		"ref": "example.com/x:1 is not resolved yet", "alone": "it was never baked here",
	}
	if diff := cmp.Diff(want, reasons); diff != "" {
		t.Error(diff)
	}
	req.Locked = true
	if _, _, err := b.Lookup(t.Context(), req); !errors.Is(err, &kiln.Error{Code: kiln.CodeRefused}) ||
		!strings.Contains(err.Error(), `"base": its Debian packages are not in the lock`) || !strings.Contains(err.Error(), "example.com/x:1 for linux/amd64 is not in the lock") {
		t.Errorf("with the lock alone: %v", err)
	}
}

func FuzzReadRecipe(f *testing.F) {
	f.Add("FROM debian:${V:-12}\nRUN --mount=from=x,target=/y true\nCOPY --from=0 a b\n")
	f.Add("# escape=`\nARG A\nFROM $A AS a\nFROM a\nCOPY <<E /x\nE\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := shelf{t.TempDir()}
		folder, err := newFolder(s, plant(t, s, map[string]string{"Dockerfile": text}), ".")
		if err != nil {
			t.Fatal(err)
		}
		image := fromFile("x", nil)
		r, err := readRecipe(image, folder)
		if err != nil {
			return
		}
		_, _ = r.references(image) // must not panic or hang
	})
}

func TestAMisspelledContextIsExplained(t *testing.T) {
	cause := kiln.Errorf(kiln.CodeUnavailable, "check the network", "pull bsae: no such host")
	image := kiln.Image{Name: "app", Dockerfile: &kiln.Dockerfile{Contexts: map[string]string{"base": "debian"}}}
	var said *kiln.Error
	if !errors.As(notAContext(image, "bsae", cause), &said) || !strings.Contains(said.Hint, "there are: base") || !strings.HasPrefix(said.Hint, "bsae is neither") {
		t.Fatalf("%+v", said)
	}
	for _, ref := range []string{"example.com/base:1", "base@sha256:00"} {
		if err := notAContext(image, ref, cause); err != cause { //nolint:errorlint // the same, untouched
			t.Errorf("%s: %v", ref, err)
		}
	}
}
