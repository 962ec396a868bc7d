package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/rollout"
)

// drive takes one rollout from step to step. Each step is journalled before it
// is taken; a drive that stops anywhere is taken up again from the journal.
type drive struct {
	c       *Control
	rollout rollout.Rollout
	record  kiln.Rollout
	holder  *holder
	feed    *feed
	states  map[int]kiln.ReleaseState // as the ledger has them
	warm    bool
	stuck   chan struct{}     // closed when the undoing has not worked for a while
	refused chan struct{}     // closed when the ledger is damaged, so that no step is journalled
	told    map[string]string // the last message of each step of the progress

	within context.Context // of the rollout, as the observer sees it
	ended  End
	inStep context.Context // of the present step
	past   End             // ends the present step; nil before the first

	mu    sync.Mutex
	state rollout.State
	off   *rollout.Failure   // why it is called off; nil when it is not
	cease context.CancelFunc // ends the actions of a step that is called off
}

// errStopped ends a drive as a kill would: nothing more is written.
var errStopped = errors.New("stopped")

// begin journals a rollout to a release, which is stored first when it has no
// number yet, and starts to drive it.
func (c *Control) begin(ctx context.Context, name string, to kiln.Release, h *holder, actor string, feed *feed) (*drive, error) {
	releases, err := c.ledger.Releases(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("list the releases of %s: %w", name, err)
	}
	if err := c.admit(ctx, to, actor); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx) // a release that is stored is rolled out
	kind := rollout.Rollback
	if to.Number == 0 {
		kind = rollout.Up
		if to, err = c.createRelease(ctx, to); err != nil {
			return nil, err
		}
	}
	r := rollout.Rollout{Environment: name, Kind: kind, To: to, From: findState(releases, kiln.ReleaseLive)}
	if parked := findState(releases, kiln.ReleaseParked); parked != nil && parked.Number != to.Number {
		r.Parked = parked
	}
	warm, err := c.warm(ctx, r)
	if err != nil {
		return nil, err
	}
	now := c.now()
	d := &drive{
		c: c, rollout: r, holder: h, feed: feed, states: statesOf(r), state: rollout.Begin(r, warm, now), warm: warm, told: map[string]string{}, stuck: make(chan struct{}), refused: make(chan struct{}),
		record: kiln.Rollout{ID: rolloutID(name, to.Number, now), Environment: name, To: to.Number, Actor: actor, StartedAt: now.UTC()},
	}
	if r.From != nil {
		d.record.From = r.From.Number
	}
	if err := d.journal(ctx, d.state); err != nil {
		return nil, err
	}
	d.begins(ctx)
	d.enter(d.state)
	c.drives(h, d)
	return d, nil
}

// createRelease stores a release, which gets its number.
func (c *Control) createRelease(ctx context.Context, r kiln.Release) (out kiln.Release, err error) {
	within, end := c.begins(ctx, workRelease, "environment", r.Environment)
	defer func() { end(err, "release", number(out.Number)) }()
	if out, err = c.ledger.CreateRelease(within, r); err != nil {
		return r, fmt.Errorf("store the release: %w", err)
	}
	return out, nil
}

// begins tells the observer that the rollout begins, or goes on after a
// restart. Its steps and what is done in them are part of it.
func (d *drive) begins(ctx context.Context) {
	d.within, d.ended = d.c.begins(ctx, workRollout, "environment", d.rollout.Environment, "kind", string(d.rollout.Kind),
		"release", number(d.record.To), "from", number(d.record.From), "rollout", d.record.ID)
	d.inStep = d.within
}

// stepped tells the observer that a step ended and the next begins.
func (d *drive) stepped(s rollout.State) {
	if d.past != nil {
		var err error
		if n := len(s.Trail); n > 0 && s.Failure != nil && s.Failure.Step == s.Trail[n-1].Step {
			err = &kiln.Error{Code: s.Failure.Code, Message: s.Failure.Message}
		}
		d.past(err)
		d.past = nil
	}
	if !s.Ended() {
		d.inStep, d.past = d.c.begins(d.within, workStep, "step", string(s.Step), "environment", d.rollout.Environment, "release", number(d.record.To))
	}
}

// number is a release's number as a text; "" for none.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// warm says whether a release can take the traffic by one swap.
func (c *Control) warm(ctx context.Context, r rollout.Rollout) (bool, error) {
	if r.Kind != rollout.Rollback || r.To.State != kiln.ReleaseParked {
		return false, nil
	}
	seen, err := c.engine.Observe(ctx, r.Environment)
	if err != nil {
		return false, fmt.Errorf("observe %s: %w", r.Environment, err)
	}
	return rollout.IsWarm(r.To, seen), nil
}

func statesOf(r rollout.Rollout) map[int]kiln.ReleaseState {
	out := map[int]kiln.ReleaseState{r.To.Number: r.To.State}
	for _, one := range []*kiln.Release{r.From, r.Parked} {
		if one != nil {
			out[one.Number] = one.State
		}
	}
	return out
}

