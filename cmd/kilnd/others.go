package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake"
	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/sign"
)

// askLimit bounds the wait for a registry that is asked for signatures.
const askLimit = 30 * time.Second

// others reads the keys of others that the configuration names.
func (p *plane) others(s config.Signing) (sign.Others, error) {
	out := sign.Others{}
	for _, t := range s.Trust {
		text, err := config.PublicKeys(t.Key)
		if err != nil {
			return nil, err
		}
		if out[t.Name], err = sign.ParsePublics(text); err != nil {
			return nil, kiln.Errorf(kiln.CodeInvalid, "openssl pkey -in KEY -pubout makes one, of ECDSA over P-256", "trust %q: %s: %w", t.Name, t.Key, err)
		}
	}
	return out, p.signer.CheckOthers(out)
}

// vouchers are those others, and what registries have of their signatures.
type vouchers struct {
	signer *sign.Signer
	baker  func() *bake.Baker // which is made later
}

func (v vouchers) Names() []string { return v.signer.Others() }

func (v vouchers) Known(ctx context.Context, image kiln.Digest) ([]string, error) {
	return v.signer.Endorsed(ctx, image)
}

func (v vouchers) Ask(ctx context.Context, reference string, index, image kiln.Digest, keep bool) ([]string, error) {
	within, end := context.WithTimeout(ctx, askLimit)
	defer end()
	found, asked := v.baker().Signatures(within, reference, index, image)
	if asked != nil && within.Err() != nil && ctx.Err() == nil {
		asked = fmt.Errorf("the registry of %s did not answer within %s", reference, askLimit)
	}
	all := make([]sign.Endorsement, len(found))
	for i, one := range found {
		all[i] = sign.Endorsement(one)
	}
	by, err := v.signer.Endorse(ctx, image, all, keep)
	return by, errors.Join(asked, err)
}
