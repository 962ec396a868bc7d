package control

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/plan"
	"github.com/kilnproject/kiln/internal/rollout"
)

// Up makes an environment what a tree says: it bakes, makes a release, and
// rolls it out. When ctx ends before the rollout is journalled nothing
// happened; after that the rollout goes on by itself. emit is called from
// several goroutines and not after Up returned.
func (c *Control) Up(ctx context.Context, r UpRequest, emit func(kiln.Progress)) (out UpResult, err error) {
	ctx, end := c.begins(ctx, workUp, "environment", r.Environment, "revision", r.Source.Commit, "branch", r.Source.Branch)
	defer func() { end(err, "environment", out.Environment, "release", number(out.Release.Number)) }()
	return c.up(ctx, r, emit)
}

func (c *Control) up(ctx context.Context, r UpRequest, emit func(kiln.Progress)) (UpResult, error) {
	if err := c.changeable(ctx); err != nil {
		return UpResult{}, err
	}
	began := c.now()
	feed := newFeed(emit)
	defer feed.close()
	def, err := c.load(ctx, r)
	if err != nil {
		return UpResult{}, err
	}
	name := def.Environment.Name
	if err := releasable(def, r.Source); err != nil {
		return UpResult{}, err
	}
	h, err := c.hold(ctx, name, "kiln up", r.Actor, feed)
	if err != nil {
		return UpResult{}, err
	}
	out := UpResult{Environment: name, Warnings: def.Warnings, URLs: []string{}, Phases: map[string]time.Duration{}}
	defer c.grew()
	c.gate.RLock() // what is baked stays until a release needs it
	defer c.gate.RUnlock()
	started := false
	defer func() {
		if !started {
			c.release(name, h)
		}
	}()
	file := def.Lock
	if out.Overlay, err = c.overlaid(ctx, &def); err != nil {
		return out, err
	}
	release, err := c.prepare(ctx, r, def, &out, feed)
	if err == nil {
		err = c.outgrown(ctx, name, r.Actor, file)
	}
	if err != nil || out.Nothing {
		out.Took = c.now().Sub(began)
		return out, err
	}
	d, err := c.begin(ctx, name, release, h, r.Actor, feed)
	if err != nil {
		return out, err
	}
	started = true
	err = c.roll(ctx, d, &out)
	out.Took = c.now().Sub(began)
	return out, err
}

// roll waits for a rollout that was begun, and says how it went.
func (c *Control) roll(ctx context.Context, d *drive, out *UpResult) error {
	out.Release = d.rollout.To
	err := c.watch(ctx, d)
	for _, m := range d.trail() {
		out.Phases[phase(m.Step)] += m.Took
	}
	if err != nil {
		return err
	}
	out.Release.State = kiln.ReleaseLive
	out.URLs = c.urls(out.Release)
	return nil
}

// Bake bakes every image of a definition and stores its bundle, and makes no
// release.
func (c *Control) Bake(ctx context.Context, r UpRequest, emit func(kiln.Progress)) (out BakeResult, err error) {
	ctx, end := c.begins(ctx, workBakeOnly, "environment", r.Environment, "revision", r.Source.Commit, "branch", r.Source.Branch)
	defer func() { end(err) }()
	if err := c.changeable(ctx); err != nil {
		return BakeResult{}, err
	}
	feed := newFeed(emit)
	defer feed.close()
	def, err := c.load(ctx, r)
	if err != nil {
		return BakeResult{}, err
	}
	overlay, err := c.overlaid(ctx, &def)
	if err != nil {
		return BakeResult{}, err
	}
	defer c.grew()
	c.gate.RLock()
	defer c.gate.RUnlock()
	baked, err := c.bake(ctx, r, def, feed)
	if err != nil {
		return BakeResult{}, err
	}
	verdicts, bundle, err := c.prove(ctx, r, def, baked, feed)
	if err != nil {
		return BakeResult{}, err
	}
	err = c.ledger.Commit(ctx, kiln.Record{Events: []kiln.Event{{
		At: c.now().UTC(), Environment: def.Environment.Name, Kind: "bundle.baked", Subject: bundle.Short(),
		Message: "bundle " + bundle.Short() + " was baked and not released", Actor: r.Actor, Data: map[string]string{"bundle": string(bundle)},
	}}})
	if err != nil {
		return BakeResult{}, fmt.Errorf("record the bake: %w", err)
	}
	return BakeResult{Images: baked.Images, Verdicts: verdicts, Bundle: bundle, Lock: baked.Lock, Overlay: overlay}, nil
}

