package server

import (
	"context"
	"net/http"

	"github.com/kilnproject/kiln"
)

// Ledger is what the API asks of the ledger itself.
type Ledger interface {
	// Verify checks all of it; with a tip, also that the history goes through
	// that.
	Verify(ctx context.Context, tip string) (kiln.LedgerReport, error)
	// Accept goes on after damage, if it is the one with that digest.
	Accept(ctx context.Context, actor string, damage kiln.Digest) (kiln.LedgerReport, error)
}

// VerifyRequest asks for a verification of the ledger.
type VerifyRequest struct {
	// Tip is what an earlier report had; empty for none.
	Tip string `json:"tip,omitempty"`
}

// AcceptRequest asks to go on with a damaged ledger.
type AcceptRequest struct {
	// Damage is what a report had; empty for whatever there is.
	Damage kiln.Digest `json:"damage,omitempty"`
}

func (a *api) verifyLedger(r *http.Request, s *stream) (any, error) {
	request, err := decode[VerifyRequest](a, r)
	if err != nil {
		return nil, err
	}
	s.offer(kiln.Progress{Stage: "verify", Subject: "ledger", Step: "every record is checked"})
	return a.Ledger.Verify(r.Context(), request.Tip)
}

// acceptLedger goes on when the caller goes away: half of it is nothing.
func (a *api) acceptLedger(r *http.Request, s *stream) (any, error) {
	request, err := decode[AcceptRequest](a, r)
	if err != nil {
		return nil, err
	}
	s.offer(kiln.Progress{Stage: "verify", Subject: "ledger", Step: "what can be read is written anew"})
	return a.Ledger.Accept(context.WithoutCancel(r.Context()), actorOf(r), request.Damage)
}

// VerifyLedger has the ledger checked.
func (c *Client) VerifyLedger(ctx context.Context, request VerifyRequest, progress func(kiln.Progress)) (kiln.LedgerReport, error) {
	return operate[kiln.LedgerReport](ctx, c, "ledger/verify", request, progress)
}

// AcceptLedger goes on with a damaged ledger.
func (c *Client) AcceptLedger(ctx context.Context, request AcceptRequest, progress func(kiln.Progress)) (kiln.LedgerReport, error) {
	return operate[kiln.LedgerReport](ctx, c, "ledger/accept", request, progress)
}
