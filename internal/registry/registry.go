// Package registry serves a store as an OCI registry (distribution-spec 1.1):
// pull, push, discovery and deletion, by HTTP below /v2/.
//
// A repository shows what was pushed to it and what Kiln baked under its name,
// with what refers to that, and nothing else: that a blob is in the store does
// not mean that it can be read. Every byte that comes is checked against the
// digest that names it before it has a name, and a manifest is taken once all
// that it refers to is in its repository.
//
// The package decides nothing about who may do what, nor about what may run: it
// asks.
package registry

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// Bounds.
const (
	maxManifest = 4 << 20  // bytes, as the specification asks for
	maxBlob     = 16 << 30 // bytes
	maxEntries  = 1000     // of an index, and layers of a manifest
	maxNesting  = 4        // of indexes within indexes
	maxPage     = 1000     // tags or referrers of one answer

	// Unfinished uploads: how many at once, and how long one may rest.
	maxUploads = 64
	uploadRest = time.Hour
	sweepEvery = 5 * time.Minute

	// looseLife is how long a blob can be read that was pushed and that no
	// manifest refers to.
	looseLife = 24 * time.Hour

	knownDocuments = 4096 // manifests whose content is remembered
)

// Action is what is done to a repository.
type Action string

// The actions.
const (
	Pull   Action = "pull"
	Push   Action = "push"
	Delete Action = "delete"
)

// Store is where content is. Digests that it does not have are kiln.ErrNotFound.
type Store interface {
	Open(d kiln.Digest) (*os.File, error)
	Document(ctx context.Context, d kiln.Digest) ([]byte, error)
	// Hold keeps everything from being collected until release is called.
	Hold(ctx context.Context) (release func(), err error)
	NewUpload() (Upload, error)

	// PutManifest stores a manifest and lists it among the referrers of its
	// subject; Unlink takes it from that list.
	PutManifest(ctx context.Context, raw []byte) (kiln.Digest, error)
	Unlink(ctx context.Context, d kiln.Digest) error
	Referrers(ctx context.Context, subject kiln.Digest, artifactType string) ([]ocispec.Descriptor, error)

	// Repositories are their names, sorted. Tags and Manifests are what one has.
	// Nobody changes them.
	Repositories(ctx context.Context) ([]string, error)
	Tags(ctx context.Context, repository string) (map[string]ocispec.Descriptor, error)
	Manifests(ctx context.Context, repository string) (map[kiln.Digest]ocispec.Descriptor, error)
	// Homes is in how many repositories a manifest is.
	Homes(ctx context.Context, d kiln.Digest) (int, error)
	Shelve(ctx context.Context, repository string, d kiln.Digest) error
	Unshelve(ctx context.Context, repository string, d kiln.Digest) error
	TagPushed(ctx context.Context, repository, tag string, d kiln.Digest) error
	UntagPushed(ctx context.Context, repository, tag string) error
}

// Upload is a blob that comes in parts, for one goroutine at a time.
type Upload interface {
	// Append keeps what came before an error.
	Append(ctx context.Context, r io.Reader, limit int64) (int64, error)
	Size() int64
	// Commit refuses another digest as kiln.ErrInvalid. It ends the upload.
	Commit(want kiln.Digest) error
	Discard()
}

// Options are what a registry needs. Store, Dir and Log must be set.
type Options struct {
	Store Store
	// Dir is a folder of the registry's own: which blobs were pushed where.
	Dir string
	Log *slog.Logger
	// Authorize says whether a request may do something to a repository; the
	// repository is empty for the question whether there is a registry. Nil lets
	// everybody do everything.
	Authorize func(r *http.Request, repository string, action Action) error
	// Pushed is asked about an image before it gets a tag. A refusal leaves the
	// tag as it was. Nil allows everything.
	Pushed func(ctx context.Context, repository, tag string, d kiln.Digest) error
	// Signature is what the tag sha256-HEX.sig of a manifest names, where nobody
	// pushed such a tag: kiln.ErrNotFound for nothing. Nil names nothing.
	Signature func(ctx context.Context, d kiln.Digest) (kiln.Digest, error)
	// Said says whether Kiln itself says of a subject what a manifest that refers
	// to it says. Every repository that shows the subject shows that, also where
	// somebody pushed it to one of them. Nil says nothing.
	Said func(ctx context.Context, subject, d kiln.Digest) (bool, error)
	// Needed says whether a release needs a manifest, which is then not deleted.
	// Nil needs nothing.
	Needed func(ctx context.Context, d kiln.Digest) (bool, error)
}

// Registry is the handler. Run must run while it serves.
type Registry struct {
	Options
	now       func() time.Time
	page      int // of tags and referrers
	documents *lru.Cache[kiln.Digest, *document]
	loose     loose

	mu      sync.Mutex
	uploads map[string]*session
}

