package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/registry"
	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/internal/store"
)

// shelves are where the registry has its images: in the store.
type shelves struct{ *store.Store }

func (s shelves) NewUpload() (registry.Upload, error) { return s.Store.NewUpload() }

// openRegistry makes the registry, which is served by the API.
func (p *plane) openRegistry() (err error) {
	p.registry, err = registry.New(registry.Options{
		Store: shelves{p.store}, Dir: p.dir("registry"), Log: p.log,
		Authorize: func(r *http.Request, _ string, action registry.Action) error {
			return server.MayUseRegistry(r, string(action))
		},
		Pushed: p.pushed, Needed: p.control.Needs, Signature: p.signer.SimpleSignature, Said: p.signer.Said,
	})
	if err != nil {
		return fmt.Errorf("open the registry: %w", err)
	}
	return nil
}

// pushed notes an image that gets a tag. What it returns keeps it from getting
// one.
func (p *plane) pushed(ctx context.Context, repository, tag string, d kiln.Digest) error {
	name := repository + ":" + tag
	err := p.record(ctx, kiln.Event{
		Kind: "image.pushed", Subject: name, Actor: server.ActorOf(ctx),
		Message: fmt.Sprintf("%s was pushed: it is %s", name, d),
		Data:    map[string]string{"repository": repository, "tag": tag, "digest": string(d)},
	})
	if err != nil {
		return fmt.Errorf("record the push: %w", err)
	}
	return nil
}

// push sends an image of the store to another registry. It stays in the store
// until it is sent.
func (p *plane) push(ctx context.Context, actor string, request server.PushRequest, progress func(kiln.Progress)) (server.PushResult, error) {
	release, err := p.store.Hold(ctx)
	if err != nil {
		return server.PushResult{}, err
	}
	defer release()
	d, err := p.store.Find(ctx, request.Image)
	if err != nil {
		return server.PushResult{}, err
	}
	to, err := p.baker.Push(ctx, p.store, d, request.Destination, progress)
	if err != nil {
		return server.PushResult{}, err
	}
	err = p.record(ctx, kiln.Event{
		Kind: "image.sent", Subject: to, Actor: actor, Message: fmt.Sprintf("%s was sent to %s", request.Image, request.Destination),
		Data: map[string]string{"image": request.Image, "destination": request.Destination, "digest": string(d)},
	})
	if err != nil {
		return server.PushResult{}, fmt.Errorf("record the push: %w", err)
	}
	return server.PushResult{Digest: d, Destination: to}, nil
}
