package bake_test

import (
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/kilnproject/kiln"
)

// TestRefreshMovesWhatIsPinned resolves a tag that moved; what is baked with
// the new lock stands on the new base.
func TestRefreshMovesWhatIsPinned(t *testing.T) {
	needRoot(t)
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	ref := strings.TrimPrefix(srv.URL, "http://") + "/lib/base:1"
	pushRandom(t, ref)
	s := newShop(t)
	req := kiln.BakeRequest{
		Images: []kiln.Image{dockerfile(nil)},
		Tree:   s.tree(map[string]string{"web/Dockerfile": "FROM " + ref + "\nCOPY a /a\n", "web/a": "a\n"}),
	}
	first := s.mustBake(req)
	req.Lock = first.Lock
	req.Lock.Debian = []kiln.LockedDebian{{Key: kiln.DigestOf(nil), Suite: "trixie"}} // of no image
	same, err := s.baker.Refresh(t.Context(), req)
	if err != nil || kiln.DigestJSON(same) != kiln.DigestJSON(req.Lock) {
		t.Fatalf("nothing moved: %+v %v", same, err)
	}
	pushRandom(t, ref)
	fresh, err := s.baker.Refresh(t.Context(), req)
	if err != nil || len(fresh.References) != 1 || fresh.References[0].Index == first.Lock.References[0].Index {
		t.Fatalf("the tag moved: %+v %v", fresh, err)
	}
	if again := s.mustBake(req); again.Images["web"].Manifest != first.Images["web"].Manifest {
		t.Error("with the old lock it is another image")
	}
	req.Lock = fresh
	if again := s.mustBake(req); again.Images["web"].Manifest == first.Images["web"].Manifest || again.Images["web"].Cached {
		t.Error("with the new lock it is the old image")
	}
	srv.Close()
	if _, err := s.baker.Refresh(t.Context(), req); err == nil {
		t.Error("no error though nobody answers")
	}
}
