package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/kilnproject/kiln"
)

// An overlay is what repaves of an environment pinned instead of what the
// definition's kiln.lock pins, so that the next commit does not bring the old
// base back. It knows nothing of time: a pin wins for as long as kiln.lock has
// one that it replaced, and is gone when kiln.lock has another one.
type overlay struct {
	Environment string  `json:"environment"`
	Layers      []layer `json:"layers"` // the newest last
}

// layer is the pins of one repave. They count unless its release was rolled back
// or never went live.
type layer struct {
	Release kiln.Digest  `json:"release"` // identity
	Pins    []overlayPin `json:"pins"`
}

type overlayPin struct {
	pin
	Was []kiln.Digest `json:"was"` // digests of the entries that it replaces
}

// maxLayers bounds an overlay. Each layer replaces what the ones before did, so
// that old ones matter only when newer ones were rolled back.
const maxLayers = 8

// signedOverlay is how it is kept.
type signedOverlay struct {
	Payload   []byte `json:"payload"`
	Signature []byte `json:"signature,omitempty"`
}

func overlayOf(name string) string { return "lock/" + name }

// overlay is the one of an environment, without the layers that do not count.
func (c *Control) overlay(ctx context.Context, name string) (overlay, error) {
	out := overlay{Environment: name}
	var kept signedOverlay
	if err := c.setting(ctx, overlayOf(name), &kept); err != nil || len(kept.Payload) == 0 {
		return out, err
	}
	if c.locks != nil {
		if err := c.locks.Check(ctx, kept.Payload, kept.Signature); err != nil {
			return out, badOverlay(name, err)
		}
	}
	var read overlay
	if err := json.Unmarshal(kept.Payload, &read); err != nil || read.Environment != name {
		return out, badOverlay(name, errors.Join(err, fmt.Errorf("it is of environment %q", read.Environment)))
	}
	releases, err := c.ledger.Releases(ctx, name)
	if err != nil {
		return out, fmt.Errorf("list the releases of %s: %w", name, err)
	}
	for _, l := range read.Layers {
		if !undone(releases, l.Release, kiln.ReleaseCondemned, kiln.ReleaseFailed) {
			out.Layers = append(out.Layers, l)
		}
	}
	return out, nil
}

// errOverlay is in the error of an overlay that cannot be believed.
var errOverlay = errors.New("it is not what was written")

func badOverlay(name string, err error) error {
	return kiln.Errorf(kiln.CodeRefused, "kiln repave "+name+" makes them anew",
		"%w", fmt.Errorf("the pins of the repaves of %s: %w: %w", name, errOverlay, err))
}

// undone says whether the newest release with an identity is in one of some
// states: condemned, when it was rolled back, or failed.
func undone(releases []kiln.Release, identity kiln.Digest, states ...kiln.ReleaseState) bool {
	for _, r := range slices.Backward(releases) {
		if r.Identity() == identity {
			return slices.Contains(states, r.State)
		}
	}
	return false
}

// lay returns a lock with the overlay's pins over it, and says which.
func (o overlay) lay(l kiln.Lock) (kiln.Lock, []string) {
	var said []string
	pins := pinsOf(l)
	for i, p := range pins {
		for _, layer := range slices.Backward(o.Layers) {
			at := slices.IndexFunc(layer.Pins, func(over overlayPin) bool { return over.key() == p.key() && slices.Contains(over.Was, p.digest()) })
			if at < 0 {
				continue
			}
			pins[i] = layer.Pins[at].pin
			said = append(said, instead(p, pins[i]))
			break
		}
	}
	return lockOf(pins), said
}

// instead says that a repave pinned something else than kiln.lock does.
func instead(was, is pin) string {
	if is.Reference != nil {
		return fmt.Sprintf("%s is %s as a repave pinned it, and not %s as kiln.lock says", is.name(), is.Reference.Index.Short(), was.Reference.Index.Short())
	}
	return fmt.Sprintf("the packages of %s are as a repave pinned them, and not as kiln.lock says", is.name())
}

