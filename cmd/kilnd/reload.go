package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/server"
)

// reload reads the configuration again and takes it, whole or not at all. Who
// asked is in the ledger either way.
func (p *plane) reload(ctx context.Context, actor string) (server.Reloaded, error) {
	p.reloading.Lock()
	defer p.reloading.Unlock()
	before := p.settings.Load()
	next, warnings, err := p.given.settings(before)
	if err == nil && next.file.Path == "" {
		err = kiln.Errorf(kiln.CodeNotFound, "write "+p.dir(config.FileName), "there is no configuration to read: %s", next.why)
	}
	if err == nil {
		err = p.take(ctx, before, &next, actor)
	}
	if err != nil {
		p.refuse(ctx, next.file.Path, actor, err)
		return server.Reloaded{}, err
	}
	p.log.InfoContext(ctx, "configuration was loaded", "file", next.file.Path, "sha256", next.file.Digest.Hex(), "actor", actor)
	tellWarnings(p.log, warnings)
	return server.Reloaded{Path: next.file.Path, Changed: before.changes(next), Warnings: warnings}, nil
}

// take makes settings those that are in effect. What can fail comes first and
// is undone by what fails after it.
func (p *plane) take(ctx context.Context, before, next *settings, actor string) error {
	if !before.file.Signing.Same(next.file.Signing) {
		return kiln.Errorf(kiln.CodeRefused, "restart kilnd, which ends nothing that runs: systemctl restart kilnd, or kill it and run kiln up",
			"another key for signatures takes a restart: %s instead of %s", next.file.Signing, before.file.Signing)
	}
	others, err := p.others(next.file.Signing)
	if err != nil {
		return err
	}
	certs, err := p.certificates(next.file.API)
	if err != nil {
		return err
	}
	telling, err := newTelling(next.file)
	if err != nil {
		return err
	}
	if err := p.movePublic(ctx, before, next); err != nil {
		return fmt.Errorf("move the public listeners: %w", err)
	}
	back := func() error {
		if err := errors.Join(p.movePublic(ctx, next, before), p.listeners.Set(ctx, before.file.Listen.Metrics)); err != nil {
			return fmt.Errorf("move the listeners back: %w", err)
		}
		return nil
	}
	if err := p.listeners.Set(ctx, next.file.Listen.Metrics); err != nil {
		return errors.Join(err, back())
	}
	move, err := p.remote.Prepare(ctx, next.file.API.Listen, certs)
	if err != nil {
		return errors.Join(err, back())
	}
	if err := p.loaded(ctx, before, next, actor); err != nil {
		move.Drop(ctx)
		return errors.Join(err, back())
	}
	p.access.SetTokens(next.file.Tokens)
	move.Take()
	p.certs = certs
	p.signer.SetOthers(others)
	p.apply(ctx, next)
	if err := p.tell(ctx, telling); err != nil {
		p.log.WarnContext(ctx, "traces are not sent", "error", err)
	}
	p.settings.Store(next)
	return nil
}

// apply puts into effect what cannot fail, or whose failure undoes nothing.
func (p *plane) apply(ctx context.Context, next *settings) {
	p.control.Rescan() // who signed what runs may be another question now
	p.baker.SetKeyring(next.file.Debian.Keyring)
	p.baker.SetMirrors(mirrors(next.file.Registries))
	p.tracker.Set(followed(next.file.Sources))
	p.control.SetStorageMax(next.storageMax)
	p.history.set(next.keepEvents)
	if err := p.engine.SetLogBytes(next.logBytes); err != nil {
		p.log.WarnContext(ctx, "logs were not collected", "error", err)
	}
	p.level.Set(next.level)
}

// movePublic moves the gateway's listeners where they are others. Where they
// are not, the gateway is not asked: it may be away when a token is revoked.
func (p *plane) movePublic(ctx context.Context, from, to *settings) error {
	if slices.Equal(from.listen.HTTP, to.listen.HTTP) && slices.Equal(from.listen.HTTPS, to.listen.HTTPS) {
		return nil
	}
	return p.engine.SetListen(ctx, to.listen)
}

// loaded puts a change of the configuration into the ledger.
func (p *plane) loaded(ctx context.Context, before, next *settings, actor string) error {
	data := map[string]string{"file": next.file.Path, "sha256": next.file.Digest.Hex()}
	changes := before.changes(*next)
	for i, change := range changes {
		data[fmt.Sprintf("change_%02d", i+1)] = change
	}
	message := fmt.Sprintf("configuration %s was loaded: nothing is different", next.file.Path)
	if n := len(changes); n > 0 {
		message = fmt.Sprintf("configuration %s was loaded, with %d changes", next.file.Path, n)
	}
	err := p.record(ctx, kiln.Event{Kind: "config.loaded", Subject: "kilnd", Message: message, Actor: actor, Data: data})
	if err != nil {
		return fmt.Errorf("record the configuration: %w", err)
	}
	return nil
}

