package kiln

import (
	"slices"
	"time"
)

// Severity ranks a finding.
type Severity string

// The severities, the least first. SeverityUnknown has no rank: a gate has a
// policy of its own for it.
const (
	SeverityUnknown  Severity = "unknown"
	SeverityLow      Severity = "low"
	SeverityMedium   Severity = "medium"
	SeverityHigh     Severity = "high"
	SeverityCritical Severity = "critical"
)

// Severities are all of them, in order.
func Severities() []Severity {
	return []Severity{SeverityUnknown, SeverityLow, SeverityMedium, SeverityHigh, SeverityCritical}
}

// Rank orders severities: 0 is unknown, 4 critical, -1 none of them.
func (s Severity) Rank() int { return slices.Index(Severities(), s) }

// Package is one piece of software that an image contains.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// PURL is its package URL as its ecosystem writes it.
	PURL string `json:"purl"`
	// Ecosystem is the name that advisories in OSV use, with its release where
	// it has one: "Debian:12", "Go", "npm". Empty when no advisory can name it.
	Ecosystem string `json:"ecosystem,omitempty"`
	// Source and SourceVersion are what advisories go by where they differ from
	// Name and Version, as for Debian's source packages.
	Source        string `json:"source,omitempty"`
	SourceVersion string `json:"source_version,omitempty"`
	// Locations are absolute paths in the image, sorted.
	Locations []string `json:"locations"`
	// Layer is the digest of the layer that the first location came with.
	Layer    Digest   `json:"layer,omitempty"`
	Licenses []string `json:"licenses,omitempty"`
}

// Inventory is the software of an image: what its SBOM says.
type Inventory struct {
	Image    Digest    `json:"image"` // of the platform's manifest
	System   string    `json:"system,omitempty"`
	Packages []Package `json:"packages"` // sorted by PURL, then first location
}

// FindingKind is what found a finding.
type FindingKind string

// The kinds of findings.
const (
	FindingVulnerability FindingKind = "vulnerability" // an advisory about a package
	FindingLint          FindingKind = "lint"          // a rule about the image
	FindingScanner       FindingKind = "scanner"       // another scanner's
)

// FindingState is whether a finding counts.
type FindingState string

// The states of findings.
const (
	FindingOpen        FindingState = "open"
	FindingIgnored     FindingState = "ignored"      // by the gate, until a day, with a reason
	FindingNotAffected FindingState = "not_affected" // by an OpenVEX document
)

// Finding is one thing that is wrong with an image.
type Finding struct {
	// ID is the advisory's or the rule's: "GO-2023-2102", "lint/sshd".
	ID       string       `json:"id"`
	Kind     FindingKind  `json:"kind"`
	Aliases  []string     `json:"aliases,omitempty"` // sorted
	Severity Severity     `json:"severity"`
	State    FindingState `json:"state"`
	// Reason is why the state is not open, or why an open finding counts though
	// the gate names it, or does not: its ignore expired, nothing mends it.
	Reason string `json:"reason,omitempty"`
	// Fails is true where the gate fails because of it.
	Fails   bool   `json:"fails,omitempty"`
	Title   string `json:"title"` // one sentence without its stop
	Package string `json:"package,omitempty"`
	Version string `json:"version,omitempty"`
	PURL    string `json:"purl,omitempty"`
	Path    string `json:"path,omitempty"`  // absolute in the image
	Layer   Digest `json:"layer,omitempty"` // that brought it
	// FixedIn are versions of the package that are not affected, ascending.
	FixedIn []string `json:"fixed_in,omitempty"`
	// Change says what to do, in one sentence without its stop.
	Change string `json:"change,omitempty"`
	// Scanner is the program that found it, with the kind scanner.
	Scanner string `json:"scanner,omitempty"`
}

// GatePolicy says what a gate does with what it cannot judge.
type GatePolicy string

// The policies of a gate.
const (
	PolicyFail   GatePolicy = "fail"
	PolicyWarn   GatePolicy = "warn"
	PolicyIgnore GatePolicy = "ignore"
)

