package advisory

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	osv "github.com/ossf/osv-schema/bindings/go/osvschema"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// Bounds of a record.
const (
	maxRecord = 16 << 20 // bytes
	maxText   = 512      // bytes of a name, a version, a number
	maxTitle  = 200      // bytes of what is shown
	maxIDs    = 1000     // aliases of one record
	maxRows   = 50_000   // packages of one record
	maxShared = 64 << 20 // bytes: what a record says of all its packages is kept with each
)

// module is the name of whatever package is matched: names are compared when
// records are looked up, and versions by the matcher.
const module = "package"

// parsed is what a record says.
type parsed struct {
	id        string
	withdrawn bool
	rows      []row
}

// parseRecord reads a record of an ecosystem and keeps what a match needs. A
// record is refused when it is not in OSV's format, or says nothing of any
// package. Fields that a later version of the format has are passed over.
func parseRecord(ecosystem string, content []byte) (parsed, error) {
	v, withdrawn, err := decode(content)
	if err != nil {
		return parsed{}, fmt.Errorf("it is not in the OSV format: %w", err)
	}
	if !isID(v.GetId()) {
		return parsed{}, errors.New("it has no id, or not one of printable characters")
	}
	if len(v.GetAffected()) == 0 {
		return parsed{}, errors.New("it names nothing that is affected")
	}
	p := parsed{id: v.GetId(), withdrawn: withdrawn}
	rows, err := affectedRows(ecosystem, v)
	if err != nil || p.withdrawn { // what is withdrawn counts and never matches
		return p, err
	}
	p.rows = rows
	return p, nil
}

// decode reads the parts of a record that are kept. Of its times only whether
// there is one of withdrawal counts: databases write some that are none.
func decode(content []byte) (v *osv.Vulnerability, withdrawn bool, err error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(content, &all); err != nil {
		return nil, false, err
	}
	var when *string
	if b, ok := all["withdrawn"]; ok {
		if err := json.Unmarshal(b, &when); err != nil {
			return nil, false, fmt.Errorf("withdrawn: %w", err)
		}
	}
	maps.DeleteFunc(all, func(key string, _ json.RawMessage) bool {
		return !slices.Contains([]string{"id", "aliases", "upstream", "summary", "details", "severity", "affected", "database_specific"}, key)
	})
	kept, err := json.Marshal(all)
	if err != nil {
		return nil, false, err
	}
	v = &osv.Vulnerability{}
	err = protojson.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: 100}.Unmarshal(kept, v)
	return v, when != nil && *when != "", err
}

// affectedRows splits a record by the packages of the ecosystem that it names.
func affectedRows(ecosystem string, v *osv.Vulnerability) ([]row, error) {
	type key struct{ release, name string }
	var rows []row
	at := map[key]int{}
	for _, a := range v.GetAffected() {
		if a.GetPackage() == nil && hasGitOnly(a) {
			continue // it is about a repository
		}
		base, release, _ := strings.Cut(a.GetPackage().GetEcosystem(), ":")
		name := a.GetPackage().GetName()
		if !isText(base) || !isText(release) || !isText(name) || base == "" || name == "" {
			return nil, errors.New("it names a package without a name or an ecosystem, or one that is not text")
		}
		one, err := slimAffected(a)
		if err != nil {
			return nil, err
		}
		if base != ecosystem || ecosystem == "Go" && !onLinux(a) {
			continue
		}
		one.Package.Ecosystem = base
		k := key{releaseOf(base, release), nameOf(base, name)}
		i, ok := at[k]
		if !ok {
			if i = len(rows); i == maxRows {
				return nil, fmt.Errorf("it names more than %d packages", maxRows)
			}
			at[k] = i
			rows = append(rows, row{release: k.release, name: k.name, record: slim(v)})
		}
		rows[i].record.Affected = append(rows[i].record.Affected, one)
	}
	if len(rows)*proto.Size(slim(v)) > maxShared {
		return nil, fmt.Errorf("it has %d aliases, and names %d packages that each are kept with them", len(v.GetAliases())+len(v.GetUpstream()), len(rows))
	}
	return rows, nil
}

