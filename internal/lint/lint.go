// Package lint judges what an image adds over its base: files that give their
// reader or runner more than they should, programs that have no place in a final
// image, secrets in any layer, and what the definition says that the image
// cannot keep.
//
// It reads what it is handed (tar entries as streams, the flattened tree, the
// image's configuration) and opens, starts and asks nothing. What it reads may
// come from strangers: contents pass through a window of fixed size, and counts
// and lengths are bounded. It never shows a secret that it found.
package lint

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/kilnproject/kiln"
)

// maxFindings is how many findings of one rule are listed; one more says how
// many there are besides, which no path allows.
const maxFindings = 100

// maxPath bounds a path that is shown or remembered, in bytes.
const maxPath = 4096

// Rule is one rule of the lint.
type Rule struct {
	ID       string
	Severity kiln.Severity // high and critical fail by default
	Why      string        // one sentence
	Change   string        // what to do, one sentence without its stop
}

// The identifiers of the rules.
const (
	Compiler       = "lint/compiler"
	MutableBase    = "lint/mutable-base"
	PackageManager = "lint/package-manager"
	Probe          = "lint/probe"
	Secret         = "lint/secret"
	Setuid         = "lint/setuid"
	Shell          = "lint/shell"
	SSHD           = "lint/sshd"
	WorldWritable  = "lint/world-writable"
)

// Rules are all rules, by identifier.
func Rules() []Rule {
	return []Rule{
		{Compiler, kiln.SeverityLow, "A compiler lets whoever gets in make the tools that he needs there.", "build in one stage and copy the result into another with COPY --from"},
		{MutableBase, kiln.SeverityMedium, "A tag that no lock pins can mean another image tomorrow.", "write the digest, host/name@sha256:..., or commit kiln.lock"},
		{PackageManager, kiln.SeverityLow, "A package manager in what never changes serves only who breaks in.", "install in one stage and copy the result into another, or remove it in the same RUN"},
		{Probe, kiln.SeverityMedium, "A service whose check the image cannot answer never becomes ready, and its release is rolled back.", "put the program into the image, or name another"},
		{Secret, kiln.SeverityCritical, "Whoever can read the image has the secret, and a later layer that deletes it hides nothing.", "revoke it, bake without it, and hand it over when it runs"},
		{Setuid, kiln.SeverityMedium, "A set-user-id or set-group-id file runs with its owner's rights, whoever starts it.", "remove the bit with chmod a-s, or the file"},
		{Shell, kiln.SeverityLow, "A shell is what most attacks run first.", "build on a base without one, and start the program itself"},
		{SSHD, kiln.SeverityHigh, "What runs is replaced, never logged in to: an SSH daemon is a way in that nothing needs.", "remove the SSH daemon"},
		{WorldWritable, kiln.SeverityMedium, "Everybody may write to it, so that any process can put something in another's way.", "remove the bit with chmod o-w, or for a folder that all share set the sticky bit, too"},
	}
}

// Lint gathers what the rules find in one image. It is not for use by several
// goroutines at once.
type Lint struct {
	rules    map[string]Rule
	found    map[finding]kiln.Finding
	count    map[string]int // of a rule, those that are not listed included
	added    map[kiln.Digest]bool
	layer    kiln.Digest
	judging  bool      // the present layer
	secrets  *searcher // made when something is searched: it takes its time
	contents int64     // bytes read

	maxContents int64
	maxFiles    int
}

// finding is what makes two findings one.
type finding struct {
	rule, what, path string
	layer            kiln.Digest
}

// New returns a lint that has seen nothing.
func New() *Lint {
	l := &Lint{
		rules: map[string]Rule{}, found: map[finding]kiln.Finding{}, count: map[string]int{},
		added: map[kiln.Digest]bool{}, maxContents: maxContents, maxFiles: maxFiles,
	}
	for _, r := range Rules() {
		l.rules[r.ID] = r
	}
	return l
}

// Layer begins a layer: the entries that follow are its. A layer that the image
// added is judged; one of its base is not.
func (l *Lint) Layer(digest kiln.Digest, added bool) {
	l.layer, l.judging = digest, added
	if added {
		l.added[digest] = true
	}
}

// Findings are what was found, sorted by rule, path, title and layer.
func (l *Lint) Findings() []kiln.Finding {
	var out []kiln.Finding
	listed := map[string]int{}
	for _, f := range l.found {
		out = append(out, f)
		listed[f.ID]++
	}
	for id, n := range l.count {
		if more := n - listed[id]; more > 0 {
			out = append(out, l.rules[id].finding(fmt.Sprintf("and %d more of the kind", more), "", ""))
		}
	}
	slices.SortFunc(out, func(a, b kiln.Finding) int {
		return cmp.Or(strings.Compare(a.ID, b.ID), strings.Compare(a.Path, b.Path), strings.Compare(a.Title, b.Title), cmp.Compare(a.Layer, b.Layer))
	})
	return out
}

// add notes a finding; what is one sentence without its stop.
func (l *Lint) add(rule, what, at string, layer kiln.Digest) {
	key := finding{rule, what, at, layer}
	if _, ok := l.found[key]; ok {
		return
	}
	if l.count[rule]++; l.count[rule] > maxFindings {
		return
	}
	l.found[key] = l.rules[rule].finding(what, at, layer)
}

func (r Rule) finding(what, at string, layer kiln.Digest) kiln.Finding {
	return kiln.Finding{
		ID: r.ID, Kind: kiln.FindingLint, Severity: r.Severity, State: kiln.FindingOpen,
		Title: what, Path: at, Layer: layer, Change: r.Change,
	}
}

// clean makes an absolute path of a tar entry's name, fit to be shown.
func clean(name string) string { return printable(rooted(name)) }

// printable bounds a text of the image and takes out what would move a
// terminal's cursor.
func printable(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), maxPath)], "\uFFFD")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}
