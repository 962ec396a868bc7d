package server

import (
	"context"
	"net/http"
	"net/url"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

func (a *api) verify(r *http.Request, s *stream) (any, error) {
	request, err := decode[control.ProofRequest](a, r)
	if err != nil {
		return nil, err
	}
	request.Actor, request.Reach = actorOf(r), callOf(r).reach
	return a.Control.VerifyRelease(r.Context(), request, s.offer)
}

func (a *api) diff(r *http.Request) (any, error) {
	request := control.DiffRequest{Reach: callOf(r).reach}
	var err error
	if request.To, err = control.ParseRelease(r.URL.Query().Get("to")); err != nil {
		return nil, err
	}
	if from := r.URL.Query().Get("from"); from != "" {
		if request.From, err = control.ParseRelease(from); err != nil {
			return nil, err
		}
	}
	return a.Control.DiffReleases(r.Context(), request)
}

// Verify checks all that was signed of a release.
func (c *Client) Verify(ctx context.Context, request control.ProofRequest, progress func(kiln.Progress)) (kiln.ReleaseProof, error) {
	return operate[kiln.ReleaseProof](ctx, c, "verify", request, progress)
}

// Diff says what two releases differ in, each ENVIRONMENT or ENVIRONMENT/NUMBER.
// An empty from is the release before to.
func (c *Client) Diff(ctx context.Context, from, to string) (kiln.ReleaseDiff, error) {
	var result kiln.ReleaseDiff
	query := url.Values{"to": {to}}
	if from != "" {
		query.Set("from", from)
	}
	return result, c.call(ctx, http.MethodGet, "diff", query, "", nil, &result)
}
