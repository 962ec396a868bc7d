package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/plan"
)

// Repave bakes environments again from what their bases are now, and rolls out
// what that changed, one environment after the other. It goes on where one
// fails; with a single environment its error is Repave's.
func (c *Control) Repave(ctx context.Context, r RepaveRequest, emit func(kiln.Progress)) (out RepaveResult, err error) {
	ctx, end := c.begins(ctx, workRepave)
	defer func() { end(err) }()
	out.Environments = []Repaved{}
	if err := c.changeable(ctx); err != nil {
		return out, err
	}
	names, err := c.repaved(ctx, r)
	if err != nil {
		return out, err
	}
	feed := newFeed(emit)
	defer feed.close()
	for _, name := range names {
		one, err := c.repaveOne(ctx, repave{environment: name, finding: r.Finding, plan: r.Plan, actor: r.Actor, reach: r.Reach}, feed)
		if err != nil {
			if len(names) == 1 || ctx.Err() != nil {
				return out, err
			}
			one.Outcome, one.Error = RepaveFailed, asError(err)
		}
		out.Environments = append(out.Environments, one)
	}
	return out, nil
}

// repaved are the environments that a request is about.
func (c *Control) repaved(ctx context.Context, r RepaveRequest) ([]string, error) {
	names := slices.Clone(r.Environments)
	for _, name := range names {
		if err := within(r.Reach, name); err != nil {
			return nil, err
		}
		if _, err := c.Release(ctx, name, 0); err != nil {
			return nil, err
		}
	}
	if len(names) == 0 {
		for _, name := range c.names() {
			if live, err := c.live(ctx, name); err != nil {
				return nil, err
			} else if live != nil && r.Reach.Covers(name) {
				names = append(names, name)
			}
		}
	}
	if len(names) == 0 {
		return nil, kiln.Errorf(kiln.CodeNotFound, "kiln up makes one", "there is no environment with a live release")
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if r.Finding == "" {
		return names, nil
	}
	return c.having(ctx, r.Finding, names)
}

// having are the environments of which an image that runs has a finding.
func (c *Control) having(ctx context.Context, finding string, names []string) ([]string, error) {
	if c.prover == nil {
		return nil, kiln.Errorf(kiln.CodeRefused, "", "nothing is judged here, so that nothing is known of findings")
	}
	var out []string
	for _, name := range names {
		live, err := c.live(ctx, name)
		if err != nil || live == nil {
			return nil, err
		}
		now, err := c.outlook(ctx, *live)
		if err != nil {
			return nil, err
		}
		if now.has(finding) {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return nil, kiln.Errorf(kiln.CodeNotFound, "kiln status shows what was found, and kiln db status how new the database is",
			"no image that runs in %s has the finding %s", strings.Join(names, ", "), finding)
	}
	return out, nil
}

// repave is one environment's.
type repave struct {
	environment string
	finding     string
	plan        bool
	alone       bool // nobody asked for it
	actor       string
	reach       kiln.Reach
}

// fresh is a repave whose pins were resolved anew.
type fresh struct {
	request UpRequest
	def     Definition // its lock is the new one
	live    kiln.Release
	file    kiln.Lock // of kiln.lock
	used    kiln.Lock // that the live release was baked with
	pins    []pin     // that moved
}

func (c *Control) repaveOne(ctx context.Context, r repave, feed *feed) (out Repaved, err error) {
	began := c.now()
	out = Repaved{Environment: r.environment}
	defer func() { out.Took = c.now().Sub(began) }()
	if r.plan {
		f, err := c.refresh(ctx, r, feed, &out)
		if err != nil || out.Outcome != "" {
			return out, err
		}
		return out, c.planRepave(ctx, f, &out)
	}
	h, err := c.hold(ctx, r.environment, "kiln repave", r.actor, feed)
	if err != nil {
		return out, err
	}
	defer c.grew()
	c.gate.RLock() // what is baked stays until a release needs it
	defer c.gate.RUnlock()
	started := false
	defer func() {
		if !started {
			c.release(r.environment, h)
		}
	}()
	f, err := c.refresh(ctx, r, feed, &out)
	if err != nil || out.Outcome != "" {
		return out, err
	}
	release, err := c.bakeAgain(ctx, r, f, feed, &out)
	if err != nil || out.Outcome != "" {
		return out, err
	}
	d, err := c.begin(ctx, r.environment, release, h, r.actor, feed)
	if err != nil {
		return out, err
	}
	started = true
	out.Release = d.rollout.To.Number
	if err := c.watch(ctx, d); err != nil {
		return out, err
	}
	out.Outcome, out.URLs = RepaveDone, c.urls(d.rollout.To)
	return out, c.tellRepaved(ctx, r, out)
}

// refresh resolves anew what the live release was baked from. The outcome is
// set when there is nothing newer.
func (c *Control) refresh(ctx context.Context, r repave, feed *feed, out *Repaved) (fresh, error) {
	live, err := c.Release(ctx, r.environment, 0)
	if err != nil {
		return fresh{}, err
	}
	out.From = live.Number
	origin, err := c.originOf(ctx, live)
	if err != nil {
		return fresh{}, err
	}
	f := fresh{live: live, used: origin.Lock, request: UpRequest{
		Environment: r.environment, Tree: origin.Tree, Source: live.Source, Values: live.Values, Actor: r.actor, Reach: r.reach,
		Again: true, // useless says what was rolled back
	}}
	if f.def, err = c.load(ctx, f.request); err != nil {
		return f, err
	}
	f.file = f.def.Lock
	f.def.Lock, err = c.baker.Refresh(ctx, kiln.BakeRequest{Images: f.def.Spec.Images, Tree: origin.Tree, Lock: origin.Lock, Progress: feed.send})
	if err != nil {
		return f, fmt.Errorf("resolve anew what release %d was baked from: %w", live.Number, err)
	}
	f.pins = moved(f.used, f.def.Lock)
	for _, p := range f.pins {
		out.Pins = append(out.Pins, movement(f.used, p))
	}
	if len(f.pins) == 0 {
		out.Outcome, out.Reason = RepaveNothing, "there is nothing newer than what it was baked from"
	}
	return f, nil
}

// planRepave says what would be baked and replaced.
func (c *Control) planRepave(ctx context.Context, f fresh, out *Repaved) error {
	known, missing, err := c.baker.Lookup(ctx, kiln.BakeRequest{Images: f.def.Spec.Images, Tree: f.request.Tree, Lock: f.def.Lock})
	if err != nil {
		return fmt.Errorf("look up what was baked: %w", err)
	}
	for _, image := range slices.Sorted(maps.Keys(missing)) {
		out.Bakes = append(out.Bakes, PlannedBake{Image: image, Reason: missing[image]})
	}
	desired := kiln.Release{Environment: out.Environment, Services: services(f.def.Spec, known), Routes: f.def.Spec.Routes}
	out.Steps = plan.Steps(out.Environment, &f.live, desired, missingServices(f.def.Spec, missing))
	out.Outcome = RepavePlanned
	return nil
}

// bakeAgain bakes and judges, and keeps the new pins. The outcome is set when
// there is nothing to roll out.
func (c *Control) bakeAgain(ctx context.Context, r repave, f fresh, feed *feed, out *Repaved) (kiln.Release, error) {
	up := UpResult{Phases: map[string]time.Duration{}}
	before, err := c.outlook(ctx, f.live)
	if err != nil {
		return kiln.Release{}, err
	}
	release, err := c.prepare(ctx, f.request, f.def, &up, feed)
	if err != nil {
		return release, err
	}
	if up.Nothing {
		out.Outcome, out.Reason = RepaveNothing, "with the newer bases the images are the same"
		return release, nil
	}
	out.Steps = up.Steps
	after := outlookOf(f.def.Spec, up.Verdicts)
	if c.prover != nil {
		b, a := before.count(), after.count()
		out.Before, out.After = &b, &a
	}
	releases, err := c.ledger.Releases(ctx, r.environment)
	if err != nil {
		return release, fmt.Errorf("list the releases of %s: %w", r.environment, err)
	}
	if out.Reason = r.useless(release, releases, before, after); out.Reason != "" {
		out.Outcome = RepaveKept
		return release, nil
	}
	return release, c.layOver(ctx, r, f, release, out)
}

// useless says why a new release would not help; "" when it may.
func (r repave) useless(release kiln.Release, releases []kiln.Release, before, after outlook) string {
	switch {
	case r.finding != "" && after.has(r.finding):
		return "baked from the newest bases it still has " + r.finding
	case undone(releases, release.Identity(), kiln.ReleaseCondemned):
		return "baked from the newest bases it is what was rolled back"
	case r.alone && undone(releases, release.Identity(), kiln.ReleaseFailed):
		return "baked from the newest bases it is what did not go live"
	case r.alone && after.count().Failing >= before.count().Failing:
		return fmt.Sprintf("baked from the newest bases it has as many findings that fail: %d, and %d before", after.count().Failing, before.count().Failing)
	}
	return ""
}

// layOver keeps the new pins, so that the next commit does not bring the old
// ones back.
func (c *Control) layOver(ctx context.Context, r repave, f fresh, release kiln.Release, out *Repaved) error {
	o, err := c.overlay(ctx, r.environment)
	if errors.Is(err, errOverlay) {
		o, err = overlay{Environment: r.environment}, nil // this one replaces it
	}
	if err != nil {
		return err
	}
	record, err := c.overlayRecord(ctx, o.over(release.Identity(), f.file, f.used, f.pins), kiln.Event{
		At: c.now().UTC(), Environment: r.environment, Kind: "lock.overlaid", Subject: r.environment, Actor: r.actor,
		Message: "a repave pins anew, until kiln.lock does: " + listed(out.Pins),
	})
	if err != nil {
		return err
	}
	if err := c.ledger.Commit(ctx, record); err != nil {
		return fmt.Errorf("record the pins of the repave: %w", err)
	}
	return nil
}

func (c *Control) tellRepaved(ctx context.Context, r repave, out Repaved) error {
	message := fmt.Sprintf("release %d was baked from newer bases than %d", out.Release, out.From)
	data := map[string]string{"pins": listed(out.Pins)}
	if out.Before != nil {
		message += fmt.Sprintf(": %d findings that fail, %d before", out.After.Failing, out.Before.Failing)
		data["open"], data["open_before"] = fmt.Sprint(out.After.Open), fmt.Sprint(out.Before.Open)
	}
	return c.ledger.Commit(ctx, kiln.Record{Events: []kiln.Event{{
		At: c.now().UTC(), Environment: r.environment, Kind: "repave.done", Subject: subject(out.Release), Message: message, Actor: r.actor, Data: data,
	}}})
}

// outlook is the vulnerabilities of a release's images that count.
type outlook []kiln.Finding

// outlook is what the advisories say now of the images of a release.
func (c *Control) outlook(ctx context.Context, r kiln.Release) (outlook, error) {
	if c.prover == nil {
		return nil, nil
	}
	subjects := map[kiln.Digest]judged{}
	def, vex, err := c.definitionOf(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, s := range r.Services {
		j := judged{image: s.Template.Image, gate: gateOf(def.Spec, s.Template.Service), vex: vex}
		subjects[j.key()] = j
	}
	answers, err := c.rejudge(ctx, subjects)
	if err != nil {
		return nil, err
	}
	var out outlook
	for _, a := range answers {
		out = out.with(a.verdict)
	}
	return out, nil
}

// outlookOf is the same of the verdicts about what services run from.
func outlookOf(s kiln.Spec, verdicts map[string]kiln.Verdict) outlook {
	var out outlook
	for _, image := range s.Images {
		if slices.ContainsFunc(s.Services, func(one kiln.Service) bool { return one.Image == image.Name }) {
			out = out.with(verdicts[image.Name])
		}
	}
	return out
}

func (o outlook) with(v kiln.Verdict) outlook {
	for _, f := range v.Findings {
		if f.Kind == kiln.FindingVulnerability && f.State == kiln.FindingOpen {
			o = append(o, f)
		}
	}
	return o
}

func (o outlook) has(id string) bool {
	return slices.ContainsFunc(o, func(f kiln.Finding) bool {
		return strings.EqualFold(f.ID, id) || slices.ContainsFunc(f.Aliases, func(alias string) bool { return strings.EqualFold(alias, id) })
	})
}

func (o outlook) count() FindingCount {
	open, fails := map[string]bool{}, map[string]bool{}
	for _, f := range o {
		open[f.ID] = true
		if f.Fails {
			fails[f.ID] = true
		}
	}
	return FindingCount{Failing: len(fails), Open: len(open)}
}
