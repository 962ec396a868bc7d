// Package registry resolves references of OCI registries to digests, pulls
// images by digest into the store, and pushes those of the store. It trusts no registry: every byte is
// checked against the digest that named it, every document and layer against
// a size.
package registry

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/kilnproject/kiln"
	"golang.org/x/sync/errgroup"
)

const (
	maxDocument  = 4 << 20  // bytes of a manifest, index or config
	maxImage     = 32 << 30 // bytes of all layers of one image, compressed
	maxManifests = 1000     // of one index, nested ones included
	maxNesting   = 4        // of indexes within indexes
	parallel     = 3        // layers at one time
)

// Store is where images go.
type Store interface {
	Put(ctx context.Context, r io.Reader, want kiln.Digest) (kiln.Digest, int64, error)
	Has(d kiln.Digest) bool
}

// Options configure a client.
type Options struct {
	Store Store
	// Keychain gives credentials; when nil those that docker login and podman
	// login left for this process's user.
	Keychain authn.Keychain
	// Transport carries the requests; a copy of the default one when nil.
	Transport http.RoundTripper
	// Own is what carries a request instead, to a registry that needs no network;
	// it returns nil for others. Nil is none for all.
	Own func(*http.Request) http.RoundTripper
}

// carrier carries requests each to its registry.
type carrier struct {
	own  func(*http.Request) http.RoundTripper
	next http.RoundTripper
}

func (c carrier) RoundTrip(r *http.Request) (*http.Response, error) {
	if own := c.own(r); own != nil {
		return own.RoundTrip(r)
	}
	return c.next.RoundTrip(r)
}

// Client resolves, pulls and pushes. Its methods may be called concurrently.
type Client struct {
	store   Store
	remote  []remote.Option
	mirrors atomic.Pointer[map[string][]string]
}

// SetMirrors exchanges what is asked before a registry, by the registry's host
// as references have it ("docker.io", "registry.example.com:5000"): hosts,
// which may be followed by a path. The registry itself comes last. What is
// pulled by digest is checked whoever sends it; which digest a tag has, the
// first that knows the tag says.
func (c *Client) SetMirrors(mirrors map[string][]string) {
	of := map[string][]string{}
	for host, all := range mirrors {
		if at, err := name.NewRegistry(host); err == nil {
			of[at.RegistryStr()] = slices.Clone(all) // docker.io has another name of its own
		}
	}
	c.mirrors.Store(&of)
}

// places are where a reference may be found, in the order to ask in.
func (c *Client) places(ref name.Reference) []name.Reference {
	var out []name.Reference
	if mirrors := c.mirrors.Load(); mirrors != nil {
		for _, m := range (*mirrors)[ref.Context().RegistryStr()] {
			separator := ":"
			if _, ok := ref.(name.Digest); ok {
				separator = "@"
			}
			if at, err := name.ParseReference(m + "/" + ref.Context().RepositoryStr() + separator + ref.Identifier()); err == nil {
				out = append(out, at)
			}
		}
	}
	return append(out, ref)
}

