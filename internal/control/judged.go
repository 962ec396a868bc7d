package control

import (
	"maps"
	"slices"

	"github.com/kilnproject/kiln"
)

// Judgement is what was found when what runs in an environment was judged last:
// by what advisories said then and who had signed it, and by no other scanner.
type Judgement struct {
	Environment string
	// Findings are the advisories that were open, by the state of the release that
	// has them, live or parked, and by severity. A release that runs has an entry
	// for each severity. Where not all could be told they are no fewer than before.
	Findings map[kiln.ReleaseState]map[kiln.Severity]int
	// Services counts those of the live release by what the gates of its definition
	// say of their images. Of which nothing can be said, is unknown.
	Services map[kiln.Outcome]int
}

// Judgements are the last ones of all environments in which something runs, by
// name. It judges nothing, and waits for nothing.
func (c *Control) Judgements() []Judgement {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Judgement
	for _, name := range slices.Sorted(maps.Keys(c.found)) {
		if j := c.found[name].judged; len(j.Findings) > 0 {
			out = append(out, j)
		}
	}
	return out
}

// judgement counts what the answers say of a scene.
func judgement(s scene, answers map[kiln.Digest]answer, before Judgement) Judgement {
	out := Judgement{Environment: s.environment, Findings: map[kiln.ReleaseState]map[kiln.Severity]int{}, Services: map[kiln.Outcome]int{}}
	open, blind := map[kiln.ReleaseState]map[string]kiln.Severity{}, map[kiln.ReleaseState]bool{}
	for _, r := range s.running {
		a, ok := answers[r.judged]
		state := kiln.ReleaseParked
		if r.live {
			state = kiln.ReleaseLive
			out.Services[outcomeOf(a, ok)]++
		}
		blind[state] = blind[state] || !ok || !a.whole
		if open[state] == nil {
			open[state] = map[string]kiln.Severity{}
		}
		for _, f := range a.verdict.Findings {
			if f.Kind == kiln.FindingVulnerability && f.State == kiln.FindingOpen {
				open[state][f.ID] = f.Severity
			}
		}
	}
	for state, found := range open {
		counts := map[kiln.Severity]int{}
		for _, severity := range found {
			counts[severity]++
		}
		for _, severity := range kiln.Severities() {
			least := 0
			if blind[state] {
				least = before.Findings[state][severity]
			}
			counts[severity] = max(counts[severity], least)
		}
		out.Findings[state] = counts
	}
	return out
}

func outcomeOf(a answer, known bool) kiln.Outcome {
	if !known {
		return kiln.OutcomeUnknown
	}
	return a.verdict.Outcome
}
