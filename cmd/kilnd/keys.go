package main

import (
	"context"
	"strings"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/server"
)

// signingKeys are the keys of images, for the API.
type signingKeys struct{ *plane }

func (k signingKeys) Keys() []server.SigningKey {
	var out []server.SigningKey
	for _, key := range k.signer.Keys() {
		out = append(out, server.SigningKey{
			ID: key.ID, Public: key.Public, Origin: string(key.Origin), Since: key.Since, Until: key.Until, Distrusted: key.Distrusted,
		})
	}
	return out
}

// Rotate makes a new key. What the one before signed stays valid.
func (k signingKeys) Rotate(ctx context.Context, actor string) error {
	key, err := k.signer.Rotate()
	if err != nil {
		return err
	}
	k.noted(ctx, kiln.Event{
		Kind: "key.rotated", Subject: key.ID[:12], Actor: actor, Message: "images are signed by the new key " + key.ID,
		Data: map[string]string{"key": key.ID},
	})
	return nil
}

// Distrust ends the trust in a key. What was verified before is verified again
// from now on; what runs goes on.
func (k signingKeys) Distrust(ctx context.Context, actor, id string) error {
	for _, key := range k.signer.Keys() {
		if len(id) >= 12 && strings.HasPrefix(key.ID, id) {
			id = key.ID
			break
		}
	}
	if err := k.signer.Distrust(id); err != nil {
		return err
	}
	k.prover.Forget()
	k.noted(ctx, kiln.Event{
		Kind: "key.distrusted", Subject: id[:12], Actor: actor, Message: "what key " + id + " signed does not count any more",
		Data: map[string]string{"key": id},
	})
	return nil
}

// noted records a change that was made. That it was made is worth more than that
// it is recorded.
func (k signingKeys) noted(ctx context.Context, e kiln.Event) {
	if err := k.record(ctx, e); err != nil {
		k.log.ErrorContext(ctx, "the event could not be recorded", "kind", e.Kind, "error", err)
	}
}
