package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// findings are what is wrong with what runs in one environment: what was told,
// so that it is told once. The ledger has it, and the events with it.
type findings struct {
	Known map[string]finding `json:"known,omitempty"` // by identifier

	policy kiln.Environment // of the live release's definition
	judged Judgement        // what was found last; the zero value before
}

// finding is a vulnerability that the gate would let nothing start with.
type finding struct {
	Severity kiln.Severity `json:"severity"`
	Package  string        `json:"package,omitempty"`
	Version  string        `json:"version,omitempty"`
	FixedIn  []string      `json:"fixed_in,omitempty"`
	Reason   string        `json:"reason,omitempty"`
	Live     []string      `json:"live,omitempty"`   // services of the live release, sorted
	Parked   []string      `json:"parked,omitempty"` // of the parked one
	Since    time.Time     `json:"since"`
}

// findingsOf is the setting that remembers them.
func findingsOf(name string) string { return "findings/" + name }

// add notes that a service has a finding.
func (s *findings) add(f kiln.Finding, r running) {
	one, ok := s.Known[f.ID]
	if !ok {
		one = finding{Severity: f.Severity, Package: f.Package, Version: f.Version, FixedIn: f.FixedIn, Reason: f.Reason}
	}
	if r.live {
		one.Live = insert(one.Live, r.service)
	} else {
		one.Parked = insert(one.Parked, r.service)
	}
	s.Known[f.ID] = one
}

// open are the identifiers of those that the live release has, sorted.
func (s findings) open() []string {
	return slices.DeleteFunc(sortedKeys(s.Known), func(id string) bool { return len(s.Known[id].Live) == 0 })
}

// fixable are those of them that a version mends.
func (s findings) fixable() []string {
	return slices.DeleteFunc(s.open(), func(id string) bool { return len(s.Known[id].FixedIn) == 0 })
}

// shownFindings is how many findings a status names.
const shownFindings = 5

// problems are sentences about them for a status.
func (s findings) problems(environment string) []string {
	open := s.open()
	slices.SortStableFunc(open, func(a, b string) int { return s.Known[b].Severity.Rank() - s.Known[a].Severity.Rank() })
	var out []string
	for i, id := range open {
		if i == shownFindings {
			out = append(out, fmt.Sprintf("%d more findings: kiln events %s", len(open)-i, environment))
			break
		}
		text := s.Known[id].sentence(id)
		if len(s.Known[id].FixedIn) > 0 {
			text += ": kiln repave " + environment
		}
		out = append(out, text)
	}
	return out
}

// sentence says what was found where.
func (f finding) sentence(id string) string {
	where := "service " + listed(f.Live)
	switch {
	case len(f.Live) == 0:
		where = "service " + listed(f.Parked) + " of the parked release"
	case len(f.Live) > 1:
		where = "services " + listed(f.Live)
	}
	text := fmt.Sprintf("%s (%s) is in %s", id, f.Severity, where)
	if f.Package != "" {
		text += ", by " + strings.TrimSpace(f.Package+" "+f.Version)
	}
	if len(f.FixedIn) > 0 {
		text += ", fixed in " + f.FixedIn[0]
	}
	if f.Reason != "" {
		text += ", " + f.Reason
	}
	return text
}

func (f finding) event(environment, kind, id string, at time.Time, message string) kiln.Event {
	return kiln.Event{
		At: at, Environment: environment, Kind: kind, Subject: id, Message: message,
		Data: map[string]string{
			"finding": id, "severity": string(f.Severity), "package": f.Package, "version": f.Version,
			"fixed_in": strings.Join(f.FixedIn, " "), "services": strings.Join(f.Live, " "), "parked_services": strings.Join(f.Parked, " "),
		},
	}
}

// remembersFindings reads what was told before, until it can be read.
func (c *Control) remembersFindings(ctx context.Context) {
	for {
		err := c.readFindings(ctx)
		if c.complain(ctx, "what was found before could not be read", "", err); err == nil {
			return
		}
		if pause(ctx, rescanLook) != nil {
			return
		}
	}
}

func (c *Control) readFindings(ctx context.Context) error {
	names, err := c.ledger.Environments(ctx)
	if err != nil {
		return fmt.Errorf("list the environments: %w", err)
	}
	for _, name := range names {
		var s findings
		if err := c.setting(ctx, findingsOf(name), &s); err != nil {
			return err
		}
		c.setFindings(name, s)
	}
	return nil
}

// findings are those of an environment.
func (c *Control) findings(name string) findings {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.found[name]
}

func (c *Control) setFindings(name string, s findings) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.found[name] = s
}

// noteFindings records them with the events that tell of them, where something
// changed.
func (c *Control) noteFindings(ctx context.Context, name string, s findings, events []kiln.Event) error {
	before, err := json.Marshal(c.findings(name))
	if err != nil {
		return err
	}
	after, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if len(events) > 0 || string(before) != string(after) {
		if err := c.ledger.Commit(ctx, kiln.Record{Events: events, Settings: map[string][]byte{findingsOf(name): after}}); err != nil {
			return fmt.Errorf("record what was found in %s: %w", name, err)
		}
	}
	c.setFindings(name, s)
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// asError is an error as what a user is shown; nil for none.
func asError(err error) *kiln.Error {
	if err == nil {
		return nil
	}
	if shown := (*kiln.Error)(nil); errors.As(err, &shown) {
		return shown
	}
	return kiln.Errorf(kiln.CodeInternal, "kilnd.log in the data directory may say more", "%w", err)
}
