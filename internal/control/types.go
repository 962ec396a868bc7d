package control

import (
	"encoding/json"
	"time"

	"github.com/kilnproject/kiln"
)

// UpRequest asks for an environment to become what a tree says. The tree's
// blobs are in the store already.
type UpRequest struct {
	Environment string                     `json:"environment"` // empty means the definition's only one
	Tree        kiln.Tree                  `json:"tree"`
	Source      kiln.Source                `json:"source"`
	Values      map[string]json.RawMessage `json:"values,omitempty"` // variables, by name, as JSON
	Locked      bool                       `json:"locked,omitempty"`
	// Again applies what was condemned once more.
	Again bool   `json:"again,omitempty"`
	Actor string `json:"-"` // from the connection's credentials
	// Reach is the environments that the actor may change.
	Reach kiln.Reach `json:"-"`
}

// UpResult is how it ended.
type UpResult struct {
	Environment string       `json:"environment"`
	Release     kiln.Release `json:"release"`
	// Nothing is true when the live release is the same already.
	Nothing bool                  `json:"nothing"`
	Images  map[string]kiln.Baked `json:"images"`
	// Verdicts are what the gates said, by image.
	Verdicts map[string]kiln.Verdict `json:"verdicts,omitempty"`
	Steps    []kiln.Step             `json:"steps"`
	URLs     []string                `json:"urls"`
	Warnings []kiln.Diagnostic       `json:"warnings,omitempty"`
	// Lock is what kiln.lock must say; the client writes it when it differs.
	Lock kiln.Lock `json:"lock"`
	// Overlay says where a repave pinned something else than kiln.lock did, one
	// sentence each. Lock has it.
	Overlay []string      `json:"overlay,omitempty"`
	Took    time.Duration `json:"took"`
	// Phases says where the time went: "bake", "prove", "seal", "start", "verify", "switch".
	Phases map[string]time.Duration `json:"phases"`
}

// BakeResult is what a bake without a release made.
type BakeResult struct {
	Images   map[string]kiln.Baked   `json:"images"`
	Verdicts map[string]kiln.Verdict `json:"verdicts,omitempty"`
	Bundle   kiln.Digest             `json:"bundle"`
	Lock     kiln.Lock               `json:"lock"`
	Overlay  []string                `json:"overlay,omitempty"` // as of an UpResult
}

// PlanResult is what Up would do.
type PlanResult struct {
	Environment string `json:"environment"`
	// Live is the number of the live release, 0 for none.
	Live  int         `json:"live"`
	Steps []kiln.Step `json:"steps"`
	// Bakes are the images whose inputs have not been baked, with the reason.
	Bakes []PlannedBake `json:"bakes,omitempty"`
	// Verdicts are what the gates say of the images that were inventoried before.
	Verdicts map[string]kiln.Verdict `json:"verdicts,omitempty"`
	// Images are those that are baked already and that the live release has
	// otherwise, with packages and findings.
	Images []kiln.ImageChange `json:"images,omitempty"`
	// Overlay says where a repave pinned something else than kiln.lock does.
	Overlay []string `json:"overlay,omitempty"`
	// Routes are the changes of routes, one sentence each.
	Routes []string `json:"routes,omitempty"`
	// Release is why Up would make a release although it replaces nothing and
	// changes no route.
	Release string `json:"release,omitempty"`
	// Refused is what Up would be refused with.
	Refused *kiln.Error `json:"refused,omitempty"`
}

// PlannedBake is an image that Up would bake.
type PlannedBake struct {
	Image  string `json:"image"`
	Reason string `json:"reason"`
}

// RollbackRequest asks for an earlier release; 0 means the one before.
type RollbackRequest struct {
	Environment string `json:"environment"`
	Release     int    `json:"release,omitempty"`
	// From is the release that must be live, or being rolled out, so that a
	// request that arrives twice goes back once; 0 is any.
	From  int        `json:"from,omitempty"`
	Actor string     `json:"-"`
	Reach kiln.Reach `json:"-"` // the environments that the actor may change
}

// RollbackResult is how it ended.
type RollbackResult struct {
	From   int  `json:"from"`
	To     int  `json:"to"`
	Parked bool `json:"parked"` // it was one swap
	// CalledOff means that From was still being rolled out: it never was live,
	// and To, 0 for none, serves as before.
	CalledOff bool          `json:"called_off,omitempty"`
	Took      time.Duration `json:"took"`
	URLs      []string      `json:"urls"`
}

// RepaveRequest asks for environments to be baked again from what their bases
// are now, and rolled out where that changes an image.
type RepaveRequest struct {
	Environments []string `json:"environments,omitempty"` // empty means all within reach that run
	// Finding repaves only where an image that runs has it, by its identifier or
	// an alias, and only where the new image has not.
	Finding string     `json:"finding,omitempty"`
	Plan    bool       `json:"plan,omitempty"` // says what would be done
	Actor   string     `json:"-"`
	Reach   kiln.Reach `json:"-"` // the environments that the actor may change
}

// RepaveResult is how it ended, by environment.
type RepaveResult struct {
	Environments []Repaved `json:"environments"`
}

// RepaveOutcome is what became of one environment.
type RepaveOutcome string

// The outcomes of a repave.
const (
	RepaveDone    RepaveOutcome = "repaved"
	RepavePlanned RepaveOutcome = "planned" // it would be baked again
	RepaveNothing RepaveOutcome = "nothing" // nothing newer, or the same images
	RepaveKept    RepaveOutcome = "kept"    // the new images would not help
	RepaveFailed  RepaveOutcome = "failed"
)

