package kiln

import "time"

// LedgerReport is what a verification of the ledger found.
type LedgerReport struct {
	Events int64 `json:"events"` // entries of the chain that were checked
	Rows   int64 `json:"rows"`   // releases, rollouts, instances, settings and the like
	// Tip is the number and the hash of the last entry, "4711:<64 hex digits>".
	// It stands for the whole history: who keeps it elsewhere can find out
	// later whether what it stands for is still the same.
	Tip    string        `json:"tip"`
	Faults []LedgerFault `json:"faults,omitempty"` // the first 100
	More   int           `json:"more,omitempty"`   // faults beyond those
	// Damage is the digest of all faults, empty without any.
	Damage Digest        `json:"damage,omitempty"`
	Notes  []string      `json:"notes,omitempty"` // sentences: what was pruned, what was accepted
	Took   time.Duration `json:"took"`
}

// LedgerFault is a record that is not what was written.
type LedgerFault struct {
	Record  string `json:"record"` // "event 42", "release 3 of production"
	Problem string `json:"problem"`
}
