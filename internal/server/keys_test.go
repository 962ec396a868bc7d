package server

import (
	"context"
	"errors"
	"testing"

	"github.com/kilnproject/kiln"
)

// ringOf is keys in memory.
type ringOf struct {
	all   []SigningKey
	actor string
}

func (r *ringOf) Keys() []SigningKey { return r.all }

func (r *ringOf) Rotate(_ context.Context, actor string) error {
	r.all, r.actor = append([]SigningKey{{ID: "new"}}, r.all...), actor
	return nil
}

func (r *ringOf) Distrust(_ context.Context, actor, id string) error {
	if r.actor = actor; id != "old" {
		return kiln.Errorf(kiln.CodeNotFound, "", "there is no key %s", id)
	}
	return nil
}

func TestKeys(t *testing.T) {
	ring := &ringOf{all: []SigningKey{{ID: "old"}}}
	f := serve(t, func(o *Options) { o.SigningKeys = ring })
	if keys, err := f.client.Keys(t.Context()); err != nil || len(keys.Keys) != 1 {
		t.Errorf("%+v, %v", keys, err)
	}
	if keys, err := f.client.RotateKey(t.Context()); err != nil || keys.Keys[0].ID != "new" || ring.actor == "" {
		t.Errorf("%+v, %v, by %q", keys, err, ring.actor)
	}
	if keys, err := f.client.DistrustKey(t.Context(), "old"); err != nil || len(keys.Keys) != 2 {
		t.Errorf("%+v, %v", keys, err)
	}
	if _, err := f.client.DistrustKey(t.Context(), "x"); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("an unknown key: %v", err)
	}
	without := serve(t, nil)
	if _, err := without.client.Keys(t.Context()); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("without keys: %v", err)
	}
}
