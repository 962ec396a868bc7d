package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/advisory"
	"github.com/kilnproject/kiln/internal/bake"
	"github.com/kilnproject/kiln/internal/confine"
	"github.com/kilnproject/kiln/internal/gate"
	"github.com/kilnproject/kiln/internal/install"
	"github.com/kilnproject/kiln/internal/lint"
	"github.com/kilnproject/kiln/internal/prove"
	"github.com/kilnproject/kiln/internal/scan"
	"github.com/kilnproject/kiln/internal/scanner"
	"github.com/kilnproject/kiln/internal/seal"
	"github.com/kilnproject/kiln/internal/sign"
	"github.com/kilnproject/kiln/internal/store"
)

// builderID says in provenances who baked.
const builderID = "https://kiln.dev/kilnd"

// openProver makes what proves images, of the parts that know how.
func (p *plane) openProver(context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if p.advisories, err = advisory.Open(p.dir("advisories"), time.Now); err != nil {
		return err
	}
	p.later(p.advisories.Close)
	others, err := p.openScanners()
	if err != nil {
		return err
	}
	p.database = &database{db: p.advisories, dir: p.dir("advisories"), record: p.record}
	p.prover = prove.New(prove.Options{
		Inspector:  inspector{p.sealer, p.store, workers(program)},
		Advisories: advisories{p.advisories},
		Signer:     signer{p.signer},
		Others:     vouchers{p.signer, func() *bake.Baker { return p.baker }},
		Judge:      judge,
		Scan:       others.scan,
		Rules:      rules{p.store}.find,
		Bundles:    p.bundlesOf,
		Observer:   proofs{p.metrics},
		Log:        p.log,
	})
	return nil
}

