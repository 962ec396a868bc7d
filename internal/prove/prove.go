// Package prove says whether what was baked may run. An image is inventoried
// once, its packages are looked up among the advisories, its gate judges it, and
// what was found is signed and kept beside the image: inventory, SBOM,
// provenance and verdict. Nothing is admitted that is not signed or that no gate
// ever let pass.
//
// It asks through small interfaces and knows neither scanners nor formats of
// signatures. It keeps nothing that is not beside the images, but for memory of
// what it has verified.
package prove

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/kilnproject/kiln"
)

// The types of what is attested of an image.
const (
	TypeInspection = "https://kiln.dev/inspection/v1" // an Inspection
	TypeVerdict    = "https://kiln.dev/verdict/v1"    // a kiln.Verdict
	TypeSBOM       = "https://cyclonedx.org/bom"
)

// Inspection is what was seen in an image: once per image and what it was made
// from.
type Inspection struct {
	Inventory kiln.Inventory `json:"inventory"`
	// Base is what the marks leave out.
	Base Base `json:"base"`
	// Marks are the findings of rules about the image itself.
	Marks []kiln.Finding `json:"marks,omitempty"`
}

// Inspector looks into images.
type Inspector interface {
	// Inspect reads every layer of an image and marks what it adds to its base.
	Inspect(ctx context.Context, image kiln.Digest, base Base) (Inspection, error)
	// Layers returns the digests of an image's layers, the lowest first.
	Layers(ctx context.Context, image kiln.Digest) ([]kiln.Digest, error)
	// SBOM writes an inventory for others.
	SBOM(kiln.Inventory) (json.RawMessage, error)
}

// Asked is what advisories say of packages.
type Asked struct {
	Findings []kiln.Finding
	// Database names the advisories; empty when there are none, and then Why
	// says why.
	Database kiln.Digest
	Dated    time.Time
	Why      string
	// Unmatched are ecosystems of packages that the database knows nothing of,
	// Unjudged sentences about packages that it could not judge.
	Unmatched, Unjudged []string
}

// Advisories know which packages are vulnerable.
type Advisories interface {
	// Match never fails because of a missing database: Asked says so.
	Match(ctx context.Context, packages []kiln.Package) (Asked, error)
	// Database names the advisories as they are now; empty when there are none.
	Database() kiln.Digest
}

// Signer signs images and what is said of them, and checks it.
type Signer interface {
	// Sign signs a manifest; again is nothing.
	Sign(ctx context.Context, manifest kiln.Digest) error
	// Attest keeps a signed statement about a manifest; the same again is
	// nothing.
	Attest(ctx context.Context, manifest kiln.Digest, predicateType string, predicate any) error
	// Verify says why a manifest is not signed by a trusted key; nil when it is.
	Verify(ctx context.Context, manifest kiln.Digest) error
	// Has says whether something of a type was attested of a manifest by a
	// trusted key.
	Has(ctx context.Context, manifest kiln.Digest, predicateType string) (bool, error)
	// Newest is the newest verdict of a manifest, by a trusted key; nil for none.
	// What was verified once is not read again.
	Newest(ctx context.Context, manifest kiln.Digest) (*kiln.Verdict, error)
	// Statements returns what was attested of a manifest with a type, by trusted
	// keys only.
	Statements(ctx context.Context, manifest kiln.Digest, predicateType string) ([]json.RawMessage, error)
	// AttestOrigin keeps a signed statement of where an image came from, when it
	// is first baked of its inputs.
	AttestOrigin(ctx context.Context, image kiln.Image, baked kiln.Baked, r kiln.ProveRequest) error
}

// Judge is a gate. The error is that of a document that cannot be read.
type Judge func(g kiln.Gate, e Evidence, now time.Time) (kiln.Verdict, error)

// Evidence is what a gate judges by.
type Evidence struct {
	Inventory kiln.Inventory
	Asked     Asked
	Others    []kiln.Finding // of rules and of other scanners
	// Scanners has an entry for every scanner that was asked: its failure in
	// words, or nothing.
	Scanners map[string]string
	VEX      map[string][]byte // by path
	Signed   Signed
}

