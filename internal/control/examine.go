package control

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/kilnproject/kiln"
)

// ProofRequest asks whether all that was signed of a release still holds.
type ProofRequest struct {
	Environment string `json:"environment"`
	Release     int    `json:"release,omitempty"` // 0 is the live one
	// Rebuild bakes its images again from nothing, too.
	Rebuild bool       `json:"rebuild,omitempty"`
	Actor   string     `json:"-"`
	Reach   kiln.Reach `json:"-"` // the environments that the actor may see
}

// DiffRequest asks what two releases differ in.
type DiffRequest struct {
	From ReleaseAsked `json:"from"` // release 0 is the one before To
	To   ReleaseAsked `json:"to"`   // release 0 is the live one
	// Reach is the environments that the actor may see.
	Reach kiln.Reach `json:"-"`
}

// ReleaseAsked names a release.
type ReleaseAsked struct {
	Environment string `json:"environment"`
	Release     int    `json:"release,omitempty"`
}

// ParseRelease reads a release as the command line and the API take it:
// ENVIRONMENT, whose live one is meant, or ENVIRONMENT/NUMBER.
func ParseRelease(text string) (ReleaseAsked, error) {
	environment, number, numbered := strings.Cut(text, "/")
	n, err := strconv.Atoi(number)
	if environment == "" || numbered && (err != nil || n < 1) {
		return ReleaseAsked{}, kiln.Errorf(kiln.CodeInvalid, "name it ENVIRONMENT or ENVIRONMENT/NUMBER; kiln releases lists them", "%q is no release", text)
	}
	return ReleaseAsked{environment, n}, nil
}

// VerifyRelease checks a release. What does not hold is in the proof, and told in the
// history.
func (c *Control) VerifyRelease(ctx context.Context, r ProofRequest, progress func(kiln.Progress)) (kiln.ReleaseProof, error) {
	release, err := c.asked(ctx, ReleaseAsked{r.Environment, r.Release}, r.Reach)
	if err != nil {
		return kiln.ReleaseProof{}, err
	}
	if r.Rebuild { // what is baked stays until it was compared
		c.gate.RLock()
		defer c.gate.RUnlock()
		defer c.grew()
	}
	feed := newFeed(progress)
	defer feed.close()
	proof, err := c.examiner.Verify(ctx, release, r.Rebuild, feed.send)
	if err != nil || proof.Holds {
		return proof, err
	}
	first := ""
	for _, one := range proof.Checks {
		if one.Outcome == kiln.OutcomeFail {
			first = fmt.Sprintf("%s of %s: %s", one.Kind, one.Subject, one.Detail)
			break
		}
	}
	err = c.ledger.Commit(ctx, kiln.Record{Events: []kiln.Event{{
		At: c.now().UTC(), Environment: release.Environment, Kind: "release.doubted", Subject: subject(release.Number), Actor: r.Actor,
		Message: fmt.Sprintf("not all that was signed of release %d holds: %s", release.Number, first), Data: map[string]string{"bundle": string(release.Bundle)},
	}}})
	if err != nil { // the answer is worth more than its record
		c.log.ErrorContext(ctx, "a verification is not recorded", "environment", release.Environment, "error", err)
	}
	return proof, nil
}

// DiffReleases says what two releases differ in.
func (c *Control) DiffReleases(ctx context.Context, r DiffRequest) (kiln.ReleaseDiff, error) {
	to, err := c.asked(ctx, r.To, r.Reach)
	if err != nil {
		return kiln.ReleaseDiff{}, err
	}
	var from kiln.Release
	if r.From.Environment == "" || r.From == (ReleaseAsked{Environment: r.To.Environment}) {
		from, err = c.predecessor(ctx, to)
	} else {
		from, err = c.asked(ctx, r.From, r.Reach)
	}
	if err != nil {
		return kiln.ReleaseDiff{}, err
	}
	return c.examiner.Diff(ctx, named(from), named(to))
}

func named(r kiln.Release) kiln.ReleaseName {
	return kiln.ReleaseName{Environment: r.Environment, Release: r.Number, Bundle: r.Bundle}
}

// asked is a release that the caller may see.
func (c *Control) asked(ctx context.Context, r ReleaseAsked, reach kiln.Reach) (kiln.Release, error) {
	if err := within(reach, r.Environment); err != nil {
		return kiln.Release{}, err
	}
	if c.examiner == nil {
		return kiln.Release{}, kiln.Errorf(kiln.CodeInternal, "", "this control plane examines no releases")
	}
	return c.Release(ctx, r.Environment, r.Release)
}

// predecessor is the newest release before another that was live.
func (c *Control) predecessor(ctx context.Context, of kiln.Release) (kiln.Release, error) {
	releases, err := c.Releases(ctx, of.Environment)
	if err != nil {
		return kiln.Release{}, err
	}
	var found *kiln.Release
	for i, r := range releases {
		if r.Number < of.Number && r.State != kiln.ReleaseFailed && r.State != kiln.ReleasePending {
			found = &releases[i]
		}
	}
	if found == nil {
		return kiln.Release{}, kiln.Errorf(kiln.CodeNotFound, "kiln releases "+of.Environment+" lists what there is; kiln diff ENVIRONMENT/NUMBER ENVIRONMENT/NUMBER names two",
			"no release of %s was live before release %d", of.Environment, of.Number)
	}
	return *found, nil
}

// preview says what the images that are baked already change. What cannot be
// told keeps nobody from planning.
func (c *Control) preview(ctx context.Context, live *kiln.Release, desired kiln.Bundle) []kiln.ImageChange {
	if c.examiner == nil || live == nil {
		return nil
	}
	out, err := c.examiner.Preview(ctx, live.Bundle, desired.Images)
	if err != nil && ctx.Err() == nil {
		c.log.WarnContext(ctx, "what a release changes cannot be told", "environment", live.Environment, "error", err)
	}
	return out
}
