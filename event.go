package kiln

import "time"

// Event is one line of an environment's history.
type Event struct {
	Sequence    int64     `json:"sequence,omitempty"` // given by the ledger, from 1
	At          time.Time `json:"at"`
	Environment string    `json:"environment,omitempty"`
	// Kind is "noun.verb": "instance.died", "release.live", "egress.blocked".
	Kind string `json:"kind"`
	// Subject is what it happened to: an instance, a service, "release 4".
	Subject string `json:"subject"`
	Message string `json:"message"` // one sentence
	Actor   string `json:"actor,omitempty"`
	// Data holds the evidence, by name.
	Data map[string]string `json:"data,omitempty"`
}