// Signed is who signed an image, where its gate asks for that.
type Signed struct {
	By      []string // names of others
	Trusted []string // all names whose keys are known
	// Unasked says why not all signatures could be asked for; empty when they were.
	Unasked string
}

// Others know who signed images that others made.
type Others interface {
	// Names are those whose keys are known.
	Names() []string
	// Known are the names of those whose signatures of an image are kept here.
	Known(ctx context.Context, image kiln.Digest) ([]string, error)
	// Ask asks the registry of an image, too. An error is why it did not answer, or
	// not with all. With keep, what counts is kept.
	Ask(ctx context.Context, reference string, index, image kiln.Digest, keep bool) ([]string, error)
}

// Scan asks another scanner about an image.
type Scan func(ctx context.Context, scanner kiln.GateScanner, image kiln.Digest) ([]kiln.Finding, error)

// Rule finds what is wrong with how an image is defined and used, and not with
// what is in it.
type Rule func(ctx context.Context, image kiln.Image, r kiln.ProveRequest) ([]kiln.Finding, error)

// Observer is told of what was done. It neither waits nor fails.
type Observer interface {
	// Inspected is told of an image that was looked into, and how long that took.
	Inspected(took time.Duration, err error)
	// Judged is told of a judgement, why it was asked for, and what came of it.
	Judged(why Why, outcome kiln.Outcome, err error)
}

// Why is what a judgement is for.
type Why string

// What judgements are for.
const (
	WhyRelease Why = "release" // to let it run
	WhyPlan    Why = "plan"    // to foresee that
	WhyScan    Why = "scan"    // to look
	WhyRescan  Why = "rescan"  // it runs
)

type nobody struct{}

func (nobody) Inspected(time.Duration, error)  {}
func (nobody) Judged(Why, kiln.Outcome, error) {}

// Options are what a Prover works with. All but Rules, Bundles, Observer, Now and
// Log must be set.
type Options struct {
	Inspector  Inspector
	Advisories Advisories
	Signer     Signer
	Others     Others
	Judge      Judge
	Scan       Scan
	Rules      Rule
	// Bundles are those of the releases that may start instances of an image,
	// as far as that is known. Where there are none, nothing is asked of them.
	Bundles func(ctx context.Context, image kiln.Digest) ([]kiln.Digest, error)
	// Observer is told of work; nil tells nobody.
	Observer Observer
	Now      func() time.Time
	Log      *slog.Logger
}

// Prover proves images. Its methods may be called at once and again.
type Prover struct {
	opt     Options
	slots   chan struct{} // one per image being inspected
	looking chan struct{} // one per image being looked at
	seen    *lru.Cache[kiln.Digest, Inspection]

	mu       sync.Mutex
	admitted map[kiln.Digest]bool // images, and bundles
}

// inspecting is how many images are inspected at once; each takes a process with
// some memory.
const inspecting = 2

// mostAdmitted bounds what is remembered of what was verified.
const mostAdmitted = 10_000

// New makes a Prover.
func New(o Options) *Prover {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Rules == nil {
		o.Rules = func(context.Context, kiln.Image, kiln.ProveRequest) ([]kiln.Finding, error) { return nil, nil }
	}
	if o.Observer == nil {
		o.Observer = nobody{}
	}
	if o.Bundles == nil {
		o.Bundles = func(context.Context, kiln.Digest) ([]kiln.Digest, error) { return nil, nil }
	}
	seen, err := lru.New[kiln.Digest, Inspection](remembered)
	if err != nil {
		panic(err) // the size is positive
	}
	return &Prover{
		opt: o, slots: make(chan struct{}, inspecting), looking: make(chan struct{}, looking), seen: seen, admitted: map[kiln.Digest]bool{},
	}
}

// Admit says whether instances of an image may start: it is signed, a gate let
// it pass, and a release has it whose bundle is signed. What once passed stays
// admitted, so that a running release can replace its instances when the world
// learns of a vulnerability; a new release is judged anew.
func (p *Prover) Admit(ctx context.Context, image kiln.Digest) error {
	if p.knows(image) {
		return nil
	}
	if err := p.admit(ctx, image); err != nil {
		return err
	}
	p.remember(image)
	return nil
}

