package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/test/rig"
)

// flip changes one byte in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// flipReferrers changes a byte of all that is said of a manifest with a predicate
// type.
func flipReferrers(t *testing.T, r *rig.Rig, subject kiln.Digest, predicate string) {
	t.Helper()
	blob := func(d kiln.Digest) string { return filepath.Join(r.Data, "store", "blobs", "sha256", d.Hex()) }
	entries, err := os.ReadDir(filepath.Join(r.Data, "store", "referrers", subject.Hex()))
	if err != nil {
		t.Fatal(err)
	}
	flipped := 0
	for _, e := range entries {
		var m ocispec.Manifest
		raw, err := os.ReadFile(blob(kiln.Digest("sha256:" + e.Name())))
		if err == nil {
			err = json.Unmarshal(raw, &m)
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.Annotations["dev.sigstore.bundle.predicateType"] == predicate {
			flip(t, blob(kiln.Digest(m.Layers[0].Digest)))
			flipped++
		}
	}
	if flipped == 0 {
		t.Fatalf("nothing says %s of %s", predicate, subject)
	}
}

// doubts are the kinds of checks that fail, with the subject.
func doubts(t *testing.T, r *rig.Rig, release string) []string {
	t.Helper()
	var proof kiln.ReleaseProof
	out, err := r.Try("--json", "verify", release)
	if jsonErr := json.Unmarshal([]byte(out), &proof); jsonErr != nil {
		t.Fatalf("%v, %v\n%s", err, jsonErr, out)
	}
	var failed []string
	for _, c := range proof.Checks {
		if c.Outcome == kiln.OutcomeFail {
			failed = append(failed, fmt.Sprintf("%s of %s", c.Kind, c.Subject))
		}
	}
	if proof.Holds != (len(failed) == 0) || (err == nil) != proof.Holds {
		t.Errorf("holds: %v, exit: %v, failed: %v", proof.Holds, err, failed)
	}
	return failed
}

func restart(r *rig.Rig) {
	r.StopDaemon()
	r.Start()
}

func TestReleasesAreVerifiedRebuiltAndCompared(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", one("v1", 2, ""))
	first := up(r).Release
	out := r.Kiln("verify", first.Environment, "--rebuild")
	if !strings.Contains(out, "all holds") || !strings.Contains(out, "it has the same digest") {
		t.Errorf("verify --rebuild:\n%s", out)
	}
	if _, err := os.Lstat(filepath.Join(r.Data, "again")); err == nil {
		t.Error("what was baked again stays")
	}

	r.Write("app/page", "hello")
	r.Write("app/Dockerfile", "FROM scratch\nCOPY --chmod=755 app /app\nCOPY page /page\nCMD [\"/app\"]\n")
	r.Write("kiln.hcl", one("v2", 2, ""))
	second := up(r).Release
	var diff kiln.ReleaseDiff
	r.JSON(&diff, "diff", first.Environment)
	if diff.From.Release != 1 || diff.To.Release != 2 || len(diff.Definition) != 1 || len(diff.Images) != 1 || diff.Images[0].Files == nil ||
		!slices.ContainsFunc(diff.Images[0].Files.Entries, func(e kiln.EntryChange) bool { return e.Path == "/page" && e.Change == "added" }) {
		t.Errorf("diff: %+v", diff)
	}

	image := second.Services[0].Template.Image
	flipReferrers(t, r, second.Bundle, "https://sigstore.dev/cosign/sign/v1")
	flipReferrers(t, r, image, "https://kiln.dev/verdict/v1")
	records, err := filepath.Glob(filepath.Join(r.Data, "seal", "*.json"))
	if err != nil || len(records) == 0 {
		t.Fatalf("records of seals: %v, %v", records, err)
	}
	for _, path := range records {
		flip(t, path)
	}
	restart(r)
	name := fmt.Sprintf("%s/%d", second.Environment, second.Number)
	if got := doubts(t, r, name); !slices.Equal(got, []string{"signature of bundle", "verdict of app", "sealed of service web"}) {
		t.Errorf("after it was tampered with: %v", got)
	}
	if got := doubts(t, r, first.Environment+"/1"); !slices.Equal(got, []string{"sealed of service web"}) {
		t.Errorf("of the release before: %v", got)
	}

	// Those that run go on; in the place of one that ends nothing starts.
	var web []kiln.Instance
	for _, i := range instances(r) {
		if i.Image == image {
			web = append(web, i)
		}
	}
	if len(web) != 2 {
		t.Fatalf("instances: %+v", instances(r))
	}
	if err := syscall.Kill(web[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.Eventually(rig.Longest, "the replacement is refused", func() error {
		events := r.Kiln("events", second.Environment)
		for _, want := range []string{"nothing of " + name + " starts", "may not run"} {
			if !strings.Contains(events, want) {
				return fmt.Errorf("no event says %q:\n%s", want, events)
			}
		}
		return nil
	})
	if !slices.Contains(ids(instances(r)), web[1].ID) {
		t.Errorf("the other instance ended: %v", ids(instances(r)))
	}
	if status, _, body := r.Get("web.test", "/"); status != 200 || body != "v2" {
		t.Errorf("GET: %d %q", status, body)
	}

	// The way out is another release.
	r.Write("kiln.hcl", one("v3", 2, ""))
	third := up(r).Release
	if got := doubts(t, r, third.Environment); len(got) > 0 {
		t.Errorf("the next release: %v", got)
	}
}