// Gate is what an image must be to run.
type Gate struct {
	FailOn  Severity   `json:"fail_on"` // the least severity that fails
	Unknown GatePolicy `json:"unknown"` // for findings of unknown severity
	// OnlyFixable lets vulnerabilities pass that no version mends.
	OnlyFixable bool `json:"only_fixable,omitempty"`
	// MaxDBAge is how old the database may be; 0 is any age.
	MaxDBAge time.Duration `json:"max_db_age,omitempty"`
	// NoDatabase says what happens where there is no database that can judge
	// the image: fail or warn.
	NoDatabase GatePolicy    `json:"no_database"`
	Ignore     []GateIgnore  `json:"ignore,omitempty"`   // sorted by ID
	Allow      []GateAllow   `json:"allow,omitempty"`    // sorted by rule, then path
	Scanners   []GateScanner `json:"scanners,omitempty"` // sorted by name
	// VEX are the paths of OpenVEX documents in the definition's folder, sorted.
	VEX []string `json:"vex,omitempty"`
	// SignedBy are names of keys of others, sorted, of which one must have signed
	// an image of a registry; none asks for no signature.
	SignedBy []string `json:"signed_by,omitempty"`
}

// DefaultGate is the gate of a definition that says nothing.
func DefaultGate() Gate {
	return Gate{FailOn: SeverityHigh, Unknown: PolicyWarn, NoDatabase: PolicyFail}
}

// GateIgnore lets one vulnerability pass for a while.
type GateIgnore struct {
	ID     string    `json:"id"`             // or one of its aliases
	Until  time.Time `json:"until,omitzero"` // the first moment at which it counts again; zero is never
	Reason string    `json:"reason"`
}

// GateAllow lets an image break a rule of the lint.
type GateAllow struct {
	Rule   string `json:"rule"`           // "lint/setuid"
	Path   string `json:"path,omitempty"` // a path of the image, or a pattern of path.Match; empty is all
	Reason string `json:"reason"`
}

// GateScanner asks another scanner, too.
type GateScanner struct {
	Name string `json:"name"` // "trivy" or "snyk"
	// FailOn is the least severity of its findings that fails; empty is the
	// gate's own.
	FailOn Severity `json:"fail_on,omitempty"`
}

// Outcome is how a judgement ended.
type Outcome string

// The outcomes. OutcomeUnknown means that nothing could be said, which lets
// nothing run.
const (
	OutcomePass    Outcome = "pass"
	OutcomeFail    Outcome = "fail"
	OutcomeUnknown Outcome = "unknown"
)

// Verdict is what a gate said of an image, and why.
type Verdict struct {
	Image   Digest  `json:"image"` // of the platform's manifest
	Outcome Outcome `json:"outcome"`
	// Reasons are sentences: what fails, what could not be told, what the gate
	// was told to let pass.
	Reasons []string `json:"reasons,omitempty"`
	// Hint is the command or the line that mends what Reasons says.
	Hint string `json:"hint,omitempty"`
	// Database names the advisories that were asked; empty for none.
	Database Digest    `json:"database,omitempty"`
	Dated    time.Time `json:"dated,omitzero"` // of the database
	Gate     Gate      `json:"gate"`
	// SignedBy are those of the names that the gate asks for whose keys signed the
	// image, sorted.
	SignedBy []string  `json:"signed_by,omitempty"`
	At       time.Time `json:"at"`
	Packages int       `json:"packages"` // that were judged
	Findings []Finding `json:"findings"` // the worst first
}

// ProveRequest asks that baked images be inventoried, judged and signed.
type ProveRequest struct {
	Images   []Image          // of the definition; each says its gate
	Services []Service        // of the definition: what they ask of the images
	Baked    map[string]Baked // by name
	Lock     Lock             // what the definition's references are pinned to
	Resolved Lock             // what they were resolved to, as far as that is known
	Source   Source
	// Definition is the digest of the definition's files, as a tree.
	Definition Digest
	// VEX are the documents that gates name, by path.
	VEX map[string][]byte
	// Progress is called from several goroutines; nil is allowed.
	Progress func(Progress)
}
