package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/ledger"
	"github.com/kilnproject/kiln/internal/sign"
	"github.com/kilnproject/kiln/internal/store"
)

// inherited is a data directory of an earlier version.
type inherited struct {
	t *testing.T
	*plane
}

func newInherited(t *testing.T) *inherited {
	t.Helper()
	p := &plane{data: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	if err := os.Mkdir(p.dir("ledger"), 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if p.ledger, err = ledger.Open(t.Context(), p.dir("ledger", "ledger.db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.ledger.Close(); err != nil {
			t.Error(err)
		}
	})
	if p.store, err = store.Open(p.dir("store")); err != nil {
		t.Fatal(err)
	}
	if p.signer, err = sign.New(sign.Options{Dir: p.dir("sign"), Store: signable{p.store}}); err != nil {
		t.Fatal(err)
	}
	return &inherited{t, p}
}

// release makes one of an image of its own.
func (i *inherited) release(name string) (kiln.Release, kiln.Digest) {
	i.t.Helper()
	put := func(text string) kiln.Digest {
		d, _, err := i.store.Put(i.t.Context(), bytes.NewReader([]byte(text)), "")
		if err != nil {
			i.t.Fatal(err)
		}
		return d
	}
	config := put(`{"architecture":"amd64","os":"linux","config":{"Labels":{"name":"` + name + `"}}}`)
	image := put(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` +
		string(config) + `","size":1},"layers":[]}`)
	bundle, err := i.store.PutBundle(i.t.Context(), kiln.Bundle{Images: []kiln.BundleImage{{Name: name, Platform: "linux/amd64", Manifest: image}}}, nil)
	if err != nil {
		i.t.Fatal(err)
	}
	r, err := i.ledger.CreateRelease(i.t.Context(), kiln.Release{
		Environment: "production", Bundle: bundle, State: kiln.ReleaseLive,
		Services: []kiln.ReleaseService{{Template: kiln.Template{Service: name, Image: image, Platform: "linux/amd64"}, Count: 1}},
	})
	if err != nil {
		i.t.Fatal(err)
	}
	return r, image
}

// mayRun says whether instances of an image and of its release may start.
func (i *inherited) mayRun(r kiln.Release, image kiln.Digest) bool {
	i.t.Helper()
	proof, err := i.signer.Verify(i.t.Context(), image)
	_, bundle := i.signer.Verify(i.t.Context(), r.Bundle)
	return err == nil && bundle == nil && proof.MayRun() == nil
}

func TestWhatAnEarlierVersionReleasedIsSignedOnce(t *testing.T) {
	i := newInherited(t)
	first, image := i.release("old")
	if i.mayRun(first, image) {
		t.Fatal("nobody has signed it yet")
	}
	for range 2 {
		if err := i.grandfather(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !i.mayRun(first, image) {
			t.Fatal("what ran before cannot be replaced")
		}
	}
	later, other := i.release("new")
	if err := i.grandfather(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i.mayRun(later, other) {
		t.Error("what was released since, and never judged, was signed too")
	}
}

func TestANewDirectoryInheritsNothing(t *testing.T) {
	i := newInherited(t)
	if err := i.grandfather(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, image := i.release("web")
	if err := i.grandfather(t.Context()); err != nil || i.mayRun(r, image) {
		t.Errorf("%v, may run: %t", err, i.mayRun(r, image))
	}
}

// TestOneThatCannotBeSignedKeepsNoOtherFromIt, and is signed at a later start.
func TestOneThatCannotBeSignedKeepsNoOtherFromIt(t *testing.T) {
	i := newInherited(t)
	bad, badImage := i.release("bad")
	good, goodImage := i.release("good")
	gone, goneImage := i.release("gone")
	blob := func(d kiln.Digest) string { return filepath.Join(i.dir("store", "blobs", "sha256"), d.Hex()) }
	sound, err := os.ReadFile(blob(badImage))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(blob(badImage), append([]byte(" "), sound...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []kiln.Digest{gone.Bundle, goneImage} {
		if err := os.Remove(blob(d)); err != nil {
			t.Fatal(err)
		}
	}
	if err := i.grandfather(t.Context()); err == nil {
		t.Error("a damaged image was signed")
	}
	if !i.mayRun(good, goodImage) || i.mayRun(bad, badImage) {
		t.Fatalf("good may run: %t, bad: %t", i.mayRun(good, goodImage), i.mayRun(bad, badImage))
	}
	later, other := i.release("new")
	if err := os.WriteFile(blob(badImage), sound, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := i.grandfather(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !i.mayRun(bad, badImage) || i.mayRun(later, other) {
		t.Errorf("mended may run: %t, released since: %t", i.mayRun(bad, badImage), i.mayRun(later, other))
	}
}

func TestAJudgedImageStaysJudged(t *testing.T) {
	i := newInherited(t)
	r, image := i.release("web")
	if err := i.signer.SignImage(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	if _, err := i.signer.AttestVerdict(t.Context(), kiln.Verdict{Image: image, Outcome: kiln.OutcomeFail}); err != nil {
		t.Fatal(err)
	}
	if err := i.grandfather(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i.mayRun(r, image) {
		t.Error("a verdict that failed was written over")
	}
}
