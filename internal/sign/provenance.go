package sign

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/kilnproject/kiln"
)

// BuildType names what the parameters of a provenance mean.
const BuildType = "https://kiln.dev/bake/v1"

// Build is one bake, as its provenance tells it.
type Build struct {
	// Definition is the digest of the definition's files.
	Definition kiln.Digest
	Source     kiln.Source
	// Builder is the URI of who baked, Version that of its Kiln.
	Builder string
	Version string
	Baked   kiln.Baked
	// Parameters are the values of the definition's variables, by name.
	Parameters map[string]json.RawMessage
}

// provenance is the predicate of SLSA (slsa.dev/spec/v1.0/provenance). It has no
// time of the bake: the same bake has the same provenance.
type provenance struct {
	Definition buildDefinition `json:"buildDefinition"`
	Run        runDetails      `json:"runDetails"`
}

type buildDefinition struct {
	Type         string               `json:"buildType"`
	External     externalParameters   `json:"externalParameters"`
	Internal     internalParameters   `json:"internalParameters"`
	Dependencies []resourceDescriptor `json:"resolvedDependencies"`
}

// externalParameters are what the definition and its caller chose.
type externalParameters struct {
	Image      string                     `json:"image"`
	Platform   string                     `json:"platform"`
	Definition kiln.Digest                `json:"definition,omitempty"`
	Branch     string                     `json:"branch,omitempty"`
	Variables  map[string]json.RawMessage `json:"variables,omitempty"`
}

// internalParameters are Kiln's own.
type internalParameters struct {
	// Inputs is the digest of all that decides the image's bytes.
	Inputs kiln.Digest `json:"inputs"`
	// Uncommitted is true when the tree had changes that its commit has not.
	Uncommitted bool `json:"uncommitted,omitempty"`
}

type runDetails struct {
	Builder builder `json:"builder"`
}

type builder struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
}

// resourceDescriptor is something that went in (in-toto attestation framework,
// spec/v1/resource_descriptor.md).
type resourceDescriptor struct {
	Name        string            `json:"name"`
	URI         string            `json:"uri,omitempty"`
	Digest      map[string]string `json:"digest"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Provenance is the predicate of a build.
func Provenance(b Build) (json.RawMessage, error) {
	p := provenance{
		Definition: buildDefinition{
			Type: BuildType,
			External: externalParameters{
				Image: b.Baked.Name, Platform: b.Baked.Platform, Definition: b.Definition,
				Branch: b.Source.Branch, Variables: maps.Clone(b.Parameters),
			},
			Internal:     internalParameters{Inputs: b.Baked.Inputs, Uncommitted: b.Source.Dirty},
			Dependencies: b.dependencies(),
		},
		Run: runDetails{Builder: builder{ID: b.Builder}},
	}
	if b.Version != "" {
		p.Run.Builder.Version = map[string]string{"kiln": b.Version}
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("write provenance: %w", err)
	}
	return raw, nil
}

// dependencies are the commit and the materials, by kind and name.
func (b Build) dependencies() []resourceDescriptor {
	out := []resourceDescriptor{}
	if b.Source.Commit != "" {
		out = append(out, resourceDescriptor{Name: "source", Digest: map[string]string{"gitCommit": b.Source.Commit}})
	}
	for _, m := range b.Baked.Materials {
		out = append(out, resourceDescriptor{
			Name: m.Name, URI: m.URI,
			Digest:      map[string]string{"sha256": m.Digest.Hex()},
			Annotations: map[string]string{"kind": string(m.Kind)},
		})
	}
	return slices.Clip(out)
}

// AttestProvenance signs where an image came from. An image that was made of the
// same inputs before keeps the provenance of that bake: a later commit that
// changes nothing of it, or a mirror that moved, did not make it.
func (s *Signer) AttestProvenance(ctx context.Context, b Build) (kiln.Digest, error) {
	k := s.images.current()
	before, err := s.read(ctx, k, b.Baked.Manifest)
	if err != nil {
		return "", err
	}
	var known *finding
	for i, f := range before {
		if f.err != nil || f.kind != PredicateProvenance || f.inputs != b.Baked.Inputs {
			continue
		}
		if f.key == k.active().ID {
			return f.referrer, nil
		}
		known = &before[i]
	}
	predicate, err := Provenance(b)
	if known != nil { // by a key that was rotated: the new one signs the same
		predicate, err = s.predicate(ctx, k, place{b.Baked.Manifest, known.referrer})
	}
	if err != nil {
		return "", err
	}
	return s.attest(ctx, b.Baked.Manifest, PredicateProvenance, predicate)
}
