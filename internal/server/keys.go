package server

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/kilnproject/kiln"
)

// SigningKeys are the keys that images are signed with. Whoever changes them
// records it.
type SigningKeys interface {
	Keys() []SigningKey
	Rotate(ctx context.Context, actor string) error
	Distrust(ctx context.Context, actor, id string) error
}

// SigningKey is a public key that signs images, or did.
type SigningKey struct {
	ID     string    `json:"id"`     // SHA-256 of the public key in DER, in hex
	Public string    `json:"public"` // PEM
	Origin string    `json:"origin"` // "own", "file" or "command"
	Since  time.Time `json:"since"`
	// Until is when another took its place; zero for the one that signs.
	Until time.Time `json:"until,omitzero"`
	// Distrusted is when its signatures ceased to count.
	Distrusted time.Time `json:"distrusted,omitzero"`
}

// Keys are all of them, the one that signs first.
type Keys struct {
	Keys []SigningKey `json:"keys"`
}

// KeyRequest names a key.
type KeyRequest struct {
	ID string `json:"id"` // whole, or its first 12 digits or more
}

func (a *api) signingKeys() (SigningKeys, error) {
	if a.SigningKeys == nil {
		return nil, kiln.Errorf(kiln.CodeNotFound, "", "this control plane signs nothing")
	}
	return a.SigningKeys, nil
}

func (a *api) keys(*http.Request) (any, error) {
	keys, err := a.signingKeys()
	if err != nil {
		return nil, err
	}
	return Keys{append([]SigningKey{}, keys.Keys()...)}, nil
}

func (a *api) rotateKey(r *http.Request) (any, error) {
	keys, err := a.signingKeys()
	if err == nil {
		err = keys.Rotate(context.WithoutCancel(r.Context()), actorOf(r))
	}
	if err != nil {
		return nil, err
	}
	return a.keys(r)
}

func (a *api) distrustKey(r *http.Request) (any, error) {
	request, err := decode[KeyRequest](a, r)
	if err != nil {
		return nil, err
	}
	keys, err := a.signingKeys()
	if err == nil {
		err = keys.Distrust(context.WithoutCancel(r.Context()), actorOf(r), request.ID)
	}
	if err != nil {
		return nil, err
	}
	return a.keys(r)
}

// Keys lists the keys that sign images, and those that did.
func (c *Client) Keys(ctx context.Context) (Keys, error) {
	var result Keys
	return result, c.call(ctx, http.MethodGet, "keys", nil, "", nil, &result)
}

// RotateKey makes a new key for images.
func (c *Client) RotateKey(ctx context.Context) (Keys, error) {
	var result Keys
	return result, c.call(ctx, http.MethodPost, "keys/rotate", nil, typeJSON, bytes.NewReader([]byte("{}")), &result)
}

// DistrustKey ends the trust in a key.
func (c *Client) DistrustKey(ctx context.Context, id string) (Keys, error) {
	var result Keys
	body, err := json.Marshal(KeyRequest{ID: id})
	if err != nil {
		return result, err
	}
	return result, c.call(ctx, http.MethodPost, "keys/distrust", nil, typeJSON, bytes.NewReader(body), &result)
}