// slim keeps what is the same for all packages.
func slim(v *osv.Vulnerability) *osv.Vulnerability {
	s := &osv.Vulnerability{Id: v.GetId(), Summary: title(v), Severity: v.GetSeverity(), DatabaseSpecific: words(v.GetDatabaseSpecific())}
	s.Aliases, s.Upstream = ids(v.GetAliases()), ids(v.GetUpstream())
	return s
}

// slimAffected keeps versions and version ranges. Ranges of commits say nothing
// of a package's versions, and the matcher stops at the first one.
func slimAffected(a *osv.Affected) (*osv.Affected, error) {
	s := &osv.Affected{
		Package: &osv.Package{Name: module}, Versions: a.GetVersions(), Severity: a.GetSeverity(),
		DatabaseSpecific: words(a.GetDatabaseSpecific()), EcosystemSpecific: words(a.GetEcosystemSpecific()),
	}
	for _, r := range a.GetRanges() {
		if r.GetType() != osv.Range_ECOSYSTEM && r.GetType() != osv.Range_SEMVER {
			continue
		}
		for _, e := range r.GetEvents() {
			if !isText(e.GetIntroduced() + e.GetFixed() + e.GetLastAffected() + e.GetLimit()) {
				return nil, errors.New("it has a version that is too long or not text")
			}
		}
		s.Ranges = append(s.Ranges, &osv.Range{Type: r.GetType(), Events: r.GetEvents()})
	}
	for _, version := range s.Versions {
		if !isText(version) {
			return nil, errors.New("it has a version that is too long or not text")
		}
	}
	return s, nil
}

func hasGitOnly(a *osv.Affected) bool {
	return len(a.GetRanges()) > 0 && !slices.ContainsFunc(a.GetRanges(), func(r *osv.Range) bool { return r.GetType() != osv.Range_GIT })
}

// onLinux says whether a Go module is affected on Linux, where images run. The
// Go database names the systems by package.
func onLinux(a *osv.Affected) bool {
	imports := a.GetEcosystemSpecific().GetFields()["imports"].GetListValue().GetValues()
	for _, i := range imports {
		systems := i.GetStructValue().GetFields()["goos"].GetListValue().GetValues()
		if len(systems) == 0 || slices.ContainsFunc(systems, func(s *structpb.Value) bool { return s.GetStringValue() == "linux" }) {
			return true
		}
	}
	return len(imports) == 0
}

// words keeps a database's own words for how severe something is.
func words(from *structpb.Struct) *structpb.Struct {
	kept := map[string]*structpb.Value{}
	for _, key := range []string{"severity", "urgency"} {
		if word := from.GetFields()[key].GetStringValue(); word != "" && len(word) < maxText {
			kept[key] = structpb.NewStringValue(word)
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return &structpb.Struct{Fields: kept}
}

// releaseOf is a release as packages name it: long-term support says nothing
// about versions.
func releaseOf(base, release string) string {
	if base == "Ubuntu" {
		return strings.TrimSuffix(release, ":LTS")
	}
	return release
}

var separators = regexp.MustCompile(`[-_.]+`)

// nameOf is a name as it is looked up (for Python: PEP 503).
func nameOf(base, name string) string {
	if base == "PyPI" {
		return strings.ToLower(separators.ReplaceAllLiteralString(name, "-"))
	}
	return name
}

// ids keeps the numbers that are fit to be shown.
func ids(all []string) []string {
	var kept []string
	for _, id := range all {
		if isID(id) && len(kept) < maxIDs {
			kept = append(kept, id)
		}
	}
	return kept
}

func isID(id string) bool {
	return id != "" && len(id) <= 128 && !strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' })
}

func isText(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// title is the summary or, without one, the first sentence of the details.
func title(v *osv.Vulnerability) string {
	text := strings.TrimSpace(v.GetSummary())
	if text == "" {
		text = strings.TrimSpace(v.GetDetails())
		paragraph, _, _ := strings.Cut(text, "\n\n")
		text = strings.Join(strings.Fields(paragraph), " ")
		if end := strings.Index(text, ". "); end >= 0 {
			text = text[:end]
		}
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	text = strings.TrimSuffix(strings.Join(strings.Fields(text), " "), ".")
	if len(text) > maxTitle {
		text = strings.ToValidUTF8(text[:maxTitle-3], "") + "..."
	}
	return text
}