// bundlesOf are the bundles of the releases that may start instances of an image.
func (p *plane) bundlesOf(ctx context.Context, image kiln.Digest) ([]kiln.Digest, error) {
	names, err := p.ledger.Environments(ctx)
	if err != nil {
		return nil, err
	}
	var out []kiln.Digest
	for _, name := range names {
		releases, err := p.ledger.Releases(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, r := range releases {
			if starts(r) && runs(r, image) && !slices.Contains(out, r.Bundle) {
				out = append(out, r.Bundle)
			}
		}
	}
	return out, nil
}

// starts says whether instances of a release may start at any moment.
func starts(r kiln.Release) bool {
	return r.State == kiln.ReleaseLive || r.State == kiln.ReleaseParked || r.State == kiln.ReleasePending
}

func runs(r kiln.Release, image kiln.Digest) bool {
	return slices.ContainsFunc(r.Services, func(s kiln.ReleaseService) bool {
		return s.Template.Image == image || slices.Contains(slices.Collect(maps.Values(s.VerifyImages)), image)
	})
}

// inspector looks into images by workers without privileges.
type inspector struct {
	sealer *seal.Sealer
	store  *store.Store
	worker confine.Program
}

// marking is what the lint is asked in a worker.
type marking struct {
	Base       int           `json:"base"` // of the lowest layers
	Config     ocispec.Image `json:"config"`
	BaseConfig ocispec.Image `json:"base_config"`
}

func (i inspector) Inspect(ctx context.Context, image kiln.Digest, base prove.Base) (prove.Inspection, error) {
	ask := marking{Base: base.Layers}
	var err error
	if ask.Config, err = i.store.Config(ctx, image); err != nil {
		return prove.Inspection{}, err
	}
	if base.Image != "" {
		if ask.BaseConfig, err = i.store.Config(ctx, base.Image); err != nil {
			return prove.Inspection{}, err
		}
	}
	raw, err := json.Marshal(ask)
	if err != nil {
		return prove.Inspection{}, err
	}
	var answer scan.Answer
	if err := i.sealer.Hand(ctx, image, i.worker, scan.Task, scan.Request{Image: image, Marks: raw}, &answer); err != nil {
		return prove.Inspection{}, err
	}
	out := prove.Inspection{Inventory: answer.Inventory, Base: base}
	return out, json.Unmarshal(answer.Marks, &out.Marks)
}

func (i inspector) Layers(ctx context.Context, image kiln.Digest) ([]kiln.Digest, error) {
	m, err := i.store.Manifest(ctx, image)
	if err != nil {
		return nil, err
	}
	out := make([]kiln.Digest, len(m.Layers))
	for n, l := range m.Layers {
		out[n] = kiln.Digest(l.Digest)
	}
	return out, nil
}

func (i inspector) SBOM(inventory kiln.Inventory) (json.RawMessage, error) {
	return scan.CycloneDX(inventory, scan.About{Name: string(inventory.Image), Version: version})
}

// inspect is the worker's part: what software an image has, and what the lint
// says of what it adds to its base.
func inspect(ctx context.Context, image *seal.Tree, request json.RawMessage) (any, error) {
	return scan.Inspect(ctx, scan.Image{
		Root: image, Layer: image.Layer,
		Mark: func(_ context.Context, request json.RawMessage) (any, error) {
			var ask marking
			if err := json.Unmarshal(request, &ask); err != nil {
				return nil, err
			}
			return mark(image, ask)
		},
	}, request)
}

func mark(image *seal.Tree, ask marking) ([]kiln.Finding, error) {
	l := lint.New()
	l.Config(ask.Config, ask.BaseConfig)
	layers := image.Layers()
	begun := 0
	begin := func(until int) {
		for ; begun < until; begun++ {
			l.Layer(layers[begun], begun >= ask.Base)
		}
	}
	for f := range image.Files() {
		for begun == 0 || layers[begun-1] != f.Layer {
			if begun == len(layers) {
				return nil, fmt.Errorf("%s is of no layer", f.Path)
			}
			begin(begun + 1)
		}
		header, err := tar.FileInfoHeader(f.Info, "")
		if err != nil {
			return nil, err
		}
		header.Name = f.Path
		if err := l.Entry(header, f.Content); err != nil {
			return nil, err
		}
	}
	begin(len(layers))
	if err := l.Tree(image, image.Layer); err != nil {
		return nil, err
	}
	return l.Findings(), nil
}

// advisories asks the database.
type advisories struct{ *advisory.DB }

func (a advisories) Database() kiln.Digest { return a.Status().Digest }

func (a advisories) Match(ctx context.Context, packages []kiln.Package) (prove.Asked, error) {
	status := a.Status()
	if len(status.Ecosystems) == 0 {
		return prove.Asked{Why: "there is no database of vulnerabilities"}, nil
	}
	r, err := a.DB.Match(ctx, packages)
	if err != nil {
		if ctx.Err() != nil {
			return prove.Asked{}, ctx.Err()
		}
		return prove.Asked{Why: "the database of vulnerabilities cannot be read: " + err.Error()}, nil
	}
	return prove.Asked{Findings: r.Findings, Database: r.Database, Dated: r.Dated, Unmatched: r.Missing, Unjudged: r.Unjudged}, nil
}

// signer signs in the store.
type signer struct{ *sign.Signer }

func (s signer) Sign(ctx context.Context, manifest kiln.Digest) error {
	return s.SignImage(ctx, manifest)
}

func (s signer) Attest(ctx context.Context, manifest kiln.Digest, predicateType string, predicate any) error {
	if v, ok := predicate.(kiln.Verdict); ok {
		_, err := s.AttestVerdict(ctx, v)
		return err
	}
	raw, err := json.Marshal(predicate)
	if err != nil {
		return err
	}
	_, err = s.Signer.Attest(ctx, manifest, sign.PredicateType(predicateType), raw)
	return err
}

func (s signer) Verify(ctx context.Context, manifest kiln.Digest) error {
	_, err := s.Signer.Verify(ctx, manifest)
	return err
}

func (s signer) Has(ctx context.Context, manifest kiln.Digest, predicateType string) (bool, error) {
	proof, err := s.Signer.Verify(ctx, manifest)
	return err == nil && proof.Has(sign.PredicateType(predicateType)), err
}

func (s signer) Newest(ctx context.Context, manifest kiln.Digest) (*kiln.Verdict, error) {
	proof, err := s.Signer.Verify(ctx, manifest)
	var known *kiln.Error
	if errors.As(err, &known) && (known.Code == kiln.CodeRefused || known.Code == kiln.CodeNotFound) {
		return nil, nil //nolint:nilnil // what is not signed, or not there, was not judged
	}
	return proof.Verdict, err
}

func (s signer) Statements(ctx context.Context, manifest kiln.Digest, predicateType string) ([]json.RawMessage, error) {
	return s.Predicates(ctx, manifest, sign.PredicateType(predicateType))
}

func (s signer) AttestOrigin(ctx context.Context, image kiln.Image, baked kiln.Baked, r kiln.ProveRequest) error {
	parameters := map[string]json.RawMessage{}
	if image.Dockerfile != nil {
		for name, value := range image.Dockerfile.Args {
			raw, err := json.Marshal(value)
			if err != nil {
				return err
			}
			parameters[name] = raw
		}
	}
	_, err := s.AttestProvenance(ctx, sign.Build{
		Definition: r.Definition, Source: r.Source, Builder: builderID, Version: version, Baked: baked, Parameters: parameters,
	})
	return err
}

// signable is the store as the signer knows it.
type signable struct{ *store.Store }

func (s signable) PutReferrer(ctx context.Context, subject kiln.Digest, r sign.Referrer) (kiln.Digest, error) {
	out := store.Referrer{ArtifactType: r.ArtifactType, Annotations: r.Annotations}
	for _, l := range r.Layers {
		out.Layers = append(out.Layers, store.ReferrerLayer(l))
	}
	return s.Store.PutReferrer(ctx, subject, out)
}

// judge has the gate judge.
func judge(g kiln.Gate, e prove.Evidence, now time.Time) (kiln.Verdict, error) {
	in := gate.Evidence{
		Image: e.Inventory.Image, Database: e.Asked.Database, Dated: e.Asked.Dated, NoDatabase: e.Asked.Why, Unmatched: e.Asked.Unmatched,
		Findings: slices.Concat(e.Asked.Findings, e.Others), Scanners: e.Scanners,
		SignedBy: e.Signed.By, Trusted: e.Signed.Trusted, Unasked: e.Signed.Unasked,
	}
	for _, p := range e.Inventory.Packages {
		if p.Ecosystem != "" {
			in.Packages++
		}
	}
	for path, document := range e.VEX {
		statements, err := gate.ParseVEX(path, document)
		if err != nil {
			return kiln.Verdict{}, err
		}
		in.VEX = append(in.VEX, statements...)
	}
	v := gate.Judge(g, in, now)
	v.Reasons = append(v.Reasons, e.Asked.Unjudged...)
	return v, nil
}

// scannerUser is who other scanners look into images as, where there is such a
// user, and otherwise scannerID, for user and group. It is not the reader: what a
// scanner is made to do must not reach those who make inventories.
const (
	scannerUser = install.ScannerUser
	scannerID   = 64741
)

// scanners asks other scanners about images of the store.
type scanners struct {
	store   *store.Store
	dir     string // for images while they are scanned, on the store's disk
	scanner *scanner.Scanner
}

// openScanners makes the folders of other scanners. What a control plane that was
// killed left of an image goes.
func (p *plane) openScanners() (scanners, error) {
	s := scanners{store: p.store, dir: p.dir("scanners", "images")}
	uid, gid := unprivileged(scannerUser, scannerID)
	s.scanner = &scanner.Scanner{Cache: p.dir("scanners", "cache"), Launch: launch(p.program, uid, gid), UID: uid, GID: gid}
	if err := errors.Join(os.RemoveAll(s.dir), os.MkdirAll(s.dir, 0o711)); err != nil { //nolint:gosec // the scanners' user passes through it
		return s, fmt.Errorf("make the folder of other scanners: %w", err)
	}
	return s, os.Chmod(filepath.Dir(s.dir), 0o711) //nolint:gosec // see above
}

func (s scanners) scan(ctx context.Context, which kiln.GateScanner, image kiln.Digest) (found []kiln.Finding, err error) {
	dir, err := os.MkdirTemp(s.dir, "scan-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	at := scanner.Image{Layout: filepath.Join(dir, "layout"), Archive: filepath.Join(dir, "image.tar")}
	if err := s.store.Export(ctx, image, at.Layout, at.Archive); err != nil {
		return nil, err
	}
	if err := s.hand(dir); err != nil {
		return nil, fmt.Errorf("hand over image %s: %w", image.Short(), err)
	}
	return s.scanner.Scan(ctx, which.Name, at)
}

// hand gives what was exported to the scanners' user. What is a link to a blob of
// the store stays the store's, whose owner could change it; one that only root may
// read, as of a store that was restored, is exchanged for a copy.
func (s scanners) hand(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().IsRegular() {
			if info.Mode()&0o004 != 0 {
				return nil
			}
			if at, ok := info.Sys().(*syscall.Stat_t); !ok || at.Nlink > 1 {
				if err := detach(path); err != nil {
					return err
				}
			}
		}
		return os.Lchown(path, s.scanner.UID, s.scanner.GID)
	})
}

