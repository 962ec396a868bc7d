package main

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/advisory"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/durable"
	"github.com/kilnproject/kiln/internal/scan"
	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/internal/sign"
)

// maxImport bounds a file that is imported, in bytes.
const maxImport = 8 << 30

// database is what is known of vulnerabilities, as the API has it. Each change
// is an event.
type database struct {
	db     *advisory.DB
	dir    string // for files while they are imported
	record func(ctx context.Context, e kiln.Event) error

	changing sync.Mutex // one change at a time: each needs room

	mu       sync.Mutex
	failed   string // why the last update did not work
	failedAt time.Time
}

func (d *database) Status() control.Advisories {
	s := d.db.Status()
	out := control.Advisories{Digest: s.Digest, Dated: s.Dated, Ecosystems: []control.AdvisoryEcosystem{}}
	for _, e := range s.Ecosystems {
		out.Ecosystems = append(out.Ecosystems, control.AdvisoryEcosystem{Name: e.Name, Digest: e.Digest, Records: e.Records, Withdrawn: e.Withdrawn, Dated: e.Dated, From: e.From})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	out.Failed, out.FailedAt = d.failed, d.failedAt
	return out
}

// Update gets newer advisories. That it failed is remembered until a change
// works.
func (d *database) Update(ctx context.Context, actor string, r server.DatabaseUpdate, progress func(kiln.Progress)) (control.Advisories, error) {
	release, err := d.begin()
	if err != nil {
		return control.Advisories{}, err
	}
	defer release()
	names := r.Ecosystems
	if len(names) == 0 {
		for _, e := range d.db.Status().Ecosystems {
			names = append(names, e.Name)
		}
	}
	if len(names) == 0 {
		return control.Advisories{}, kiln.Errorf(kiln.CodeInvalid, "name those that your images have packages of: kiln db update Go Debian npm", "the database has no ecosystem yet; there are: %s", strings.Join(advisory.Ecosystems(), ", "))
	}
	step := kiln.Progress{Stage: "database", Subject: strings.Join(names, ", "), Step: "getting what is newer, and checking every record"}
	progress(step)
	began := time.Now()
	err = d.db.Update(ctx, advisory.Server{URL: strings.TrimSuffix(r.Server, "/")}, names)
	if err != nil && ctx.Err() == nil {
		d.note(err)
		event := kiln.Event{Kind: "database.update_failed", Subject: "database", Actor: actor, Message: "the advisories were not updated: " + err.Error()}
		return control.Advisories{}, errors.Join(err, d.record(context.WithoutCancel(ctx), event))
	}
	if err != nil {
		return control.Advisories{}, err
	}
	step.Done, step.Took = true, time.Since(began)
	progress(step)
	return d.changed(ctx, actor, "updated", "the advisories were updated: "+strings.Join(names, ", "), "")
}

// Import imports a file that comes: nothing of it is in the folder of the
// database before all of it is here.
func (d *database) Import(ctx context.Context, actor string, r server.DatabaseImport, from io.Reader, progress func(kiln.Progress)) (control.Advisories, error) {
	key, err := publicKey(r.Key)
	if err != nil {
		return control.Advisories{}, err
	}
	release, err := d.begin()
	if err != nil {
		return control.Advisories{}, err
	}
	defer release()
	file, size, err := d.spool(from)
	if err != nil {
		return control.Advisories{}, err
	}
	defer func() { _ = file.Close() }() // it has no name any more
	step := kiln.Progress{Stage: "database", Subject: r.Ecosystem, Step: "checking every record"}
	if key != nil {
		step.Subject = "bundle"
	}
	progress(step)
	began := time.Now()
	what := "a signed bundle was imported"
	if key != nil {
		err = d.db.ImportBundle(ctx, file, size, key)
	} else {
		what = "advisories for " + r.Ecosystem + " were imported from a file that nobody signed"
		err = d.db.Import(ctx, []advisory.Source{{Ecosystem: r.Ecosystem, Zip: file, Size: size, From: "file", Dated: advisory.DatedBy(file, size, time.Now())}})
	}
	if err != nil {
		return control.Advisories{}, err
	}
	step.Done, step.Took = true, time.Since(began)
	progress(step)
	return d.changed(ctx, actor, "imported", what, r.Ecosystem)
}

func (d *database) begin() (release func(), err error) {
	if !d.changing.TryLock() {
		return nil, kiln.Errorf(kiln.CodeConflict, "try again when it is done", "the advisories are being changed already")
	}
	return d.changing.Unlock, nil
}

func (d *database) note(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed, d.failedAt = "", time.Time{}
	if err != nil {
		d.failed, d.failedAt = err.Error(), time.Now().UTC()
	}
}

// changed records a change that was made.
func (d *database) changed(ctx context.Context, actor, how, what, ecosystem string) (control.Advisories, error) {
	d.note(nil)
	now := d.Status()
	e := kiln.Event{
		Kind: "database." + how, Subject: "database", Actor: actor, Message: what + "; the database is " + string(now.Digest),
		Data: map[string]string{"digest": string(now.Digest)},
	}
	if ecosystem != "" {
		e.Data["ecosystem"] = ecosystem
	}
	if err := d.record(context.WithoutCancel(ctx), e); err != nil {
		return now, fmt.Errorf("record the change of the advisories: %w", err)
	}
	return now, nil
}

// spool keeps a file that comes under no name, so that nothing is left of one
// that breaks off.
func (d *database) spool(from io.Reader) (*os.File, int64, error) {
	file, err := os.CreateTemp(d.dir, durable.Unfinished+"import-")
	if err == nil {
		err = os.Remove(file.Name())
	}
	if err != nil {
		return nil, 0, fmt.Errorf("take the file: %w", err)
	}
	n, err := io.Copy(file, io.LimitReader(from, maxImport+1))
	switch {
	case err == nil && n > maxImport:
		err = kiln.Errorf(kiln.CodeInvalid, "import the ecosystems one by one", "the file has more than %d bytes", int64(maxImport))
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		err = kiln.Errorf(kiln.CodeNoRoom, "free some space on the disk of the data directory", "the file does not fit: %w", err)
	case err != nil:
		err = kiln.Errorf(kiln.CodeInvalid, "run the command again", "the file broke off: %w", err)
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, n, nil
}

// publicKey reads the key of a bundle; nil for none.
func publicKey(text string) (*ecdsa.PublicKey, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // there need be none
	}
	key, err := sign.ParsePublic([]byte(text))
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "openssl pkey -in KEY -pubout makes it", "read the key of the bundle: %w", err)
	}
	return key, nil
}

// describe writes what is in an image for others.
func describe(d control.Described, format string) (json.RawMessage, error) {
	about := scan.About{Name: d.Name, Version: version}
	if format == server.FormatSPDX {
		return scan.SPDX(d.Inventory, about)
	}
	return scan.CycloneDX(d.Inventory, about)
}