// Repaved is how a repave of one environment ended.
type Repaved struct {
	Environment string        `json:"environment"`
	Outcome     RepaveOutcome `json:"outcome"`
	// Reason is why nothing was changed, a sentence without its stop.
	Reason  string `json:"reason,omitempty"`
	From    int    `json:"from"`              // the release that was live
	Release int    `json:"release,omitempty"` // the new one
	// Pins are what moved forward in the lock, one sentence each.
	Pins []string `json:"pins,omitempty"`
	// Bakes are the images that would be baked, of a plan.
	Bakes []PlannedBake `json:"bakes,omitempty"`
	Steps []kiln.Step   `json:"steps,omitempty"`
	// Before and After count the vulnerabilities of the images of the old and of
	// the new release; nil where that is not known.
	Before *FindingCount `json:"before,omitempty"`
	After  *FindingCount `json:"after,omitempty"`
	URLs   []string      `json:"urls,omitempty"`
	Took   time.Duration `json:"took"`
	Error  *kiln.Error   `json:"error,omitempty"` // of a failed one
}

// FindingCount counts the vulnerabilities of a release's images, each once.
type FindingCount struct {
	Failing int `json:"failing"` // a gate fails because of them
	Open    int `json:"open"`    // those included
}

// Status is all environments at a glance.
type Status struct {
	Version      string              `json:"version"`
	StartedAt    time.Time           `json:"started_at"`
	Environments []EnvironmentStatus `json:"environments"`
	// Problems are sentences about the control plane itself.
	Problems []string `json:"problems,omitempty"`
}

// EnvironmentStatus is one environment at a glance.
type EnvironmentStatus struct {
	Name        string          `json:"name"`
	Live        *kiln.Release   `json:"live,omitempty"`
	Parked      *kiln.Release   `json:"parked,omitempty"`
	ParkedUntil time.Time       `json:"parked_until,omitzero"`
	Rollout     *RolloutStatus  `json:"rollout,omitempty"` // the one that runs
	Services    []ServiceStatus `json:"services"`
	URLs        []string        `json:"urls"`
	// Problems are sentences about what is not as it should be.
	Problems []string `json:"problems,omitempty"`
}

// ServiceStatus is one service of the live release.
type ServiceStatus struct {
	Name    string       `json:"name"`
	Fleet   kiln.FleetID `json:"fleet"`
	Image   kiln.Digest  `json:"image"`
	Desired int          `json:"desired"`
	Ready   int          `json:"ready"`
	Running int          `json:"running"`
	// Deaths of late that were the instances' own.
	Deaths int `json:"deaths"`
}

// RolloutStatus is a rollout that runs.
type RolloutStatus struct {
	From      int       `json:"from"` // 0 for none
	To        int       `json:"to"`
	Step      string    `json:"step"`
	StartedAt time.Time `json:"started_at"`
}

// EventQuery selects events.
type EventQuery struct {
	Environment string // empty for all, and those of no environment
	Reach       kiln.Reach
	After       int64 // sequence
	Last        int   // the newest so many; 0 for all
	Follow      bool
}

// DownRequest asks for the end of an environment. Its releases are kept.
type DownRequest struct {
	Environment string     `json:"environment"`
	Actor       string     `json:"-"`
	Reach       kiln.Reach `json:"-"` // the environments that the actor may change
}

// ScanRequest asks what gates say of images as they are now.
type ScanRequest struct {
	Subjects []string
	// Platform chooses of an index: "linux/amd64"; the machine's when empty.
	Platform string
	// FailOn is the least severity that fails; empty is as the gates have it.
	FailOn kiln.Severity
	// NoDatabase lets pass what no database can judge.
	NoDatabase bool
	Reach      kiln.Reach
	// Whole allows the digests of images that are of no environment to who may
	// see some environments alone.
	Whole bool
}

// ScanResult is what gates say.
type ScanResult struct {
	Images []Scanned `json:"images"`
}

// Scanned is what a gate says of one image.
type Scanned struct {
	Subject string       `json:"subject"` // as it was asked for
	Name    string       `json:"name"`    // of the image, as far as it is known
	Verdict kiln.Verdict `json:"verdict"`
}

// InventoryRequest asks what is in one image.
type InventoryRequest struct {
	Subject  string
	Platform string
	Reach    kiln.Reach
	Whole    bool
}

// Described is what is in one image.
type Described struct {
	Name      string
	Inventory kiln.Inventory
}

// Advisories is what is known of vulnerabilities.
type Advisories struct {
	// Digest names all of it; empty where there is nothing.
	Digest     kiln.Digest         `json:"digest"`
	Dated      time.Time           `json:"dated,omitzero"` // the oldest of the ecosystems'
	Ecosystems []AdvisoryEcosystem `json:"ecosystems"`     // by name
	// Failed is why the last update did not work, and FailedAt when; empty when
	// it did.
	Failed   string    `json:"failed,omitempty"`
	FailedAt time.Time `json:"failed_at,omitzero"`
}

// AdvisoryEcosystem is what is known of one ecosystem.
type AdvisoryEcosystem struct {
	Name      string      `json:"name"` // "Debian", "Go"
	Digest    kiln.Digest `json:"digest"`
	Records   int         `json:"records"`
	Withdrawn int         `json:"withdrawn"` // of them
	Dated     time.Time   `json:"dated"`     // when the source had nothing newer
	From      string      `json:"from"`      // an URL, "bundle" or "file"
}
