package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnproject/kiln"
)

const (
	// rescanEvery is how often what runs is judged again although the advisories
	// are the same: what a gate ignores, it ignores until a day.
	rescanEvery = time.Hour
	// rescanLook is how often the advisories are asked whether they are others.
	rescanLook = 15 * time.Second
	// rescanGap bounds how often changes of what runs lead to a rescan.
	rescanGap = time.Second
	// rescanAtOnce is how many images are judged at once.
	rescanAtOnce = 2
)

// Rescan asks that what runs be judged again soon: the advisories are others.
// The control plane finds that out by itself, a little later.
func (c *Control) Rescan() { signal(c.again) }

// rescan judges what runs again when the advisories or what runs changed, and
// once an hour. It touches no image: it goes by what was inventoried.
func (c *Control) rescan(ctx context.Context) {
	c.remembersFindings(ctx)
	var asked kiln.Digest
	var last time.Time
	for {
		database := c.prover.Database()
		err := c.rescanAll(ctx)
		if c.complain(ctx, "what runs could not be judged again", "", err); err == nil {
			asked, last = database, time.Now()
		}
		for err := pause(ctx, rescanGap); ; {
			if err != nil {
				return
			}
			called, ended := c.calledAgain(ctx)
			if ended {
				return
			}
			if called || c.prover.Database() != asked || time.Since(last) >= rescanEvery {
				break
			}
		}
	}
}

// calledAgain waits for a while, and says whether somebody asked meanwhile.
func (c *Control) calledAgain(ctx context.Context) (called, ended bool) {
	t := time.NewTimer(rescanLook)
	defer t.Stop()
	select {
	case <-c.again:
		return true, false
	case <-t.C:
		return false, false
	case <-ctx.Done():
		return false, true
	}
}

// subject of a judgement: an image with the gate that it must pass. The same
// ones of several releases are judged once.
type judged struct {
	image kiln.Digest
	gate  kiln.Gate
	vex   map[string][]byte
}

func (j judged) key() kiln.Digest {
	texts := map[string]kiln.Digest{}
	for _, path := range j.gate.VEX {
		texts[path] = kiln.DigestOf(j.vex[path])
	}
	return kiln.DigestJSON([]any{j.image, j.gate, texts})
}

// running is a service of a release that runs.
type running struct {
	service string
	live    bool
	judged  kiln.Digest // key; empty where the gate is not known
}

// scene is what runs in one environment.
type scene struct {
	environment string
	policy      kiln.Environment // of the live release's definition
	running     []running
	blind       bool // not all of it is known
}

// answer is what a rejudgement said.
type answer struct {
	verdict kiln.Verdict
	whole   bool
}

// rescanAll judges everything that runs in all environments, once.
func (c *Control) rescanAll(ctx context.Context) error {
	subjects := map[kiln.Digest]judged{}
	var scenes []scene
	for _, name := range c.names() {
		releases, err := c.ledger.Releases(ctx, name)
		if err != nil {
			return fmt.Errorf("list the releases of %s: %w", name, err)
		}
		if len(releases) > 0 {
			scenes = append(scenes, c.sceneOf(ctx, name, releases, subjects))
		}
	}
	answers, err := c.rejudge(ctx, subjects)
	if err != nil {
		return err
	}
	for _, s := range scenes {
		if err := c.compare(ctx, s, answers); err != nil {
			return err
		}
	}
	signal(c.stale)
	return nil
}

// sceneOf is what runs in an environment, by the definitions of its releases.
func (c *Control) sceneOf(ctx context.Context, name string, releases []kiln.Release, subjects map[kiln.Digest]judged) scene {
	s := scene{environment: name}
	for _, r := range releases {
		if r.State != kiln.ReleaseLive && r.State != kiln.ReleaseParked {
			continue
		}
		def, vex, err := c.definitionOf(ctx, r)
		c.complain(ctx, "definition of a release could not be read", name, err)
		live := r.State == kiln.ReleaseLive
		if err != nil {
			s.blind = true
			for _, one := range r.Services {
				s.running = append(s.running, running{service: one.Template.Service, live: live})
			}
			continue
		}
		if live {
			s.policy = def.Environment
		}
		for _, one := range r.Services {
			j := judged{image: one.Template.Image, gate: gateOf(def.Spec, one.Template.Service), vex: vex}
			subjects[j.key()] = j
			s.running = append(s.running, running{service: one.Template.Service, live: live, judged: j.key()})
		}
	}
	return s
}

