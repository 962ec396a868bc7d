package kiln

// Verb is what a plan does. There are three; nothing is updated in place.
type Verb string

// The verbs of a plan.
const (
	VerbCreate  Verb = "create"
	VerbReplace Verb = "replace"
	VerbDestroy Verb = "destroy"
)

// Step is one line of a plan.
type Step struct {
	Verb    Verb    `json:"verb"`
	Service string  `json:"service"`
	Count   int     `json:"count"` // instances
	From    FleetID `json:"from,omitempty"`
	To      FleetID `json:"to,omitempty"`
	// Reasons, one a difference: "image: 3fa92c01bd77 -> 91c0ffee12ab".
	Reasons []string `json:"reasons"`
}