// over is the overlay with another layer: what a repave moved, from the lock
// that was used, and from the one of the file, which the used one lay over.
func (o overlay) over(release kiln.Digest, file, used kiln.Lock, to []pin) overlay {
	next := layer{Release: release}
	for _, p := range to {
		over := overlayPin{pin: p}
		for _, l := range []kiln.Lock{used, file} {
			if was, ok := byKey(pinsOf(l), p.key()); ok {
				over.Was = append(over.Was, was.digest())
			}
		}
		for _, l := range o.Layers {
			for _, earlier := range l.Pins {
				if earlier.key() == p.key() && (slices.Contains(over.Was, earlier.digest()) || shared(over.Was, earlier.Was)) {
					over.Was = append(append(over.Was, earlier.Was...), earlier.digest())
				}
			}
		}
		slices.Sort(over.Was)
		over.Was = slices.DeleteFunc(slices.Compact(over.Was), func(d kiln.Digest) bool { return d == p.digest() })
		next.Pins = append(next.Pins, over)
	}
	layers := append(slices.Clone(o.Layers), next)
	return overlay{Environment: o.Environment, Layers: layers[max(0, len(layers)-maxLayers):]}
}

func shared(a, b []kiln.Digest) bool {
	return slices.ContainsFunc(a, func(d kiln.Digest) bool { return slices.Contains(b, d) })
}

// without is the overlay without the pins of what a lock pins to something else
// than the overlay knows of: somebody decided anew.
func (o overlay) without(file kiln.Lock) (overlay, []string) {
	pins := pinsOf(file)
	out, gone := overlay{Environment: o.Environment}, []string{}
	for _, l := range o.Layers {
		kept := layer{Release: l.Release}
		for _, over := range l.Pins {
			p, ok := byKey(pins, over.key())
			if ok && !o.knows(p) {
				gone = append(gone, over.name())
				continue
			}
			kept.Pins = append(kept.Pins, over)
		}
		if len(kept.Pins) > 0 {
			out.Layers = append(out.Layers, kept)
		}
	}
	slices.Sort(gone)
	return out, slices.Compact(gone)
}

// knows says whether an entry was replaced or brought by a layer.
func (o overlay) knows(p pin) bool {
	for _, l := range o.Layers {
		for _, over := range l.Pins {
			if over.key() == p.key() && (over.digest() == p.digest() || slices.Contains(over.Was, p.digest())) {
				return true
			}
		}
	}
	return false
}

// record is the overlay as a record of the ledger.
func (c *Control) overlayRecord(ctx context.Context, o overlay, e kiln.Event) (kiln.Record, error) {
	var kept signedOverlay
	var err error
	if kept.Payload, err = json.Marshal(o); err != nil {
		return kiln.Record{}, err
	}
	if c.locks != nil {
		if kept.Signature, err = c.locks.Sign(ctx, kept.Payload); err != nil {
			return kiln.Record{}, fmt.Errorf("sign the pins of a repave: %w", err)
		}
	}
	value, err := json.Marshal(kept)
	return kiln.Record{Events: []kiln.Event{e}, Settings: map[string][]byte{overlayOf(o.Environment): value}}, err
}

// overlaid lays an environment's overlay over a definition's lock, and says
// where that made a difference.
func (c *Control) overlaid(ctx context.Context, def *Definition) ([]string, error) {
	o, err := c.overlay(ctx, def.Environment.Name)
	if err != nil {
		return nil, err
	}
	var said []string
	def.Lock, said = o.lay(def.Lock)
	return said, nil
}

// outgrown drops what kiln.lock has decided anew from an environment's overlay.
func (c *Control) outgrown(ctx context.Context, name, actor string, file kiln.Lock) error {
	o, err := c.overlay(ctx, name)
	if err != nil {
		return err
	}
	left, gone := o.without(file)
	if len(gone) == 0 {
		return nil
	}
	record, err := c.overlayRecord(ctx, left, kiln.Event{
		At: c.now().UTC(), Environment: name, Kind: "lock.outgrown", Subject: name, Actor: actor,
		Message: fmt.Sprintf("kiln.lock pins %s anew: what a repave pinned no longer counts", listed(gone)),
	})
	if err != nil {
		return err
	}
	return c.ledger.Commit(ctx, record)
}
