package main

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/advisory"
	"github.com/kilnproject/kiln/internal/gate"
	"github.com/kilnproject/kiln/internal/prove"
	"github.com/kilnproject/kiln/internal/sign"
	"github.com/kilnproject/kiln/internal/store"
)

// What is matched again, and against what.
const (
	inventories   = 1000
	packagesEach  = 100
	knownPackages = 5000
	recordsEach   = 4 // of a known package
)

// benchRematch matches stored, signed inventories again after the database
// changed, as a rescan does: two at once.
func benchRematch(b *bench) {
	dir, err := os.MkdirTemp("", "kiln-rematch")
	if err != nil {
		b.Fatalf("%v", err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	ctx := context.Background()
	db, err := advisory.Open(filepath.Join(dir, "advisories"), time.Now)
	if err != nil {
		b.Fatalf("%v", err)
	}
	b.Cleanup(func() { _ = db.Close() })
	if err := db.Import(ctx, []advisory.Source{records(b)}); err != nil {
		b.Fatalf("import: %v", err)
	}
	images, signer := inventoried(ctx, b, dir)
	prover := prove.New(prove.Options{Advisories: matcher{db}, Signer: statements{signer: signer}, Judge: judge})
	for _, run := range []string{"read for the first time, s", "read before, s"} {
		begin, before := time.Now(), processorTime()
		var found int
		verdicts := make([]kiln.Verdict, len(images))
		work, within := errgroup.WithContext(ctx)
		work.SetLimit(2)
		for i, image := range images {
			work.Go(func() (err error) {
				verdicts[i], _, err = prover.Rejudge(within, image, kiln.DefaultGate(), nil)
				return err
			})
		}
		if err := work.Wait(); err != nil {
			b.Fatalf("%v", err)
		}
		for _, v := range verdicts {
			found += len(v.Findings)
		}
		took := time.Since(begin)
		what := fmt.Sprintf("%d inventories of %d packages matched again, %s", inventories, packagesEach, run)
		b.judge(took < 10*time.Second, what, "< 10", "%.1f, of processors %.1f, %d findings", took.Seconds(), (processorTime() - before).Seconds(), found)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.note("memory of the process after it, MiB", "%d", m.Sys>>20)
}

// processorTime is what this process used, which does not depend on what else the
// machine does.
func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// records is an export with some records of every known package.
func records(b *bench) advisory.Source {
	var text bytes.Buffer
	z := zip.NewWriter(&text)
	for p := range knownPackages {
		for r := range recordsEach {
			id := fmt.Sprintf("BENCH-2099-%05d", p*recordsEach+r)
			w, err := z.Create(id + ".json")
			if err == nil {
				_, err = fmt.Fprintf(w, `{"schema_version":"1.6.0","id":%q,"modified":"2026-01-01T00:00:00Z","summary":"one",
"affected":[{"package":{"ecosystem":"npm","name":"package-%d"},"ranges":[{"type":"SEMVER","events":[{"introduced":"0"},{"fixed":"%d.0.0"}]}]}]}`, id, p, r+1)
			}
			if err != nil {
				b.Fatalf("%v", err)
			}
		}
	}
	if err := z.Close(); err != nil {
		b.Fatalf("%v", err)
	}
	return advisory.Source{Ecosystem: "npm", Zip: bytes.NewReader(text.Bytes()), Size: int64(text.Len()), Dated: time.Now()}
}

// inventoried are images of a store with signed inventories.
func inventoried(ctx context.Context, b *bench, dir string) ([]kiln.Digest, *sign.Signer) {
	s, err := store.Open(filepath.Join(dir, "store")) //nolint:contextcheck // a look at small local files
	if err != nil {
		b.Fatalf("%v", err)
	}
	signer, err := sign.New(sign.Options{Dir: filepath.Join(dir, "sign"), Store: shelf{s}})
	if err != nil {
		b.Fatalf("%v", err)
	}
	out := make([]kiln.Digest, inventories)
	for i := range out {
		manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},"layers":[],"annotations":{"n":"%d"}}`, kiln.DigestOf([]byte("{}")), i)
		if out[i], _, err = s.Put(ctx, strings.NewReader(manifest), ""); err != nil {
			b.Fatalf("%v", err)
		}
		seen := prove.Inspection{Inventory: kiln.Inventory{Image: out[i]}}
		for p := range packagesEach {
			name := fmt.Sprintf("package-%d", (i*37+p*53)%(5*knownPackages)) // a fifth of them are known
			version := fmt.Sprintf("%d.1.0", p%8)
			seen.Inventory.Packages = append(seen.Inventory.Packages, kiln.Package{
				Name: name, Version: version, PURL: "pkg:npm/" + name + "@" + version, Ecosystem: "npm", Locations: []string{"/srv/node_modules/" + name + "/package.json"},
			})
		}
		raw, err := json.Marshal(seen)
		if err == nil {
			_, err = signer.Attest(ctx, out[i], prove.TypeInspection, raw)
		}
		if err != nil {
			b.Fatalf("%v", err)
		}
	}
	return out, signer
}

// shelf is the store as the signer knows it.
type shelf struct{ *store.Store }

func (s shelf) PutReferrer(ctx context.Context, subject kiln.Digest, r sign.Referrer) (kiln.Digest, error) {
	out := store.Referrer{ArtifactType: r.ArtifactType, Annotations: r.Annotations}
	for _, l := range r.Layers {
		out.Layers = append(out.Layers, store.ReferrerLayer(l))
	}
	return s.Store.PutReferrer(ctx, subject, out)
}

// matcher is the database as the prover knows it.
type matcher struct{ *advisory.DB }

func (m matcher) Database() kiln.Digest { return m.Status().Digest }

func (m matcher) Match(ctx context.Context, packages []kiln.Package) (prove.Asked, error) {
	r, err := m.DB.Match(ctx, packages)
	return prove.Asked{Findings: r.Findings, Database: r.Database, Dated: r.Dated, Unmatched: r.Missing}, err
}

// statements is the signer as far as a rejudgement asks it.
type statements struct {
	prove.Signer // nothing else is asked
	signer       *sign.Signer
}

func (s statements) Statements(ctx context.Context, manifest kiln.Digest, predicateType string) ([]json.RawMessage, error) {
	return s.signer.Predicates(ctx, manifest, sign.PredicateType(predicateType))
}

func judge(g kiln.Gate, e prove.Evidence, now time.Time) (kiln.Verdict, error) {
	return gate.Judge(g, gate.Evidence{
		Image: e.Inventory.Image, Packages: len(e.Inventory.Packages), Database: e.Asked.Database, Dated: e.Asked.Dated, Findings: e.Asked.Findings,
	}, now), nil
}
