package prove

import (
	"context"
	"errors"
	"slices"

	"github.com/kilnproject/kiln"
)

// Base is what an image stands on: how many of its layers, from the lowest, came
// with an image that it was made from, and which image that is; the zero value
// is nothing.
type Base struct {
	Layers int         `json:"layers"`
	Image  kiln.Digest `json:"image,omitempty"`
}

// base is what an image stands on. Where several of its materials are below it,
// it is the highest one.
func (p *Prover) base(ctx context.Context, baked kiln.Baked) (Base, error) {
	var own []kiln.Digest
	var most Base
	for _, m := range baked.Materials {
		if m.Kind != kiln.MaterialImage || m.Digest == baked.Manifest {
			continue
		}
		if own == nil {
			var err error
			if own, err = p.opt.Inspector.Layers(ctx, baked.Manifest); err != nil {
				return Base{}, err
			}
		}
		layers, err := p.opt.Inspector.Layers(ctx, m.Digest)
		if errors.Is(err, kiln.ErrNotFound) {
			continue // collected: nothing can be told of it
		}
		if err != nil {
			return Base{}, err
		}
		if len(layers) > most.Layers && len(layers) <= len(own) && slices.Equal(layers, own[:len(layers)]) {
			most = Base{Layers: len(layers), Image: m.Digest}
		}
	}
	return most, nil
}