// definitionOf reads a release's definition from its bundle.
func (c *Control) definitionOf(ctx context.Context, r kiln.Release) (Definition, map[string][]byte, error) {
	bundle, err := c.store.Bundle(ctx, r.Bundle)
	if err != nil {
		return Definition{}, nil, fmt.Errorf("read the bundle of release %d: %w", r.Number, err)
	}
	tree := c.store.TreeFS(bundle.Files)
	def, err := c.loader.Load(tree, LoadOptions{Environment: r.Environment, Branch: r.Source.Branch, Values: r.Values})
	if err != nil {
		return Definition{}, nil, fmt.Errorf("load the definition of release %d: %w", r.Number, err)
	}
	vex, err := vexOf(tree, def.Spec)
	if err != nil {
		return Definition{}, nil, fmt.Errorf("load the definition of release %d: %w", r.Number, err)
	}
	return def, vex, nil
}

// gateOf is the gate of the image that a service runs from.
func gateOf(s kiln.Spec, service string) kiln.Gate {
	for _, one := range s.Services {
		for _, image := range s.Images {
			if one.Name == service && image.Name == one.Image {
				return image.Gate
			}
		}
	}
	return kiln.DefaultGate()
}

// rejudge asks the prover about all of them.
func (c *Control) rejudge(ctx context.Context, subjects map[kiln.Digest]judged) (map[kiln.Digest]answer, error) {
	var mu sync.Mutex
	out := make(map[kiln.Digest]answer, len(subjects))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(rescanAtOnce)
	for key, j := range subjects {
		work.Go(func() error {
			v, whole, err := c.prover.Rejudge(ctx, j.image, j.gate, j.vex)
			if errors.Is(err, kiln.ErrNotFound) {
				return nil // it was baked before there were inventories
			}
			if err != nil {
				return fmt.Errorf("judge image %s again: %w", j.image.Short(), err)
			}
			mu.Lock()
			defer mu.Unlock()
			out[key] = answer{v, whole}
			return nil
		})
	}
	return out, work.Wait()
}

// compare notes what is new and what is gone in an environment, and tells it
// once.
func (c *Control) compare(ctx context.Context, s scene, answers map[kiln.Digest]answer) error {
	before := c.findings(s.environment)
	after := findings{Known: map[string]finding{}, policy: s.policy, judged: judgement(s, answers, before.judged)}
	whole := !s.blind
	for _, r := range s.running {
		a, ok := answers[r.judged]
		whole = whole && ok && a.whole
		for _, f := range a.verdict.Findings {
			if learnt(f) {
				after.add(f, r)
			}
		}
	}
	var events []kiln.Event
	for _, id := range sortedKeys(after.Known) {
		had, ok := before.Known[id]
		one := after.Known[id]
		if one.Since = had.Since; !ok {
			one.Since = c.now().UTC()
			events = append(events, one.event(s.environment, "finding.new", id, one.Since, one.sentence(id)))
		}
		after.Known[id] = one
	}
	for _, id := range sortedKeys(before.Known) {
		had := before.Known[id]
		switch _, still := after.Known[id]; {
		case still:
		case !whole:
			after.Known[id] = had // it could not be told
		default:
			events = append(events, had.event(s.environment, "finding.gone", id, c.now().UTC(), id+" is in nothing any more that runs"))
		}
	}
	return c.noteFindings(ctx, s.environment, after, events)
}

// learnt says whether a finding is one that the world learnt of, and the gate
// would let nothing start with.
func learnt(f kiln.Finding) bool { return f.Fails && f.Kind == kiln.FindingVulnerability }

// listed writes a few names for a sentence.
func listed(names []string) string {
	if n := len(names); n > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:5], ", "), n-5)
	}
	return strings.Join(names, ", ")
}

// insert adds a name to a sorted list that does not have it.
func insert(names []string, name string) []string {
	at, found := slices.BinarySearch(names, name)
	if found {
		return names
	}
	return slices.Insert(names, at, name)
}