// detach exchanges a file for a copy that shares nothing with its other names.
func detach(path string) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(path+".copy", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Close()); err != nil {
		return err
	}
	return os.Rename(to.Name(), path)
}

// rules are the lint's about how an image is defined and used.
type rules struct{ store *store.Store }

func (r rules) find(ctx context.Context, image kiln.Image, request kiln.ProveRequest) ([]kiln.Finding, error) {
	config, err := r.store.Config(ctx, request.Baked[image.Name].Manifest)
	if err != nil {
		return nil, err
	}
	l := lint.New()
	l.References(references(image, request.Baked[image.Name]), request.Lock)
	for _, s := range request.Services {
		if s.Image == image.Name {
			l.Service(s, image.Name, config, unseen{})
		}
	}
	return l.Findings(), nil
}

// references are those of registries that an image is made from.
func references(image kiln.Image, baked kiln.Baked) []string {
	if image.Reference != "" {
		return []string{image.Reference}
	}
	var out []string
	for _, m := range baked.Materials {
		if m.Kind != kiln.MaterialImage || image.Dockerfile == nil {
			continue
		}
		if _, own := image.Dockerfile.Contexts[m.Name]; !own && strings.ContainsAny(m.Name, ":@/") {
			out = append(out, m.Name)
		}
	}
	return out
}

// unseen is a file system of which nothing can be told: the image's files were
// looked at by a worker, and are not at hand.
type unseen struct{}

func (unseen) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
}
