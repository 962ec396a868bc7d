package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/gate"
)

// proved is what prove returns.
type proved struct {
	verdicts map[string]kiln.Verdict
	bundle   kiln.Digest
}

// proveAndPrepare proves while the engine prepares what it can of the same
// images, which takes as long.
func (c *Control) proveAndPrepare(ctx context.Context, r UpRequest, def Definition, baked kiln.BakeResult, feed *feed, phases map[string]time.Duration) (p proved, err error) {
	within, stop := context.WithCancel(ctx)
	defer stop()
	prepared := make(chan struct{})
	go func() {
		defer close(prepared)
		c.prepareEngine(within, services(def.Spec, baked.Images))
	}()
	began := c.now()
	if p.verdicts, p.bundle, err = c.prove(ctx, r, def, baked, feed); err != nil {
		stop() // nothing of it will run
	}
	phases["prove"] = c.now().Sub(began)
	began = c.now()
	<-prepared
	phases["seal"] = c.now().Sub(began)
	return p, err
}

// prepareEngine has the engine do now what it would do when it admits.
func (c *Control) prepareEngine(ctx context.Context, services []kiln.ReleaseService) {
	if c.preparer == nil {
		return
	}
	templates := make([]kiln.Template, 0, len(services))
	for _, s := range services {
		templates = append(templates, s.Template)
	}
	if err := c.preparer.Prepare(ctx, templates); err != nil {
		c.log.DebugContext(ctx, "left to be done when it is admitted", "error", err)
	}
}

// prove judges and signs what was baked, and stores the bundle. Without a
// passing verdict for each image there is no bundle.
func (c *Control) prove(ctx context.Context, r UpRequest, def Definition, baked kiln.BakeResult, feed *feed) (map[string]kiln.Verdict, kiln.Digest, error) {
	whole := bundleOf(r.Tree, def.Spec, baked)
	request, err := c.proveRequest(r, def, baked, whole)
	if err != nil {
		return nil, "", err
	}
	request.Progress = feed.send
	var verdicts map[string]kiln.Verdict
	if c.prover != nil {
		within, end := c.begins(ctx, workProve, "environment", def.Environment.Name)
		verdicts, err = c.prover.Prove(within, request)
		if err == nil {
			err = refusal(verdicts)
		}
		end(err)
		if err != nil {
			return nil, "", errors.Join(err, c.tellVerdicts(ctx, def.Environment.Name, r.Actor, verdicts))
		}
	}
	bundle, err := c.putBundle(ctx, r, def, whole)
	if err == nil && c.prover != nil {
		if err = c.prover.SignBundle(ctx, bundle, request); err != nil {
			err = fmt.Errorf("sign the bundle: %w", err)
		}
	}
	return verdicts, bundle, err
}

func (c *Control) putBundle(ctx context.Context, r UpRequest, def Definition, whole kiln.Bundle) (bundle kiln.Digest, err error) {
	annotations := map[string]string{}
	if r.Source.Commit != "" {
		annotations["org.opencontainers.image.revision"] = r.Source.Commit
	}
	within, end := c.begins(ctx, workBundle, "environment", def.Environment.Name)
	defer func() { end(err, "bundle", string(bundle)) }()
	if bundle, err = c.store.PutBundle(within, whole, annotations); err != nil {
		return "", fmt.Errorf("store the bundle: %w", err)
	}
	return bundle, nil
}

// judge says what the gates say of the images that are known.
func (c *Control) judge(ctx context.Context, r UpRequest, def Definition, known map[string]kiln.Baked) (map[string]kiln.Verdict, error) {
	if c.prover == nil {
		return nil, nil
	}
	foreseen := kiln.BakeResult{Images: known, Lock: def.Lock}
	request, err := c.proveRequest(r, def, foreseen, bundleOf(r.Tree, def.Spec, foreseen))
	if err != nil {
		return nil, err
	}
	return c.prover.Foresee(ctx, request)
}

func (c *Control) proveRequest(r UpRequest, def Definition, baked kiln.BakeResult, whole kiln.Bundle) (kiln.ProveRequest, error) {
	vex, err := vexOf(c.store.TreeFS(r.Tree), def.Spec)
	return kiln.ProveRequest{
		Images: def.Spec.Images, Services: def.Spec.Services, Baked: baked.Images, Lock: def.Lock, Resolved: baked.Lock, Source: r.Source, Definition: kiln.DigestJSON(whole.Files), VEX: vex,
	}, err
}

// vexOf reads the documents that a definition's gates name, by path.
func vexOf(tree fs.FS, s kiln.Spec) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, image := range s.Images {
		for _, path := range image.Gate.VEX {
			text, err := fs.ReadFile(tree, path)
			if err != nil {
				return nil, kiln.Errorf(kiln.CodeInvalid, "gate { vex = [...] } names files of the definition's folder", "read %s: %w", path, err)
			}
			out[path] = text
		}
	}
	return out, nil
}

// refusal is the error of verdicts of which one does not pass; nil when all do.
func refusal(verdicts map[string]kiln.Verdict) error {
	var failed []string
	var hint string
	var evidence []string
	code := kiln.CodeRefused
	for _, name := range slices.Sorted(maps.Keys(verdicts)) {
		v := verdicts[name]
		if v.Outcome == kiln.OutcomePass {
			continue
		}
		failed = append(failed, name)
		if hint == "" {
			hint = v.Hint
		}
		evidence = append(evidence, fmt.Sprintf("image %s (%s): %s", name, v.Image.Short(), gate.Summary(v)))
		evidence = append(evidence, v.Reasons...)
		evidence = append(evidence, gate.Table(decisive(v.Findings), false)...)
	}
	if len(failed) == 0 {
		return nil
	}
	if hint == "" {
		hint = `mend what the table says; gate { ignore "ID" { until = "DATE"  reason = "..." } } lets one pass for a while`
	}
	what := "image " + failed[0] + " does not pass its gate"
	if len(failed) > 1 {
		what = "images " + strings.Join(failed, ", ") + " do not pass their gates"
	}
	return &kiln.Error{Code: code, Message: what + "; nothing was changed", Hint: hint, Evidence: evidence}
}

// decisive are the findings because of which a gate fails; all when none is
// marked.
func decisive(all []kiln.Finding) []kiln.Finding {
	out := slices.DeleteFunc(slices.Clone(all), func(f kiln.Finding) bool { return !f.Fails })
	if len(out) == 0 {
		return all
	}
	return out
}

// tellVerdicts records what did not pass.
func (c *Control) tellVerdicts(ctx context.Context, environment, actor string, verdicts map[string]kiln.Verdict) error {
	var record kiln.Record
	for _, name := range slices.Sorted(maps.Keys(verdicts)) {
		v := verdicts[name]
		if v.Outcome == kiln.OutcomePass {
			continue
		}
		record.Events = append(record.Events, kiln.Event{
			At: c.now().UTC(), Environment: environment, Kind: "gate.refused", Subject: name, Actor: actor,
			Message: fmt.Sprintf("image %s (%s) does not pass its gate: %s", name, v.Image.Short(), gate.Summary(v)),
			Data:    map[string]string{"image": string(v.Image), "outcome": string(v.Outcome), "database": string(v.Database)},
		})
	}
	if len(record.Events) == 0 {
		return nil
	}
	return c.ledger.Commit(ctx, record)
}
