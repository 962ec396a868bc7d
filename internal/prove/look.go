package prove

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/kilnproject/kiln"
)

const (
	// looking is how many images are looked at at once, besides those that are
	// proved: who only looks keeps nobody from proving.
	looking = 1
	// remembered are images that were looked at and not proved: nothing signed
	// says what is in them.
	remembered = 8
)

// Look judges an image by the gate of its newest verdict, or else by the default
// one, as gates let it be changed first; nil changes nothing. An image that was
// not proved is inspected. Nothing is signed or kept for that, so what Look lets
// pass may run no more than before.
func (p *Prover) Look(ctx context.Context, image kiln.Digest, change func(*kiln.Gate)) (v kiln.Verdict, err error) {
	defer func() { p.opt.Observer.Judged(WhyScan, v.Outcome, err) }()
	last, judged, err := p.Newest(ctx, image)
	if err != nil {
		return kiln.Verdict{}, err
	}
	gate := kiln.DefaultGate()
	if judged {
		gate = last.Gate
	}
	if change != nil {
		change(&gate)
	}
	release, err := take(ctx, p.looking)
	if err != nil {
		return kiln.Verdict{}, err
	}
	defer release()
	seen, err := p.see(ctx, image)
	if err != nil {
		return kiln.Verdict{}, err
	}
	asked, err := p.opt.Advisories.Match(ctx, seen.Inventory.Packages)
	if err != nil {
		return kiln.Verdict{}, err
	}
	e := Evidence{
		Inventory: seen.Inventory, Asked: asked, Others: slices.Concat(seen.Marks, ofDefinition(last, seen.Marks)),
		Scanners: map[string]string{}, VEX: map[string][]byte{},
	}
	if gate.VEX, err = e.recall(last); err != nil {
		return kiln.Verdict{}, err
	}
	if err := p.scan(ctx, image, gate, &e); err != nil {
		return kiln.Verdict{}, err
	}
	if e.Signed, err = p.signed(ctx, image, gate); err != nil {
		return kiln.Verdict{}, err
	}
	return p.opt.Judge(gate, e, p.opt.Now())
}

// Describe returns the inventory of an image, which is inspected if that was not
// done before. Nothing is signed or kept for it.
func (p *Prover) Describe(ctx context.Context, image kiln.Digest) (kiln.Inventory, error) {
	release, err := take(ctx, p.looking)
	if err != nil {
		return kiln.Inventory{}, err
	}
	defer release()
	seen, err := p.see(ctx, image)
	return seen.Inventory, err
}

// Newest is the newest verdict of a signed image, by whatever gate, and false
// where there is none.
func (p *Prover) Newest(ctx context.Context, image kiln.Digest) (kiln.Verdict, bool, error) {
	v, err := p.opt.Signer.Newest(ctx, image)
	if err != nil || v == nil {
		return kiln.Verdict{}, false, err
	}
	return *v, true, nil
}

// see is what was seen in an image when it was proved, or looked at before, or
// what is seen in it now.
func (p *Prover) see(ctx context.Context, image kiln.Digest) (Inspection, error) {
	all, err := p.inspections(ctx, image)
	if err != nil && !errors.Is(err, kiln.ErrNotFound) {
		return Inspection{}, err
	}
	if len(all) > 0 {
		return all[len(all)-1], nil
	}
	if seen, ok := p.seen.Get(image); ok {
		return seen, nil
	}
	seen, err := p.watched(ctx, image, Base{})
	if err == nil {
		p.seen.Add(image, seen)
	}
	return seen, err
}

// take takes one of some slots, until release is called.
func take(ctx context.Context, slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ofDefinition are the findings of a verdict that rules made of the definition:
// those that are not among the marks of the image.
func ofDefinition(v kiln.Verdict, marks []kiln.Finding) []kiln.Finding {
	return slices.DeleteFunc(slices.Clone(v.Findings), func(f kiln.Finding) bool {
		return f.Kind != kiln.FindingLint || slices.ContainsFunc(marks, func(m kiln.Finding) bool { return m.ID == f.ID && m.Path == f.Path })
	})
}

// recalled names the document that recall writes.
const recalled = "its VEX documents, at the last verdict"

// recall makes a document of what the VEX documents of a definition, which are
// not at hand, said when the verdict was made. It returns the gate's documents.
func (e *Evidence) recall(last kiln.Verdict) ([]string, error) {
	type named struct {
		Name string `json:"name"`
	}
	type product struct {
		ID string `json:"@id"`
	}
	type statement struct {
		Vulnerability named     `json:"vulnerability"`
		Products      []product `json:"products"`
		Status        string    `json:"status"`
		Impact        string    `json:"impact_statement"`
		At            time.Time `json:"timestamp"`
	}
	var all []statement
	for _, f := range last.Findings {
		if f.State == kiln.FindingNotAffected && f.PURL != "" {
			all = append(all, statement{named{f.ID}, []product{{f.PURL}}, "not_affected", f.Reason, last.At})
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	document, err := json.Marshal(struct {
		Context    string      `json:"@context"`
		ID         string      `json:"@id"`
		Statements []statement `json:"statements"`
	}{"https://openvex.dev/ns/v0.2.0", string(last.Image), all})
	e.VEX[recalled] = document
	return []string{recalled}, err
}
