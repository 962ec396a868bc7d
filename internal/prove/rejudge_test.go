package prove

import (
	"errors"
	"testing"

	"github.com/kilnproject/kiln"
)

func TestRejudgeAsksTheAdvisoriesAloneAndSaysNothing(t *testing.T) {
	w := newWorld()
	w.scan = func(kiln.GateScanner) ([]kiln.Finding, error) { return nil, nil }
	g := kiln.DefaultGate()
	g.Scanners, g.VEX = []kiln.GateScanner{{Name: "trivy"}}, []string{"a.json"}
	p := w.prover()
	if _, _, err := p.Rejudge(t.Context(), digest("web"), g, nil); !errors.Is(err, kiln.ErrNotFound) {
		t.Fatalf("an image that was never inventoried: %v", err)
	}
	prove(t, p, request(g, w.image("web", "a")))
	before, inspected := w.attests, len(w.inspected)
	w.outcome, w.asked = kiln.OutcomeFail, Asked{Database: "sha256:new"}
	w.scan = func(kiln.GateScanner) ([]kiln.Finding, error) {
		t.Error("a scanner was asked")
		return nil, nil
	}
	v, whole, err := p.Rejudge(t.Context(), digest("web"), g, map[string][]byte{"a.json": []byte("a"), "b.json": []byte("b")})
	if err != nil || v.Outcome != kiln.OutcomeFail || v.Database != "sha256:new" || !whole {
		t.Fatalf("%+v %t %v", v, whole, err)
	}
	e := w.evidence[len(w.evidence)-1]
	if len(v.Gate.Scanners) != 0 || len(e.Others) != 0 || len(e.VEX) != 1 || len(e.Inventory.Packages) != 1 {
		t.Errorf("judged by %+v, gate %+v", e, v.Gate)
	}
	if w.attests != before || len(w.inspected) != inspected {
		t.Errorf("%d statements and %d inspections more", w.attests-before, len(w.inspected)-inspected)
	}
	if err := p.Admit(t.Context(), digest("web")); err != nil {
		t.Errorf("what runs may not go on: %v", err)
	}
	for _, part := range []Asked{{Why: "there is none"}, {Unmatched: []string{"npm"}}} {
		w.asked = part
		if _, whole, err := p.Rejudge(t.Context(), digest("web"), g, nil); whole || err != nil {
			t.Errorf("%+v is whole, %v", part, err)
		}
	}
}