// New makes a registry.
func New(o Options) (*Registry, error) {
	documents, err := lru.New[kiln.Digest, *document](knownDocuments)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	return &Registry{
		Options: o, now: time.Now, page: maxPage, documents: documents, loose: loose{o.Dir}, uploads: map[string]*session{},
	}, nil
}

// Run removes what was abandoned until ctx ends, and then every upload that
// has not ended: its sender begins again.
func (g *Registry) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			g.dropUploads(func(*session) bool { return true })
			return nil
		case <-tick.C:
			g.sweep()
		}
	}
}

func (g *Registry) sweep() {
	before := g.now().Add(-uploadRest)
	g.dropUploads(func(s *session) bool { return s.used.Before(before) })
	if err := g.loose.sweep(g.now().Add(-looseLife)); err != nil {
		g.Log.Warn("blobs that nothing refers to are still listed", "error", err)
	}
}

// request is one request, taken apart.
type request struct {
	*http.Request
	g          *Registry
	w          http.ResponseWriter
	repository string
	reference  string // tag, digest or upload
}

// ServeHTTP implements http.Handler.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	q := &request{Request: r, g: g, w: w}
	if err := q.serve(); err != nil { //nolint:contextcheck // the request is its context
		q.fail(err) //nolint:contextcheck // the request is its context
	}
}

func (q *request) serve() error {
	path, ok := strings.CutPrefix(q.URL.Path, "/v2/")
	if !ok && q.URL.Path != "/v2" {
		return notFound("UNSUPPORTED", "there is no %s", q.URL.Path)
	}
	switch path {
	case "":
		return q.ping()
	case "_catalog":
		return q.listRepositories()
	}
	handle := q.route(path)
	if handle == nil {
		return notFound("UNSUPPORTED", "there is no %s", q.URL.Path)
	}
	if err := checkRepository(q.repository); err != nil {
		return err
	}
	action, handler, ok := handle(q.Method)
	if !ok {
		return notPossible(q.Method)
	}
	if err := q.may(q.repository, action); err != nil {
		return err
	}
	return handler()
}

// may asks whether the caller may do that.
func (q *request) may(repository string, action Action) error {
	if q.g.Authorize == nil {
		return nil
	}
	return q.g.Authorize(q.Request, repository, action)
}

func (q *request) ping() error {
	if !reads(q.Method) {
		return notPossible(q.Method)
	}
	if err := q.may("", Pull); err != nil {
		return err
	}
	return q.answer(http.StatusOK, struct{}{})
}

// methods says what a method does at an endpoint and what that needs.
type methods func(method string) (Action, func() error, bool)

// route takes a path apart (distribution-spec, endpoints); nil for none. Names
// may have parts that look like endpoints: what counts is the end.
func (q *request) route(path string) methods {
	parts := strings.Split(path, "/")
	n := len(parts)
	ends := func(i int, word string) bool { return n > i && parts[n-i] == word }
	take := func(i int) { q.repository, q.reference = strings.Join(parts[:n-i], "/"), parts[n-1] }
	switch {
	case ends(2, "tags") && parts[n-1] == "list":
		take(2)
		return q.tagsMethods
	case ends(3, "blobs") && parts[n-2] == "uploads":
		take(3)
		return q.uploadMethods
	case ends(2, "manifests"):
		take(2)
		return q.manifestMethods
	case ends(2, "blobs"):
		take(2)
		return q.blobMethods
	case ends(2, "referrers"):
		take(2)
		return q.referrersMethods
	}
	return nil
}

func (q *request) tagsMethods(method string) (Action, func() error, bool) {
	return Pull, q.listTags, reads(method)
}

func (q *request) referrersMethods(method string) (Action, func() error, bool) {
	return Pull, q.listReferrers, reads(method)
}

func (q *request) manifestMethods(method string) (Action, func() error, bool) {
	switch method {
	case http.MethodPut:
		return Push, q.putManifest, true
	case http.MethodDelete:
		return Delete, q.deleteManifest, true
	}
	return Pull, q.getManifest, reads(method)
}

func (q *request) blobMethods(method string) (Action, func() error, bool) {
	switch method {
	case http.MethodPost: // without the last slash
		return Push, q.postUpload, q.reference == "uploads"
	case http.MethodDelete:
		return Delete, q.deleteBlob, true
	}
	return Pull, q.getBlob, reads(method)
}

func (q *request) uploadMethods(method string) (Action, func() error, bool) {
	if q.reference == "" {
		return Push, q.postUpload, method == http.MethodPost
	}
	handler, ok := map[string]func(*session) error{
		http.MethodGet: q.getUpload, http.MethodPatch: q.patchUpload, http.MethodPut: q.putUpload, http.MethodDelete: q.deleteUpload,
	}[method]
	return Push, func() error { return q.withUpload(handler) }, ok
}

func reads(method string) bool { return method == http.MethodGet || method == http.MethodHead }