// rolloutID sorts by time.
func rolloutID(name string, to int, now time.Time) string {
	return strconv.FormatInt(now.UnixMicro(), 36) + "-" + kiln.DigestJSON([]any{name, to}).Short()
}

// run takes steps until the rollout ends or ctx does.
func (d *drive) run(ctx context.Context) {
	err := d.steps(ctx)
	if d.past != nil { // the end came in the middle of a step
		d.past(err)
	}
	d.ended(errors.Join(err, d.failed("")))
	switch {
	case errors.Is(err, errStopped):
		d.c.stop(err)
		return
	case err != nil:
		return // ctx ended; the journal has the rest
	}
	d.c.release(d.rollout.Environment, d.holder)
}

func (d *drive) steps(ctx context.Context) error {
	if err := d.hit(d.state.Step, "before"); err != nil {
		return err
	}
	var result *rollout.Result
	for !d.state.Ended() {
		var err error
		if result, err = d.step(ctx, result); err != nil {
			if err = d.survive(ctx, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// step takes the present state's actions, or goes on to the next state when
// what came of them, the result, allows it.
func (d *drive) step(ctx context.Context, result *rollout.Result) (*rollout.Result, error) {
	if why := d.calledOff(); why != nil {
		return nil, d.advance(ctx, rollout.CallOff(d.state, *why, d.c.now()))
	}
	changed := d.c.changes(d.rollout.Environment)
	seen, err := d.see(ctx)
	if err != nil {
		return result, err
	}
	seen.Result = result
	next, actions := rollout.Next(d.rollout, d.state, seen, d.c.now())
	if next.Step == d.state.Step {
		acting, cancel := context.WithCancel(as(ctx, d.inStep))
		defer cancel()
		d.ceaseWith(cancel)
		result, err = d.act(acting, actions, changed)
		if d.calledOff() != nil {
			return nil, ctx.Err()
		}
		return result, err
	}
	// While the journal does not take it, what was done stays done.
	if err := d.advance(ctx, next); err != nil {
		return result, err
	}
	return nil, nil
}

// survive passes on what ends a drive and waits a second after anything else.
func (d *drive) survive(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil || errors.Is(err, errStopped):
		return err
	}
	d.c.complain(ctx, "rollout step is tried again", d.rollout.Environment, fmt.Errorf("%s: %w", d.state.Step, err))
	d.c.troubled(d.rollout.Environment, fmt.Errorf("the rollout of release %d waits at %s: %w", d.record.To, d.state.Step, err))
	d.waits()
	return pause(ctx, time.Second)
}

// waits tells those who wait for a rollout when nobody knows how long they
// would: the ledger is damaged.
func (d *drive) waits() {
	if len(d.c.ledger.Damage()) == 0 {
		return
	}
	select {
	case <-d.refused:
	default:
		close(d.refused)
	}
}

// see looks at what the present step decides by.
func (d *drive) see(ctx context.Context) (rollout.Seen, error) {
	var seen rollout.Seen
	var err error
	switch d.state.Step {
	case rollout.Ready, rollout.Settle, rollout.Vacate:
		if seen.Fleets, err = d.c.engine.Observe(ctx, d.rollout.Environment); err != nil {
			return seen, fmt.Errorf("observe: %w", err)
		}
		d.tell(seen.Fleets)
	case rollout.Drain, rollout.UndoDrain:
		measured, err := d.c.engine.Measure(ctx)
		if err != nil {
			return seen, fmt.Errorf("measure: %w", err)
		}
		gone := rollout.Leaving(d.rollout, d.state)
		for _, m := range measured {
			if m.Instance == "" && slices.Contains(gone, m.Fleet) {
				seen.InFlight += m.InFlight
			}
		}
	case rollout.Admit, rollout.Evict, rollout.Start, rollout.Verify, rollout.Switch, rollout.Workers, rollout.Retire,
		rollout.Done, rollout.UndoRoute, rollout.Undo, rollout.Failed:
	}
	return seen, nil
}

// advance journals the next state and stands for it.
func (d *drive) advance(ctx context.Context, next rollout.State) error {
	if err := d.hit(d.state.Step, "after"); err != nil {
		return err
	}
	if err := d.journal(ctx, next); err != nil {
		return err
	}
	d.enter(next)
	return d.hit(next.Step, "before")
}

func (d *drive) hit(s rollout.Step, when string) error {
	if err := d.fault(s, when); err != nil {
		return fmt.Errorf("%w at %s.%s: %w", errStopped, s, when, err)
	}
	return nil
}

// fault is what a test wants to happen at a point of a step.
func (d *drive) fault(s rollout.Step, when string) error {
	if d.c.faults == nil {
		return nil
	}
	return d.c.faults.Hit(string(s) + "." + when)
}

// journal writes a state, where its releases stand, and what happened, in one
// transaction.
func (d *drive) journal(ctx context.Context, s rollout.State) error {
	body, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	record := d.record
	record.Step, record.State = string(s.Step), body
	if s.Ended() {
		record.EndedAt = d.c.now().UTC()
	}
	marks := d.moved(s)
	r := kiln.Record{Rollout: &record, Marks: marks, Events: d.events(s, marks)}
	if err := d.c.ledger.Commit(ctx, r); err != nil {
		return fmt.Errorf("journal step %s: %w", s.Step, err)
	}
	for _, m := range marks {
		d.states[m.Number] = m.State
	}
	d.c.log.InfoContext(ctx, "rollout moves", "environment", d.rollout.Environment, "kind", d.rollout.Kind,
		"from", d.record.From, "to", d.record.To, "step", s.Step)
	return nil
}

// moved are the marks that differ from what the ledger has.
func (d *drive) moved(s rollout.State) []kiln.ReleaseMark {
	var out []kiln.ReleaseMark
	for _, m := range rollout.Marks(d.rollout, s) {
		if d.states[m.Number] != m.State {
			if m.State == kiln.ReleaseLive {
				m.LiveAt = d.c.now().UTC()
			}
			out = append(out, m)
		}
	}
	return out
}

// enter makes the environment stand for a journalled state.
func (d *drive) enter(s rollout.State) {
	d.mu.Lock()
	d.state = s
	d.mu.Unlock()
	name := d.rollout.Environment
	d.c.stand(name, marked(rollout.ViewOf(d.rollout, s), rollout.Marks(d.rollout, s)), rollout.Fleets(d.rollout, s))
	d.c.calm("rollout step is tried again", name)
	d.c.mu.Lock()
	e := d.c.environment(name)
	e.problem = ""
	e.rollout = &RolloutStatus{From: d.record.From, To: d.record.To, Step: string(s.Step), StartedAt: d.record.StartedAt}
	if s.Decided() {
		d.holder.decide()
	}
	d.c.mu.Unlock()
	d.stepped(s)
	d.announce(s)
}

// marked puts where its releases stand into a view.
func marked(v rollout.View, marks []kiln.ReleaseMark) rollout.View {
	set := func(r kiln.Release) kiln.Release {
		for _, m := range marks {
			if m.Number == r.Number {
				r.State, r.ParkedUntil = m.State, m.ParkedUntil
			}
		}
		return r
	}
	if v.Live != nil {
		live := set(*v.Live)
		v.Live = &live
	}
	others := make([]kiln.Release, len(v.Others))
	for i, r := range v.Others {
		others[i] = set(r)
	}
	v.Others = others
	return v
}

// act takes a step's actions. A nil result means that they were waits.
func (d *drive) act(ctx context.Context, actions []rollout.Action, changed <-chan struct{}) (*rollout.Result, error) {
	waited := true
	for _, a := range actions {
		var err error
		if a.Kind != rollout.ActWait && a.Kind != rollout.ActPause {
			waited, err = false, d.fault(d.state.Step, "act")
		}
		if err == nil {
			err = d.take(ctx, a, changed)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			d.struggle(ctx, err)
			return &rollout.Result{Failure: failure(err)}, nil
		}
	}
	if waited {
		return nil, nil
	}
	return &rollout.Result{}, nil
}

// take takes one action.
func (d *drive) take(ctx context.Context, a rollout.Action, changed <-chan struct{}) error {
	switch a.Kind {
	case rollout.ActWait:
		return await(ctx, changed, a.For)
	case rollout.ActPause:
		return pause(ctx, a.For)
	case rollout.ActAdmit:
		if err := d.c.admit(ctx, d.rollout.To, d.record.Actor); err != nil {
			return err
		}
		return d.c.engine.Admit(ctx, a.Fleets)
	case rollout.ActApply:
		return d.c.apply(ctx, d.rollout.Environment, d.reason())
	case rollout.ActRoute:
		return d.c.route(ctx)
	case rollout.ActVerify:
		return d.verify(ctx)
	}
	return nil
}

// reason is shown with the instances that the present step creates.
func (d *drive) reason() string {
	switch d.state.Step {
	case rollout.Evict:
		return fmt.Sprintf("room for release %d", d.record.To)
	case rollout.Undo, rollout.UndoRoute, rollout.UndoDrain:
		return fmt.Sprintf("release %d was undone", d.record.To)
	case rollout.Admit, rollout.Vacate, rollout.Start, rollout.Ready, rollout.Verify, rollout.Switch, rollout.Workers, rollout.Settle,
		rollout.Drain, rollout.Retire, rollout.Done, rollout.Failed:
	}
	if d.rollout.Kind == rollout.Rollback {
		return fmt.Sprintf("rollback to release %d", d.record.To)
	}
	return fmt.Sprintf("release %d", d.record.To)
}

// trail has the time that each step took.
func (d *drive) trail() []rollout.Mark {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.Trail
}

// failure is an error as a rollout's failure.
func failure(err error) *rollout.Failure {
	f := &rollout.Failure{Code: kiln.CodeFailed, Message: err.Error()}
	var known *kiln.Error
	if errors.As(err, &known) {
		f.Code, f.Hint, f.Evidence = known.Code, known.Hint, known.Evidence
	}
	return f
}

// await returns at a change, after the time, or when ctx ends.
func await(ctx context.Context, changed <-chan struct{}, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	return await(ctx, nil, d)
}
