package control

import (
	"context"
	"encoding/json"
	"io/fs"
	"log/slog"
	"time"

	"github.com/kilnproject/kiln"
)

// Options are what a Control works with. All but Prover, Examiner, Locks, Looker,
// Images, Advisories, Faults, Observer, Problems, Storage, Now and PublicURL must be
// set.
type Options struct {
	Ledger Ledger
	Store  Store
	Baker  Baker
	// Prover judges and signs what was baked; nil lets everything pass.
	Prover Prover
	// Examiner looks at releases; without one there is nothing to see.
	Examiner Examiner
	// Locks signs the pins that repaves moved forward; nil signs nothing.
	Locks Records
	// Looker looks into Images, for Scan and Inventory; nil for none.
	Looker Looker
	Images Images
	// Advisories says what is known of vulnerabilities; nil for nothing to say.
	Advisories func() Advisories
	Engine     kiln.Engine
	Preparer   kiln.Preparer // the engine, where it can prepare; nil leaves all to Admit
	Loader     Loader
	// Storage is collected in this order when the machine needs room.
	Storage []Collector
	// StorageMax bounds what Storage uses together, in bytes; 0 is no bound.
	StorageMax int64
	Log        *slog.Logger
	Version    string
	// PublicURL is where a route answers, "" when it has no address; nil
	// derives it from the route alone.
	PublicURL func(kiln.Route) string
	// Now is the clock; nil means time.Now.
	Now    func() time.Time
	Faults Faults
	// Observer is told of work while it is done; nil tells nobody.
	Observer Observer
	// Problems are sentences of other parts about what is not as it should be;
	// nil is none. They come with the status.
	Problems func() []string
}

// Ledger is the history. Implementations are safe for concurrent use; what a
// method acknowledged survives a power cut.
type Ledger interface {
	// CreateRelease stores r under the next number of its environment and
	// returns it with that number.
	CreateRelease(ctx context.Context, r kiln.Release) (kiln.Release, error)
	// Release returns kiln.ErrNotFound for an unknown one.
	Release(ctx context.Context, environment string, number int) (kiln.Release, error)
	// Releases lists an environment's releases by number.
	Releases(ctx context.Context, environment string) ([]kiln.Release, error)
	// ReleasesBefore lists at most limit of them below a number, the newest
	// first; below 0 means from the newest on.
	ReleasesBefore(ctx context.Context, environment string, below, limit int) ([]kiln.Release, error)
	// Environments lists the names of all that ever had a release, sorted.
	Environments(ctx context.Context) ([]string, error)
	// Commit takes a record: all of it or nothing.
	Commit(ctx context.Context, r kiln.Record) error
	// Unfinished lists the rollouts that have not ended, oldest first.
	Unfinished(ctx context.Context) ([]kiln.Rollout, error)
	// Events returns events after a sequence, oldest first: the newest `last`
	// of them, or with last 0 the first page.
	Events(ctx context.Context, environment string, after int64, last int) ([]kiln.Event, error)
	// AllBut returns the sequence after which the newest so many are.
	AllBut(ctx context.Context, environment string, newest int) (int64, error)
	// Writable says why no history is written at present, because a record is
	// damaged; nil when it is. It may wait some seconds to find out.
	Writable(ctx context.Context) error
	// Damage lists the records that were found not to be what was written.
	Damage() []kiln.LedgerFault
	// Watch signals that events were added, until ctx ends.
	Watch(ctx context.Context) <-chan struct{}
	// Alive lists the instances that the ledger does not know to be dead.
	Alive(ctx context.Context) ([]kiln.Instance, error)
	// Setting is a value that a record set; kiln.ErrNotFound for one that none did.
	Setting(ctx context.Context, name string) ([]byte, error)
	// Instance returns one that ever was; kiln.ErrNotFound for another.
	Instance(ctx context.Context, id string) (kiln.Instance, error)
}

// Store holds blobs and bundles.
type Store interface {
	TreeFS(tree kiln.Tree) fs.FS
	Missing(digests []kiln.Digest) []kiln.Digest
	PutBundle(ctx context.Context, b kiln.Bundle, annotations map[string]string) (kiln.Digest, error)
	// BundleDigest is the digest that PutBundle would return.
	BundleDigest(b kiln.Bundle) (kiln.Digest, error)
	Bundle(ctx context.Context, d kiln.Digest) (kiln.Bundle, error)
	// PutOrigin keeps what a bundle was baked from. It refuses with
	// kiln.CodeInvalid what is too large.
	PutOrigin(ctx context.Context, o kiln.Origin) (kiln.Digest, error)
	// Origin returns one whose files are all there, and kiln.ErrNotFound for
	// another.
	Origin(ctx context.Context, d kiln.Digest) (kiln.Origin, error)
}

// Baker makes images.
type Baker interface {
	Bake(ctx context.Context, r kiln.BakeRequest) (kiln.BakeResult, error)
	// Lookup returns the images whose inputs were baked before, and for each
	// other one the reason why it must be baked.
	Lookup(ctx context.Context, r kiln.BakeRequest) (known map[string]kiln.Baked, missing map[string]string, err error)
	// Refresh resolves anew what the request's lock pins, and bakes nothing.
	Refresh(ctx context.Context, r kiln.BakeRequest) (kiln.Lock, error)
}