// refuse puts a configuration that was not taken into log and ledger.
func (p *plane) refuse(ctx context.Context, path, actor string, cause error) {
	p.log.ErrorContext(ctx, "configuration was refused; the one before goes on", "actor", actor, "error", cause)
	data := map[string]string{}
	if path != "" {
		data["file"] = path
	}
	var shown *kiln.Error
	if errors.As(cause, &shown) {
		for i, d := range shown.Diagnostics {
			text := kiln.Diagnostics{d}.Error()
			p.log.ErrorContext(ctx, "configuration", "problem", text)
			data[fmt.Sprintf("problem_%02d", i+1)] = text
		}
	}
	err := p.record(ctx, kiln.Event{
		Kind: "config.refused", Subject: "kilnd", Message: "a configuration was refused, and the one before goes on: " + cause.Error(), Actor: actor, Data: data,
	})
	if err != nil {
		p.log.ErrorContext(ctx, "the event could not be recorded", "kind", "config.refused", "error", err)
	}
}

// record puts an event into the ledger, now.
func (p *plane) record(ctx context.Context, e kiln.Event) error {
	e.At = time.Now().UTC()
	return p.durable().Commit(ctx, kiln.Record{Events: []kiln.Event{e}})
}

// noteLogin puts a login that failed into the ledger.
func (p *plane) noteLogin(e kiln.Event) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := p.record(ctx, e); err != nil {
		p.log.ErrorContext(ctx, "the event could not be recorded", "kind", e.Kind, "error", err)
	}
}

// reloadOnSignal reloads at each SIGHUP until ctx ends.
func (p *plane) reloadOnSignal(ctx context.Context, again <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again:
			_, _ = p.reload(ctx, "SIGHUP") // log and ledger say how it ended
		}
	}
}

// fingerprinted are certificates that clients can pin.
type fingerprinted interface {
	server.Certificates
	Fingerprint() string
}

// certificates are what the API over TCP is known by; nil when there is none.
func (p *plane) certificates(api config.API) (fingerprinted, error) {
	switch {
	case len(api.Listen) == 0:
		return nil, nil
	case api.Cert != "":
		load := func() (tls.Certificate, error) { return config.Certificate(api.Cert, api.Key) }
		return server.NewFileCertificate([]string{api.Cert, api.Key}, load, p.log)
	default:
		names := slices.Clone(api.Names)
		for _, address := range api.Listen {
			if host, _, err := net.SplitHostPort(address); err == nil && host != "" && !net.ParseIP(host).IsUnspecified() {
				names = append(names, host)
			}
		}
		return server.OpenAuthority(p.dir("api"), names)
	}
}

// view is what GET /v1/config answers.
func (p *plane) view() server.Settings {
	p.reloading.Lock()
	certs := p.certs
	p.reloading.Unlock()
	fingerprint := ""
	if certs != nil {
		fingerprint = certs.Fingerprint()
	}
	return p.settings.Load().view(p.remote.Addresses(), fingerprint)
}

// openRemote opens the API over TCP as the configuration says, and notes in
// the ledger which one the control plane begins with. An address that cannot be
// had keeps nothing else from working: it is told, and kiln reload tries it
// again.
func (p *plane) openRemote(ctx context.Context) error {
	s := p.settings.Load()
	p.access.SetTokens(s.file.Tokens)
	if s.file.Path != "" {
		err := p.record(ctx, kiln.Event{
			Kind: "config.loaded", Subject: "kilnd", Message: "the control plane began with configuration " + s.file.Path, Actor: "kilnd",
			Data: map[string]string{"file": s.file.Path, "sha256": s.file.Digest.Hex()},
		})
		if err != nil { // a damaged ledger keeps nobody out
			p.log.ErrorContext(ctx, "the event could not be recorded", "kind", "config.loaded", "error", err)
		}
	}
	certs, err := p.certificates(s.file.API)
	if err != nil {
		return err
	}
	move, err := p.remote.Prepare(ctx, s.file.API.Listen, certs)
	if err != nil {
		p.log.ErrorContext(ctx, "the API is not served over TCP; kiln reload tries it again", "error", err)
		if err := p.record(ctx, kiln.Event{Kind: "api.closed", Subject: "kilnd", Message: "the API is not served over TCP: " + err.Error()}); err != nil {
			p.log.ErrorContext(ctx, "the event could not be recorded", "kind", "api.closed", "error", err)
		}
		return nil
	}
	move.Take()
	if p.certs = certs; certs != nil {
		p.log.InfoContext(ctx, "the API is known by its certificate", "fingerprint", certs.Fingerprint())
	}
	return nil
}