func (p *Prover) admit(ctx context.Context, image kiln.Digest) error {
	if err := p.opt.Signer.Verify(ctx, image); err != nil {
		return fmt.Errorf("image %s may not run: %w", image.Short(), err)
	}
	verdicts, err := p.Verdicts(ctx, image)
	if err != nil {
		return fmt.Errorf("image %s may not run: %w", image.Short(), err)
	}
	switch {
	case len(verdicts) == 0:
		return kiln.Errorf(kiln.CodeRefused, "kiln up judges it", "image %s may not run: no gate has judged it", image.Short())
	case !slices.ContainsFunc(verdicts, func(v kiln.Verdict) bool { return v.Outcome == kiln.OutcomePass }):
		return kiln.Errorf(kiln.CodeRefused, "kiln scan "+string(image)+" shows why", "image %s may not run: it does not pass its gate", image.Short())
	}
	return p.released(ctx, image)
}

// released refuses an image of which every release that may start it has a
// bundle that is not what was signed. Where the releases are not known, the
// image's own signature and verdict decide: what runs goes on.
func (p *Prover) released(ctx context.Context, image kiln.Digest) error {
	bundles, err := p.opt.Bundles(ctx, image)
	if err != nil {
		p.opt.Log.WarnContext(ctx, "the releases of an image are not known", "image", image, "error", err)
		return nil
	}
	var refused error
	for _, bundle := range bundles {
		err := p.AdmitBundle(ctx, bundle)
		if err == nil {
			return nil
		}
		refused = err
	}
	if refused != nil {
		return fmt.Errorf("image %s may not run: %w", image.Short(), refused)
	}
	return nil
}

// AdmitBundle refuses a bundle that no trusted key signed as it is.
func (p *Prover) AdmitBundle(ctx context.Context, bundle kiln.Digest) error {
	if p.knows(bundle) {
		return nil
	}
	if err := p.opt.Signer.Verify(ctx, bundle); err != nil {
		return fmt.Errorf("the signature of bundle %s: %w", bundle.Short(), err)
	}
	p.remember(bundle)
	return nil
}

func (p *Prover) knows(d kiln.Digest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.admitted[d]
}

func (p *Prover) remember(d kiln.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.admitted) >= mostAdmitted { // of years: what still runs is soon verified again
		clear(p.admitted)
	}
	p.admitted[d] = true
}

// Forget has everything verified again that is asked for from now on: keys are
// trusted no more.
func (p *Prover) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.admitted)
}

// Verdicts returns what gates said of an image, the newest last.
func (p *Prover) Verdicts(ctx context.Context, image kiln.Digest) ([]kiln.Verdict, error) {
	raw, err := p.opt.Signer.Statements(ctx, image, TypeVerdict)
	if err != nil {
		return nil, err
	}
	out, err := decode[kiln.Verdict](raw)
	slices.SortStableFunc(out, func(x, y kiln.Verdict) int { return x.At.Compare(y.At) })
	return out, err
}

// Inventory returns the inventory that was made of an image. The error matches
// kiln.ErrNotFound where there is none.
func (p *Prover) Inventory(ctx context.Context, image kiln.Digest) (kiln.Inventory, error) {
	all, err := p.inspections(ctx, image)
	if err != nil {
		return kiln.Inventory{}, err
	}
	if len(all) == 0 {
		return kiln.Inventory{}, kiln.Errorf(kiln.CodeNotFound, "kiln bake makes it, for an image of a definition", "there is no inventory of image %s", image.Short())
	}
	return all[len(all)-1].Inventory, nil
}

func (p *Prover) inspections(ctx context.Context, image kiln.Digest) ([]Inspection, error) {
	raw, err := p.opt.Signer.Statements(ctx, image, TypeInspection)
	if err != nil {
		return nil, err
	}
	return decode[Inspection](raw)
}

func decode[T any](raw []json.RawMessage) ([]T, error) {
	out := make([]T, len(raw))
	var errs []error
	for i, one := range raw {
		errs = append(errs, json.Unmarshal(one, &out[i]))
	}
	return out, errors.Join(errs...)
}
