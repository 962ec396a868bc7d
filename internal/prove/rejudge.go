package prove

import (
	"context"
	"fmt"

	"github.com/kilnproject/kiln"
)

// Rejudge judges an image that was inventoried before by what advisories say
// now, and by who signed it as is known here: neither the image nor its registry
// nor another scanner is asked. It
// attests nothing, because what runs may go on to replace its instances. It is
// whole when the advisories know every ecosystem that the image has packages of:
// otherwise a finding that is not in the verdict may still be there. The error
// matches kiln.ErrNotFound where there is no inventory.
func (p *Prover) Rejudge(ctx context.Context, image kiln.Digest, g kiln.Gate, vex map[string][]byte) (v kiln.Verdict, whole bool, err error) {
	inventory, err := p.Inventory(ctx, image)
	if err != nil {
		return kiln.Verdict{}, false, err
	}
	defer func() { p.opt.Observer.Judged(WhyRescan, v.Outcome, err) }()
	asked, err := p.opt.Advisories.Match(ctx, inventory.Packages)
	if err != nil {
		return kiln.Verdict{}, false, fmt.Errorf("ask the advisories: %w", err)
	}
	g.Scanners = nil
	e := Evidence{Inventory: inventory, Asked: asked, VEX: map[string][]byte{}}
	if e.Signed, err = p.signed(ctx, image, g); err != nil {
		return kiln.Verdict{}, false, err
	}
	for _, path := range g.VEX {
		e.VEX[path] = vex[path]
	}
	v, err = p.opt.Judge(g, e, p.opt.Now())
	return v, asked.Why == "" && len(asked.Unmatched) == 0, err
}

// Database names the advisories that a judgement asks now; empty when there are
// none.
func (p *Prover) Database() kiln.Digest { return p.opt.Advisories.Database() }
