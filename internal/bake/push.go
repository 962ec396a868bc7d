package bake

import (
	"context"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake/registry"
)

// SetMirrors exchanges which registries are asked before another; see
// registry.Client.
func (b *Baker) SetMirrors(mirrors map[string][]string) { b.registry.SetMirrors(mirrors) }

// Push sends an image of a store and what refers to it to a registry, and
// returns the destination by digest; see registry.Client.
func (b *Baker) Push(ctx context.Context, from registry.Source, manifest kiln.Digest, destination string, progress func(kiln.Progress)) (string, error) {
	return b.registry.Push(ctx, from, manifest, destination, progress)
}

// Signatures returns the signatures that a registry has of an image; see
// registry.Client.
func (b *Baker) Signatures(ctx context.Context, ref string, index, image kiln.Digest) ([]registry.Signature, error) {
	return b.registry.Signatures(ctx, ref, index, image)
}

// SetKeyring exchanges the file with the keys of Debian archives; see
// debian.Builder.
func (b *Baker) SetKeyring(file string) { b.debian.SetKeyring(file) }
