package seal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/kilnproject/kiln"
)

// lookTask is what the worker of these tests does with a tree.
const lookTask = "look"

// looked is what it says.
type looked struct {
	Request string            `json:"request"`
	Files   []string          `json:"files"`   // of all layers: layer, path, content
	Present map[string]string `json:"present"` // by path: layer, content
	Sound   string            `json:"sound"`   // what testing/fstest says
}

func look(_ context.Context, tree *Tree, request json.RawMessage) (any, error) {
	l := looked{Present: map[string]string{}}
	if err := json.Unmarshal(request, &l.Request); err != nil {
		return nil, err
	}
	for f := range tree.Files() {
		b, err := io.ReadAll(f.Content)
		if err != nil {
			return nil, err
		}
		l.Files = append(l.Files, fmt.Sprintf("%s %s %s %s", f.Layer.Short(), f.Path, f.Info.Mode(), b))
	}
	for _, name := range []string{"etc/a", "link", "usr/etc/b", "out", "gone", "loop", "dir", "big"} {
		b, err := fs.ReadFile(tree, name)
		if err != nil {
			l.Present[name] = "error"
			continue
		}
		l.Present[name] = tree.Layer("/"+name).Short() + " " + string(b[:min(len(b), 20)])
	}
	etc, err := fs.Sub(tree, "etc") // the root has a link that leads nowhere
	if err = errors.Join(err, fstest.TestFS(etc, "a", "b")); err != nil {
		l.Sound = err.Error()
	}
	return l, nil
}

// TestATreeIsHanded: a worker sees an image's files, those that are gone too,
// and nothing outside of them.
func TestATreeIsHanded(t *testing.T) {
	store := folder(t.TempDir())
	s := &Sealer{opt: Options{Dir: t.TempDir(), Store: store, Limits: DefaultLimits()}}
	layers := [][]byte{
		layer(t, folderAt("etc"), file("etc/a", "one"), file("gone", "secret"), file("etc/b", "two"), folderAt("usr"), symlink("usr/etc", "../etc")),
		layer(t, file("etc/a", "new"), file(".wh.gone", ""), symlink("link", "/etc/a"), symlink("out", "../../../etc/b"), symlink("loop", "loop")),
		layer(t, file("big", strings.Repeat("x", 70_000)), folderAt("dir")),
	}
	image := store.image(t, layers...)
	m, err := store.Manifest(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	id := func(n int) string { return kiln.Digest(m.Layers[n].Digest).Short() }
	var got looked
	if err := s.Hand(t.Context(), image, worker(t), lookTask, "please", &got); err != nil {
		t.Fatal(err)
	}
	files := []string{
		id(0) + " etc/a -rw-r--r-- one", id(0) + " gone -rw-r--r-- secret", id(0) + " etc/b -rw-r--r-- two",
		id(1) + " etc/a -rw-r--r-- new", id(2) + " big -rw-r--r-- " + strings.Repeat("x", 70_000),
	}
	if !slices.Equal(got.Files, files) {
		t.Errorf("%.200q", got.Files)
	}
	want := map[string]string{
		"etc/a": id(1) + " new", "link": id(1) + " new", "usr/etc/b": id(0) + " two", "out": id(1) + " two", "gone": "error", "loop": "error", "dir": "error",
		"big": id(2) + " xxxxxxxxxxxxxxxxxxxx",
	}
	for name, w := range want {
		if got.Present[name] != w {
			t.Errorf("%s: %q, want %q", name, got.Present[name], w)
		}
	}
	if got.Request != "please" || got.Sound != "" {
		t.Errorf("%q %s", got.Request, got.Sound)
	}
}

func TestATreeOfADamagedImageIsNotHanded(t *testing.T) {
	store := folder(t.TempDir())
	s := &Sealer{opt: Options{Dir: t.TempDir(), Store: store, Limits: DefaultLimits()}}
	var got looked
	climbs := store.image(t, layer(t, file("../x", "")))
	err := s.Hand(t.Context(), climbs, worker(t), lookTask, "", &got)
	if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Code != kiln.CodeInvalid {
		t.Errorf("a path that climbs: %v", err)
	}
	for n, at := range map[int]int{0: 4, 2: 512} { // the time in the head of a gzip; the content of a plain file
		image := store.image(t, layer(t, file("a", "one")), layer(t, file("b", "two")), layer(t, file("c", "three")))
		m, err := store.Manifest(t.Context(), image)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(string(store), kiln.Digest(m.Layers[n].Digest).Hex())
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[at] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		err = s.Hand(t.Context(), image, worker(t), lookTask, "", &got)
		if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Code != kiln.CodeInvalid {
			t.Errorf("layer %d is damaged: %v", n, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("layer %d is still there: %v", n, err)
		}
	}
	if _, err := Receive(look)(t.Context(), json.RawMessage(`{"layers":[{}]}`), nil); err == nil {
		t.Error("a job without its files")
	}
}
