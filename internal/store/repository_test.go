package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

func TestUpload(t *testing.T) {
	s := open(t)
	u, err := s.NewUpload()
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the line broke")
	if n, err := u.Append(t.Context(), &breaking{strings.NewReader("hel"), broken}, 100); n != 3 || !errors.Is(err, broken) || u.Size() != 3 {
		t.Errorf("append: %d %v, size %d", n, err, u.Size())
	}
	if n, err := u.Append(t.Context(), strings.NewReader("lo"), 100); n != 2 || err != nil || u.Size() != 5 {
		t.Errorf("append: %d %v, size %d", n, err, u.Size())
	}
	want := kiln.DigestOf([]byte("hello"))
	if s.Has(want) {
		t.Error("there before it was committed")
	}
	if err := u.Commit(want); err != nil {
		t.Fatal(err)
	}
	if b, err := s.document(want); err != nil || string(b) != "hello" {
		t.Errorf("%q %v", b, err)
	}
	if u, err = s.NewUpload(); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), strings.NewReader("other"), 4); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("above the limit: %v", err)
	}
	if err := u.Commit(want); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("commit as another: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, "tmp")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// breaking reads what it has and then fails.
type breaking struct {
	r   *strings.Reader
	err error
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.r.Len() == 0 {
		return 0, b.err
	}
	return b.r.Read(p)
}

func TestRepositories(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	baked := putImage(t, s, "web", "1")
	pushed := putImage(t, s, "", "2")
	if err := errors.Join(s.Shelve(ctx, "team/app", pushed), s.TagPushed(ctx, "team/app", "v1-", pushed), s.TagPushed(ctx, "team/app", "latest", pushed),
		s.Shelve(ctx, "web", baked)); err != nil {
		t.Fatal(err)
	}
	for repository, want := range map[string]map[string]kiln.Digest{"web": {"latest": baked}, "team/app": {"latest": pushed, "v1-": pushed}} {
		tags, err := s.Tags(ctx, repository)
		if err != nil || len(tags) != len(want) {
			t.Errorf("%s: %v %v", repository, tags, err)
		}
		for tag, d := range want {
			if kiln.Digest(tags[tag].Digest) != d {
				t.Errorf("%s:%s is %s, want %s", repository, tag, tags[tag].Digest, d)
			}
		}
	}
	if _, err := s.Tags(ctx, "team"); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("a part of a name: %v", err)
	}
	// An image baked again under the name stays in the repository by its digest.
	again := putImage(t, s, "web", "3")
	if err := s.Shelve(ctx, "web", again); err != nil {
		t.Fatal(err)
	}
	all, err := s.Manifests(ctx, "web")
	if err != nil || len(all) != 2 || all[baked].Size == 0 || all[again].Size == 0 {
		t.Errorf("of web: %v %v", all, err)
	}
	if n, err := s.Homes(ctx, pushed); n != 1 || err != nil {
		t.Errorf("homes: %d %v", n, err)
	}
	if err := s.Shelve(ctx, "web", pushed); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Homes(ctx, pushed); n != 2 || err != nil {
		t.Errorf("homes: %d %v", n, err)
	}
	if err := s.Unshelve(ctx, "team/app", pushed); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Tags(ctx, "team/app"); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("after all of it was taken out: %v", err)
	}
	if all, err := s.Manifests(ctx, "web"); err != nil || len(all) != 3 {
		t.Errorf("another repository lost something: %v %v", all, err)
	}
}

func TestCollectKeepsPushedTags(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	tagged, loose := putImage(t, s, "", "1"), putImage(t, s, "", "2")
	if err := errors.Join(s.Shelve(ctx, "app", tagged), s.Shelve(ctx, "app", loose), s.TagPushed(ctx, "app", "v1", tagged)); err != nil {
		t.Fatal(err)
	}
	said := putReferrer(t, s, tagged, typeInventory, "sbom")
	age(t, s, 2*time.Hour)
	if _, err := s.Collect(ctx, Keep{MaxBytes: 1}); err != nil {
		t.Fatal(err)
	}
	if !s.Has(tagged) || !s.Has(said) || s.Has(loose) {
		t.Errorf("tagged %v, said %v, loose %v", s.Has(tagged), s.Has(said), s.Has(loose))
	}
	if all, err := s.Manifests(ctx, "app"); err != nil || len(all) != 1 {
		t.Errorf("the repository: %v %v", all, err)
	}
	if err := s.UntagPushed(ctx, "app", "v1"); err != nil {
		t.Fatal(err)
	}
	age(t, s, 2*time.Hour)
	if _, err := s.Collect(ctx, Keep{}); err != nil || s.Has(tagged) || s.Has(said) {
		t.Errorf("after its tag went: %v %v %v", s.Has(tagged), s.Has(said), err)
	}
}
