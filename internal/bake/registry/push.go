package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kilnproject/kiln"
)

// Source is where images come from that are pushed.
type Source interface {
	Open(d kiln.Digest) (*os.File, error)
	Document(ctx context.Context, d kiln.Digest) ([]byte, error)
	Referrers(ctx context.Context, subject kiln.Digest, artifactType string) ([]ocispec.Descriptor, error)
}

// Push sends an image, or an index with its images, and all that refers to it
// (signatures, inventories) to another registry, and gives it the tag that the
// destination names, last: who watches the tag finds the rest. A destination by
// digest must have the image's. A registry without a list of referrers gets the
// tag that the distribution-spec has for it. It returns the destination by
// digest.
func (c *Client) Push(ctx context.Context, from Source, manifest kiln.Digest, destination string, progress func(kiln.Progress)) (string, error) {
	to, err := parse(destination)
	if err != nil {
		return "", err
	}
	if by, ok := to.(name.Digest); ok && by.DigestStr() != string(manifest) {
		return "", kiln.Errorf(kiln.CodeInvalid, "name a tag", "%s is another image than %s", destination, manifest)
	}
	p := sending{c: c, from: from, ref: destination, repo: to.Context(), progress: progress, done: map[kiln.Digest]bool{}}
	top, err := p.tree(ctx, manifest, 0)
	if err != nil {
		return "", err
	}
	if tag, ok := to.(name.Tag); ok {
		if err := remote.Put(tag, top, c.options(ctx)...); err != nil {
			return "", notPushed(destination, err)
		}
	}
	return p.repo.Digest(string(manifest)).String(), nil
}

// sending is one push.
type sending struct {
	c        *Client
	from     Source
	ref      string
	repo     name.Repository
	progress func(kiln.Progress)
	done     map[kiln.Digest]bool // manifests that are there
}

// raw is a manifest as it is.
type raw struct {
	content []byte
	kind    types.MediaType
}

// RawManifest and MediaType implement remote.Taggable.
func (r raw) RawManifest() ([]byte, error)        { return r.content, nil }
func (r raw) MediaType() (types.MediaType, error) { return r.kind, nil }

// tree sends a manifest, before it what it consists of and behind it what
// refers to it.
func (p *sending) tree(ctx context.Context, d kiln.Digest, depth int) (raw, error) {
	content, err := p.from.Document(ctx, d)
	if err != nil {
		return raw{}, fmt.Errorf("push %s: %w", p.ref, err)
	}
	var m struct {
		MediaType types.MediaType `json:"mediaType"`
		Config    *v1.Descriptor  `json:"config"`
		Layers    []v1.Descriptor `json:"layers"`
		Manifests []v1.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(content, &m); err != nil || m.Config == nil && m.Manifests == nil {
		return raw{}, kiln.Errorf(kiln.CodeInvalid, "name an image", "%s is no image", d)
	}
	if m.MediaType == "" {
		m.MediaType = types.OCIManifestSchema1
	}
	top := raw{content, m.MediaType}
	if p.done[d] {
		return top, nil
	}
	if depth > maxNesting {
		return raw{}, kiln.Errorf(kiln.CodeInvalid, "", "push %s: it is nested more than %d deep", p.ref, maxNesting)
	}
	p.done[d] = true
	for _, child := range m.Manifests {
		if _, err := p.tree(ctx, kiln.Digest(child.Digest.String()), depth+1); err != nil {
			return raw{}, err
		}
	}
	blobs := m.Layers
	if m.Config != nil {
		blobs = append([]v1.Descriptor{*m.Config}, blobs...)
	}
	if err := p.blobs(ctx, blobs); err != nil {
		return raw{}, err
	}
	if err := remote.Put(p.repo.Digest(string(d)), top, p.c.options(ctx)...); err != nil {
		return raw{}, notPushed(p.ref, err)
	}
	return top, p.referrers(ctx, d, depth)
}

func (p *sending) referrers(ctx context.Context, d kiln.Digest, depth int) error {
	all, err := p.from.Referrers(ctx, d, "")
	if err != nil {
		return err
	}
	for _, r := range all {
		p.progress(kiln.Progress{Stage: "push", Subject: p.ref, Step: r.ArtifactType, Done: true})
		if _, err := p.tree(ctx, kiln.Digest(r.Digest), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// blobs sends those that the registry has not.
func (p *sending) blobs(ctx context.Context, all []v1.Descriptor) error {
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, b := range all {
		step := fmt.Sprintf("blob %d of %d", i+1, len(all))
		g.Go(func() error {
			p.progress(kiln.Progress{Stage: "push", Subject: p.ref, Step: step, Message: fmt.Sprintf("%.1f MB", float64(b.Size)/1e6)})
			if err := remote.WriteLayer(p.repo, stored{p.from, b}, p.c.options(each)...); err != nil {
				return notPushed(p.ref, err)
			}
			p.progress(kiln.Progress{Stage: "push", Subject: p.ref, Step: step, Done: true})
			return nil
		})
	}
	return g.Wait()
}

// stored is a blob as the library wants a layer. Nothing asks what it has
// within.
type stored struct {
	from Source
	desc v1.Descriptor
}

var errOpaque = errors.New("it is sent as it is")

func (s stored) Digest() (v1.Hash, error)             { return s.desc.Digest, nil }
func (s stored) DiffID() (v1.Hash, error)             { return v1.Hash{}, errOpaque }
func (s stored) Uncompressed() (io.ReadCloser, error) { return nil, errOpaque }
func (s stored) Size() (int64, error)                 { return s.desc.Size, nil }
func (s stored) MediaType() (types.MediaType, error)  { return s.desc.MediaType, nil }

func (s stored) Compressed() (io.ReadCloser, error) {
	return s.from.Open(kiln.Digest(s.desc.Digest.String()))
}

// notPushed turns a transport's error into one that a user can act on.
func notPushed(ref string, err error) error {
	t, err := answered("push", ref, err)
	if t == nil {
		return err
	}
	switch t.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return kiln.Errorf(kiln.CodeRefused, "Log in with docker login or podman login as the user that kilnd runs as.", "the registry does not let us write %s: %w", ref, err)
	case http.StatusTooManyRequests:
		return kiln.Errorf(kiln.CodeUnavailable, "Wait, and try again.", "the registry limits how often %s is pushed", ref)
	}
	return kiln.Errorf(kiln.CodeFailed, "Look at the registry.", "push %s: %w", ref, err)
}