// first asks one place after another until one answers, and returns the last
// one's error.
func (c *Client) first(ctx context.Context, ref name.Reference, ask func(name.Reference) error) error {
	var err error
	for _, at := range c.places(ref) {
		if err = ask(at); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// New makes a client. It connects to nothing yet.
func New(o Options) *Client {
	if o.Keychain == nil {
		o.Keychain = machine()
	}
	if o.Transport == nil {
		o.Transport = remote.DefaultTransport
	}
	if o.Own != nil {
		o.Transport = carrier{o.Own, o.Transport}
	}
	return &Client{store: o.Store, remote: []remote.Option{
		remote.WithAuthFromKeychain(o.Keychain),
		remote.WithTransport(o.Transport),
		remote.WithUserAgent("kiln"),
	}}
}

func (c *Client) options(ctx context.Context) []remote.Option {
	return append([]remote.Option{remote.WithContext(ctx)}, c.remote...)
}

// Resolve asks the registry what a reference names: the digest of its index
// (of its manifest where it has no index) and each platform's manifest.
func (c *Client) Resolve(ctx context.Context, ref string) (kiln.LockedReference, error) {
	parsed, err := parse(ref)
	if err != nil {
		return kiln.LockedReference{}, err
	}
	var lock kiln.LockedReference
	err = c.first(ctx, parsed, func(at name.Reference) error {
		lock, err = c.resolve(ctx, ref, at)
		return err
	})
	return lock, err
}

func (c *Client) resolve(ctx context.Context, ref string, parsed name.Reference) (kiln.LockedReference, error) {
	desc, err := remote.Get(parsed, c.options(ctx)...)
	if err != nil {
		return kiln.LockedReference{}, explain(ref, err)
	}
	if err := check(ref, desc.Manifest, desc.Digest); err != nil {
		return kiln.LockedReference{}, err
	}
	out := kiln.LockedReference{
		Reference: ref,
		Index:     kiln.Digest(desc.Digest.String()),
		Platforms: map[string]kiln.Digest{},
	}
	if desc.MediaType.IsIndex() {
		w := walk{c: c, ref: ref, repo: parsed.Context(), out: out.Platforms}
		return out, w.index(ctx, desc.Manifest, 0)
	}
	platform, err := c.platform(ctx, ref, parsed.Context(), desc.Manifest)
	if err != nil {
		return kiln.LockedReference{}, err
	}
	out.Platforms[platform] = out.Index
	return out, nil
}

// walk collects the platforms of an index and of indexes within it.
type walk struct {
	c     *Client
	ref   string
	repo  name.Repository
	out   map[string]kiln.Digest
	count int
}

func (w *walk) index(ctx context.Context, raw []byte, depth int) error {
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return invalid(w.ref, "its index cannot be read: %w", err)
	}
	for _, d := range index.Manifests {
		if w.count++; w.count > maxManifests {
			return invalid(w.ref, "it names more than %d manifests", maxManifests)
		}
		if err := w.entry(ctx, d, depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) entry(ctx context.Context, d v1.Descriptor, depth int) error {
	switch {
	case d.MediaType.IsIndex():
		if depth+1 >= maxNesting {
			return invalid(w.ref, "its indexes are nested more than %d deep", maxNesting)
		}
		raw, err := w.c.document(ctx, w.ref, w.repo.Digest(d.Digest.String()), d.Digest, d.Size)
		if err != nil {
			return err
		}
		return w.index(ctx, raw, depth+1)
	case !d.MediaType.IsImage():
		return nil // an artifact beside the images
	}
	platform := ""
	if d.Platform != nil {
		platform = platformName(d.Platform.OS, d.Platform.Architecture, d.Platform.Variant)
	} else {
		raw, err := w.c.document(ctx, w.ref, w.repo.Digest(d.Digest.String()), d.Digest, d.Size)
		if err != nil {
			return err
		}
		if platform, err = w.c.platform(ctx, w.ref, w.repo, raw); err != nil {
			return err
		}
	}
	if platform == "" || platform == "unknown/unknown" { // attestations are marked so
		return nil
	}
	if _, ok := w.out[platform]; !ok {
		w.out[platform] = kiln.Digest(d.Digest.String())
	}
	return nil
}

// platformName writes a platform as a definition does: "linux/arm64",
// "linux/arm/v7".
func platformName(os, arch, variant string) string {
	if os == "" || arch == "" {
		return ""
	}
	if variant == "" || arch == "arm64" && variant == "v8" || arch == "amd64" && variant == "v1" {
		return os + "/" + arch
	}
	return os + "/" + arch + "/" + variant
}

// platform reads the platform of a manifest out of its config.
func (c *Client) platform(ctx context.Context, ref string, repo name.Repository, manifest []byte) (string, error) {
	m, err := parseManifest(ref, manifest)
	if err != nil {
		return "", err
	}
	raw, err := c.blob(ctx, ref, repo, m.Config)
	if err != nil {
		return "", err
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(raw, &config); err != nil {
		return "", invalid(ref, "its config cannot be read: %w", err)
	}
	return platformName(config.OS, config.Architecture, config.Variant), nil
}

// document fetches a manifest or index by digest.
func (c *Client) document(ctx context.Context, ref string, at name.Digest, want v1.Hash, size int64) ([]byte, error) {
	if size > maxDocument {
		return nil, invalid(ref, "%s is larger than %d bytes", want, maxDocument)
	}
	desc, err := remote.Get(at, c.options(ctx)...)
	if err != nil {
		return nil, explain(ref, err)
	}
	return desc.Manifest, check(ref, desc.Manifest, want)
}

// blob fetches a small blob.
func (c *Client) blob(ctx context.Context, ref string, repo name.Repository, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxDocument {
		return nil, invalid(ref, "%s is larger than %d bytes", d.Digest, maxDocument)
	}
	l, err := remote.Layer(repo.Digest(d.Digest.String()), c.options(ctx)...)
	if err != nil {
		return nil, explain(ref, err)
	}
	r, err := l.Compressed()
	if err != nil {
		return nil, explain(ref, err)
	}
	defer func() { _ = r.Close() }()
	raw, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, explain(ref, err)
	}
	return raw, check(ref, raw, d.Digest)
}

// Pull brings the image of a manifest into the store, the manifest last.
func (c *Client) Pull(ctx context.Context, ref string, manifest kiln.Digest, progress func(kiln.Progress)) error {
	parsed, err := parse(ref)
	if err != nil {
		return err
	}
	return c.first(ctx, parsed, func(at name.Reference) error {
		return c.pull(ctx, ref, at.Context(), manifest, progress)
	})
}

func (c *Client) pull(ctx context.Context, ref string, repo name.Repository, manifest kiln.Digest, progress func(kiln.Progress)) error {
	want, err := v1.NewHash(string(manifest))
	if err != nil {
		return invalid(ref, "%w", err)
	}
	raw, err := c.document(ctx, ref, repo.Digest(string(manifest)), want, 0)
	if err != nil {
		return err
	}
	m, err := parseManifest(ref, raw)
	if err != nil {
		return err
	}
	config, err := c.blob(ctx, ref, repo, m.Config)
	if err != nil {
		return err
	}
	if _, _, err := c.store.Put(ctx, bytes.NewReader(config), kiln.Digest(m.Config.Digest.String())); err != nil {
		return err
	}
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, l := range m.Layers {
		step := fmt.Sprintf("pull %s, layer %d of %d", ref, i+1, len(m.Layers))
		g.Go(func() error { return c.layer(each, ref, repo, l, step, progress) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	_, _, err = c.store.Put(ctx, bytes.NewReader(raw), manifest)
	return err
}

func (c *Client) layer(ctx context.Context, ref string, repo name.Repository, d v1.Descriptor, step string, progress func(kiln.Progress)) error {
	digest := kiln.Digest(d.Digest.String())
	if c.store.Has(digest) {
		progress(kiln.Progress{Step: step, Cached: true, Done: true})
		return nil
	}
	progress(kiln.Progress{Step: step, Message: fmt.Sprintf("%.1f MB", float64(d.Size)/1e6)})
	l, err := remote.Layer(repo.Digest(d.Digest.String()), c.options(ctx)...)
	if err != nil {
		return explain(ref, err)
	}
	r, err := l.Compressed()
	if err != nil {
		return explain(ref, err)
	}
	defer func() { _ = r.Close() }()
	bounded := &boundedReader{r: r, left: d.Size}
	if _, _, err := c.store.Put(ctx, bounded, digest); err != nil {
		return explain(ref, err)
	}
	progress(kiln.Progress{Step: step, Done: true})
	return nil
}

// parseManifest reads a manifest and checks that it is a bearable image.
func parseManifest(ref string, raw []byte) (*v1.Manifest, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, invalid(ref, "its manifest cannot be read: %w", err)
	}
	var sum int64
	for _, l := range m.Layers {
		if !l.MediaType.IsLayer() || l.MediaType == types.DockerForeignLayer {
			return nil, invalid(ref, "its layer %s has the type %q", l.Digest, l.MediaType)
		}
		if sum += l.Size; l.Size < 0 || sum > maxImage {
			return nil, invalid(ref, "its layers are larger than %d bytes", int64(maxImage))
		}
	}
	return m, nil
}

// check compares bytes with the digest that named them.
func check(ref string, raw []byte, want v1.Hash) error {
	if len(raw) > maxDocument {
		return invalid(ref, "%s is larger than %d bytes", want, maxDocument)
	}
	if got := kiln.DigestOf(raw); string(got) != want.String() {
		return invalid(ref, "the registry answered %s for %s", got, want)
	}
	return nil
}

// boundedReader fails once more than it was promised comes.
type boundedReader struct {
	r    io.Reader
	left int64
}

var errTooLong = errors.New("it is larger than its descriptor says")

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLong
	}
	return n, err
}

func parse(ref string) (name.Reference, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, `Write it as "host/name:tag" or "host/name@sha256:...".`,
			"%q is not an image reference: %w", ref, err)
	}
	return parsed, nil
}

func invalid(ref, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return kiln.Errorf(kiln.CodeInvalid, "The registry or the image is broken or hostile; use another.", "%s: %w", ref, err)
}

// explain turns a transport's error into one that a user can act on.
func explain(ref string, err error) error {
	t, err := answered("pull", ref, err)
	if t == nil {
		return err
	}
	switch t.StatusCode {
	case http.StatusNotFound:
		return kiln.Errorf(kiln.CodeNotFound, "Check the name and the tag.", "%s is not in the registry", ref)
	case http.StatusUnauthorized, http.StatusForbidden:
		return kiln.Errorf(kiln.CodeRefused, "Log in with docker login as the user that kilnd runs as.", "the registry does not let us read %s", ref)
	case http.StatusTooManyRequests:
		return kiln.Errorf(kiln.CodeUnavailable, "Wait, or log in for a higher limit.", "the registry limits how often %s is pulled", ref)
	default:
		return kiln.Errorf(kiln.CodeUnavailable, "Try again.", "pull %s: %w", ref, err)
	}
}

// answered is what a registry said, where the error is its answer; otherwise
// there was none, and the error says so to a user.
func answered(doing, ref string, err error) (*transport.Error, error) {
	var known *kiln.Error
	var t *transport.Error
	var stranger x509.UnknownAuthorityError
	switch {
	case errors.As(err, &known), errors.Is(err, context.Canceled):
		return nil, fmt.Errorf("%s %s: %w", doing, ref, err)
	case errors.As(err, &stranger):
		return nil, kiln.Errorf(kiln.CodeUnavailable, "Where it is yours, put its authority below /usr/local/share/ca-certificates, run update-ca-certificates, and restart kilnd.",
			"%s %s: the machine does not trust the registry's certificate: %w", doing, ref, stranger)
	case !errors.As(err, &t):
		return nil, kiln.Errorf(kiln.CodeUnavailable, "Check the registry's name and the network.", "%s %s: %w", doing, ref, err)
	}
	return t, err
}