// Plan says what Up would do; it changes nothing.
func (c *Control) Plan(ctx context.Context, r UpRequest) (PlanResult, error) {
	if err := c.ready(ctx); err != nil {
		return PlanResult{}, err
	}
	def, err := c.load(ctx, r)
	if err != nil {
		return PlanResult{}, err
	}
	overlay, err := c.overlaid(ctx, &def)
	if err != nil {
		return PlanResult{}, err
	}
	request := kiln.BakeRequest{Images: def.Spec.Images, Tree: r.Tree, Lock: def.Lock, Locked: r.Locked}
	known, missing, err := c.baker.Lookup(ctx, request)
	if err != nil {
		return PlanResult{}, fmt.Errorf("look up what was baked: %w", err)
	}
	name := def.Environment.Name
	live, err := c.live(ctx, name)
	if err != nil {
		return PlanResult{}, err
	}
	out := PlanResult{Environment: name, Overlay: overlay}
	if out.Verdicts, err = c.judge(ctx, r, def, known); err != nil {
		return PlanResult{}, err
	}
	for _, image := range slices.Sorted(maps.Keys(missing)) {
		out.Bakes = append(out.Bakes, PlannedBake{Image: image, Reason: missing[image]})
	}
	desired := kiln.Release{Environment: name, Services: services(def.Spec, known), Routes: def.Spec.Routes}
	out.Steps = plan.Steps(name, live, desired, missingServices(def.Spec, missing))
	out.Routes = plan.Routes(live, desired.Routes)
	if live != nil {
		out.Live = live.Number
	}
	out.Images = c.preview(ctx, live, bundleOf(r.Tree, def.Spec, kiln.BakeResult{Images: known}))
	return out, c.foresee(ctx, r, def, live, desired, known, len(missing) == 0, &out)
}

// load reads the definition from a request's tree.
func (c *Control) load(ctx context.Context, r UpRequest) (def Definition, err error) {
	_, end := c.begins(ctx, workParse)
	defer func() { end(err, "environment", def.Environment.Name) }()
	def, err = c.loader.Load(c.store.TreeFS(r.Tree), LoadOptions{Environment: r.Environment, Branch: r.Source.Branch, Values: r.Values})
	if err != nil {
		return Definition{}, fmt.Errorf("load the definition: %w", err)
	}
	return def, within(r.Reach, def.Environment.Name)
}

// releasable refuses what no release may be made from.
func releasable(def Definition, s kiln.Source) error {
	if len(def.Spec.Services) == 0 {
		return kiln.Errorf(kiln.CodeInvalid, "kiln bake bakes images alone; kiln down "+def.Environment.Name+" ends what runs",
			"the definition has no service: its release would run nothing")
	}
	return bound(def.Environment, s)
}

// bound refuses what an environment that follows a branch must not get.
func bound(e kiln.Environment, s kiln.Source) error {
	if e.Branch == "" && len(e.Branches) == 0 {
		return nil
	}
	if s.Dirty {
		return kiln.Errorf(kiln.CodeRefused, "commit first: git commit -a",
			"environment %s follows a branch, and the tree has changes that are not committed", e.Name)
	}
	patterns := e.Branches
	if e.Branch != "" {
		patterns = append(slices.Clone(patterns), e.Branch)
	}
	for _, p := range patterns {
		if matched, err := path.Match(p, s.Branch); p == s.Branch || (err == nil && matched && p != e.Branch) {
			return nil
		}
	}
	on := "branch " + s.Branch
	if s.Branch == "" {
		on = "no branch"
	}
	return kiln.Errorf(kiln.CodeRefused, "switch to it: git switch "+patterns[len(patterns)-1],
		"environment %s follows %s, and the tree is on %s", e.Name, quoteList(patterns), on)
}