// Prover inventories, judges and signs what was baked.
type Prover interface {
	// Prove returns a verdict for each image, by name. One that fails is no
	// error: whoever asked goes by the verdict.
	Prove(ctx context.Context, r kiln.ProveRequest) (map[string]kiln.Verdict, error)
	// Foresee judges those images that were inventoried before, and changes
	// nothing.
	Foresee(ctx context.Context, r kiln.ProveRequest) (map[string]kiln.Verdict, error)
	// SignBundle signs the bundle of proved images.
	SignBundle(ctx context.Context, bundle kiln.Digest, r kiln.ProveRequest) error
	// AdmitBundle refuses a bundle that no trusted key signed as it is. It is
	// asked often, and answers at once what it has verified before.
	AdmitBundle(ctx context.Context, bundle kiln.Digest) error
	// Rejudge judges an image that was inventoried before by what advisories say
	// now, and changes nothing. It is whole unless the advisories know nothing of
	// some of the image's packages. The error matches kiln.ErrNotFound where
	// there is no inventory.
	Rejudge(ctx context.Context, image kiln.Digest, g kiln.Gate, vex map[string][]byte) (v kiln.Verdict, whole bool, err error)
	// Database names the advisories as they are now; empty when there are none.
	Database() kiln.Digest
}

// Examiner looks at releases that were made.
type Examiner interface {
	// Verify checks all that was signed of a release. What does not hold is in
	// the proof. With rebuild its images are baked again from nothing.
	Verify(ctx context.Context, r kiln.Release, rebuild bool, progress func(kiln.Progress)) (kiln.ReleaseProof, error)
	Diff(ctx context.Context, from, to kiln.ReleaseName) (kiln.ReleaseDiff, error)
	// Preview says what the images of a bundle change, but for their files; to
	// may have images without a digest, which are left out.
	Preview(ctx context.Context, from kiln.Digest, to []kiln.BundleImage) ([]kiln.ImageChange, error)
}

// Records signs the control plane's own records, so that one that another wrote
// is not taken for them.
type Records interface {
	Sign(ctx context.Context, payload []byte) ([]byte, error)
	Check(ctx context.Context, payload, signature []byte) error
}

// Looker says what is in images, and changes nothing.
type Looker interface {
	// Look judges an image by the gate of its newest verdict, or the default one,
	// changed as change says.
	Look(ctx context.Context, image kiln.Digest, change func(*kiln.Gate)) (kiln.Verdict, error)
	// Describe returns an image's inventory.
	Describe(ctx context.Context, image kiln.Digest) (kiln.Inventory, error)
	// Newest is an image's newest verdict, and false where there is none.
	Newest(ctx context.Context, image kiln.Digest) (kiln.Verdict, bool, error)
}

// Images are those of the store.
type Images interface {
	// Find returns what a name, a digest or its beginning stands for; the error
	// matches kiln.ErrNotFound for nothing.
	Find(ctx context.Context, name string) (kiln.Digest, error)
	// Image returns the image of a platform that a manifest or an index stands
	// for, once it is known to be whole.
	Image(ctx context.Context, d kiln.Digest, platform string) (kiln.Digest, error)
	// Bundle reads a bundle.
	Bundle(ctx context.Context, d kiln.Digest) (kiln.Bundle, error)
	// Hold keeps all that is there until release.
	Hold(ctx context.Context) (release func(), err error)
}

// Loader reads a definition.
type Loader interface {
	Load(tree fs.FS, o LoadOptions) (Definition, error)
}

// LoadOptions say how to read a definition.
type LoadOptions struct {
	Environment string // empty means the definition's only one
	Branch      string
	Values      map[string]json.RawMessage
}

// Definition is what was read.
type Definition struct {
	Spec        kiln.Spec
	Values      map[string]json.RawMessage // of the variables that were used
	Environment kiln.Environment
	Warnings    []kiln.Diagnostic
	Lock        kiln.Lock // of kiln.lock; empty when there is none
}

// Collector frees storage. It must be safe to kill at any point.
type Collector interface {
	Usage(ctx context.Context) (int64, error)
	// Collect removes what is not kept; with more than zero wanted bytes it
	// also removes caches, until that much is freed.
	Collect(ctx context.Context, keep Keep, want int64) (freed int64, err error)
}

// Keep is what kept releases need.
type Keep struct {
	Bundles []kiln.Digest // manifests of bundles
	Images  []kiln.Digest // manifests of images
	// Origins are what the live, parked and pending releases were baked from.
	Origins []kiln.Digest
	// Templates are those that may start at any moment: of live, parked and
	// pending releases. Their images must stay ready to run.
	Templates []kiln.Template
}

// Faults is asked at labelled points of each step of a rollout. An error at
// "STEP.before" or "STEP.after" stops the control plane there as if it had been
// killed: the step is journalled and not begun, or done and the next one not
// journalled. An error at "STEP.act" is the failure of the step's actions.
type Faults interface {
	Hit(label string) error
}
