package seal

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/kilnproject/kiln"
)

// TestLayersAreListed: entries come as the tars have them, also those that a
// later layer hides, and layers to skip have none.
func TestLayersAreListed(t *testing.T) {
	store := folder(t.TempDir())
	s := &Sealer{opt: Options{Dir: t.TempDir(), Store: store, Limits: DefaultLimits()}}
	image := store.image(t,
		layer(t, folderAt("etc"), file("etc/a", "one")),
		layer(t, file("etc/.wh.a", ""), file("tool", "two").perm(0o4755).owner(7, 8), hardlink("other", "tool"), symlink("link", "/tool")),
	)
	m, err := store.Manifest(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	first := kiln.Digest(m.Layers[0].Digest)
	got, err := s.Entries(t.Context(), image, worker(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	var said [2][]string
	for i, l := range got {
		if l.Digest != kiln.Digest(m.Layers[i].Digest) {
			t.Errorf("layer %d is %s", i, l.Digest)
		}
		for _, e := range l.Entries {
			said[i] = append(said[i], fmt.Sprintf("%s %s %04o %d:%d %d %s%s", e.Path, e.Type, e.Mode, e.UID, e.GID, e.ModTime.Unix(), e.Link, e.Content.Short()))
		}
	}
	id := func(text string) string { return kiln.DigestOf([]byte(text)).Short() }
	if want := []string{"etc folder 0755 0:0 2000 ", "etc/a file 0644 0:0 1000 " + id("one")}; !slices.Equal(said[0], want) {
		t.Errorf("%q, want %q", said[0], want)
	}
	if len(said[1]) != 4 || said[1][1] != "tool file 4755 7:8 1000 "+id("two") || said[1][0] != "etc/.wh.a file 0644 0:0 1000 " {
		t.Errorf("%q", said[1])
	}
	if got, err = s.Entries(t.Context(), image, worker(t), []kiln.Digest{first}); err != nil || len(got) != 2 || len(got[0].Entries) != 0 || len(got[1].Entries) != 4 {
		t.Errorf("without the first layer: %+v, %v", got, err)
	}
}

func TestASealedFileIsChecked(t *testing.T) {
	s := newSigning(t, t.TempDir(), folder(t.TempDir()), newNotary(t))
	image := kiln.DigestOf([]byte("image"))
	if _, sealed, err := s.Check(t.Context(), image, nil); sealed || err != nil {
		t.Errorf("what is not sealed: %v, %v", sealed, err)
	}
	points, err := cleanPoints(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := keyOf(image, points)
	if err := os.WriteFile(s.imagePath(key), []byte("sealed"), 0o600); err != nil {
		t.Fatal(err)
	}
	seal := kiln.DigestOf([]byte("sealed"))
	if err := s.save(t.Context(), key, record{Format: formatVersion, Image: image, Points: points, Seal: seal, Size: 6}); err != nil {
		t.Fatal(err)
	}
	if got, sealed, err := s.Check(t.Context(), image, nil); got != seal || !sealed || err != nil {
		t.Errorf("%s, %v, %v", got, sealed, err)
	}
	change(t, s.imagePath(key), flip(3))
	if _, sealed, err := s.Check(t.Context(), image, nil); !sealed || err == nil {
		t.Error("another file is what its record says")
	}
	change(t, s.imagePath(key), flip(3))
	change(t, s.recordPath(key), flip(20))
	if _, sealed, err := s.Check(t.Context(), image, nil); !sealed || err == nil {
		t.Error("a record that was changed is believed")
	}
	if err := os.Remove(s.recordPath(key)); err != nil {
		t.Fatal(err)
	}
	if _, sealed, err := s.Check(t.Context(), image, nil); sealed || err != nil {
		t.Errorf("without a record: %v, %v", sealed, err)
	}
}