// prepare bakes and describes the release; out.Nothing is set when the live
// one is the same.
func (c *Control) prepare(ctx context.Context, r UpRequest, def Definition, out *UpResult, feed *feed) (kiln.Release, error) {
	name := def.Environment.Name
	if err := c.claim(name, def.Spec.Routes); err != nil {
		return kiln.Release{}, err
	}
	live, err := c.live(ctx, name)
	if err != nil {
		return kiln.Release{}, err
	}
	if err := stranger(live, def.Spec); err != nil {
		return kiln.Release{}, err
	}
	began := c.now()
	baked, err := c.bake(ctx, r, def, feed)
	if err != nil {
		return kiln.Release{}, err
	}
	out.Phases["bake"] = c.now().Sub(began)
	out.Images, out.Lock = baked.Images, baked.Lock
	proved, err := c.proveAndPrepare(ctx, r, def, baked, feed, out.Phases)
	if err != nil {
		return kiln.Release{}, err
	}
	out.Verdicts = proved.verdicts
	release := kiln.Release{
		Environment: name, Bundle: proved.bundle, Source: r.Source, CreatedAt: c.now().UTC(), Actor: r.Actor,
		Values: def.Values, Services: services(def.Spec, baked.Images), Routes: def.Spec.Routes, State: kiln.ReleasePending,
		TTL: def.Environment.TTL,
	}
	releases, err := c.ledger.Releases(ctx, name)
	if err != nil {
		return kiln.Release{}, fmt.Errorf("list the releases of %s: %w", name, err)
	}
	identity := release.Identity()
	if err := c.keepOrigin(ctx, release, kiln.Origin{Tree: r.Tree, Lock: baked.Lock}, releases); err != nil {
		return kiln.Release{}, err
	}
	if live != nil && live.Identity() == identity {
		out.Nothing, out.Release, out.URLs = true, *live, c.urls(*live)
		return *live, nil
	}
	if err := condemned(releases, identity, r.Again); err != nil {
		return kiln.Release{}, err
	}
	out.Steps = plan.Steps(name, live, release, nil)
	return release, nil
}

// stranger refuses a definition that has no service in common with the live
// release: two projects that declare no environment would otherwise end each
// other by an everyday command.
func stranger(live *kiln.Release, s kiln.Spec) error {
	if live == nil || len(live.Services) == 0 {
		return nil
	}
	var names []string
	for _, have := range live.Services {
		name := have.Template.Service
		if slices.ContainsFunc(s.Services, func(one kiln.Service) bool { return one.Name == name }) {
			return nil
		}
		names = append(names, name)
	}
	return kiln.Errorf(kiln.CodeRefused,
		fmt.Sprintf("to run beside it, give this definition an environment of its own: environment \"NAME\" {}; to end what runs: kiln down %s", live.Environment),
		"environment %s runs another project (release %d: %s), and this definition has none of its services", live.Environment, live.Number, strings.Join(names, ", "))
}

// condemned refuses what was rolled back, unless a person says so.
func condemned(releases []kiln.Release, identity kiln.Digest, again bool) error {
	for _, r := range slices.Backward(releases) {
		if r.Identity() != identity {
			continue
		}
		if r.State != kiln.ReleaseCondemned || again {
			return nil
		}
		return kiln.Errorf(kiln.CodeRefused, "kiln up --again applies it once more",
			"release %d of %s is the same and is condemned: it was rolled back", r.Number, r.Environment)
	}
	return nil
}

// bake makes the images.
func (c *Control) bake(ctx context.Context, r UpRequest, def Definition, feed *feed) (kiln.BakeResult, error) {
	within, end := c.begins(ctx, workBake, "environment", def.Environment.Name)
	baked, err := c.baker.Bake(within, kiln.BakeRequest{
		Images: def.Spec.Images, Tree: r.Tree, Lock: def.Lock, Locked: r.Locked, Progress: feed.send,
	})
	end(err)
	if err != nil {
		return kiln.BakeResult{}, fmt.Errorf("bake: %w", err)
	}
	return baked, nil
}

// live is an environment's live release; nil for none.
func (c *Control) live(ctx context.Context, name string) (*kiln.Release, error) {
	releases, err := c.ledger.Releases(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("list the releases of %s: %w", name, err)
	}
	return findState(releases, kiln.ReleaseLive), nil
}

// findState is the newest release in a state; nil for none.
func findState(releases []kiln.Release, state kiln.ReleaseState) *kiln.Release {
	for i := len(releases) - 1; i >= 0; i-- {
		if releases[i].State == state {
			r := releases[i]
			return &r
		}
	}
	return nil
}

// phase is the name of a step's time in a result.
func phase(s rollout.Step) string {
	switch s {
	case rollout.Admit, rollout.Evict, rollout.Vacate:
		return "seal"
	case rollout.Start, rollout.Ready:
		return "start"
	case rollout.Verify:
		return "verify"
	case rollout.Switch, rollout.Workers, rollout.Settle:
		return "switch"
	case rollout.Drain, rollout.Retire, rollout.Done:
		return "park"
	case rollout.UndoRoute, rollout.UndoDrain, rollout.Undo, rollout.Failed:
	}
	return "undo"
}
