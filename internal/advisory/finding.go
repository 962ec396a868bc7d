package advisory

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/google/osv-scalibr/extractor"
	"github.com/google/osv-scalibr/semantic"
	osv "github.com/ossf/osv-schema/bindings/go/osvschema"
	"github.com/pandatix/go-cvss/20"
	"github.com/pandatix/go-cvss/30"
	"github.com/pandatix/go-cvss/31"
	"github.com/pandatix/go-cvss/40"

	"github.com/kilnproject/kiln"
)

// vulnerability is one thing that is wrong, as all databases tell it.
type vulnerability struct {
	records []*osv.Vulnerability // that match the version
	told    []*osv.Vulnerability // all that tell of it, also of other versions
	ids     map[string]bool
}

// merge joins the records that are about the same thing. all are the records
// of the package: what does not match this version may still tell how severe
// the thing is.
func merge(matched, all []*osv.Vulnerability) []*vulnerability {
	var found []*vulnerability
	var bulletins []*osv.Vulnerability
	for _, v := range matched {
		if len(v.GetUpstream())+len(v.GetAliases()) > 1 && isBulletin(v) {
			bulletins = append(bulletins, v)
			continue
		}
		found = join(found, v)
	}
	for _, v := range bulletins {
		found = attach(found, v)
	}
	for _, one := range found {
		for _, v := range all {
			if slices.ContainsFunc(names(v), func(id string) bool { return one.ids[id] }) {
				one.told = append(one.told, v)
			}
		}
	}
	return found
}

// isBulletin tells a distribution's announcement, which may be about several
// things at once.
func isBulletin(v *osv.Vulnerability) bool {
	prefix, _, _ := strings.Cut(v.GetId(), "-")
	return slices.Contains([]string{"DSA", "DLA", "DTSA", "USN", "RHSA", "RLSA", "ALSA", "SUSE", "openSUSE", "MGASA", "OESA"}, prefix)
}

// names are all numbers of what a record is about.
func names(v *osv.Vulnerability) []string {
	all := append([]string{v.GetId()}, v.GetAliases()...)
	if len(v.GetUpstream()) == 1 { // a distribution's record of one thing
		all = append(all, v.GetUpstream()...)
	}
	return all
}

// join adds a record to what shares a number with it.
func join(found []*vulnerability, v *osv.Vulnerability) []*vulnerability {
	one := &vulnerability{records: []*osv.Vulnerability{v}, ids: map[string]bool{}}
	for _, id := range names(v) {
		one.ids[id] = true
	}
	rest := found[:0:0]
	for _, other := range found {
		if !shares(one.ids, other.ids) {
			rest = append(rest, other)
			continue
		}
		one.records = append(other.records, one.records...)
		maps.Copy(one.ids, other.ids)
	}
	return append(rest, one)
}

func shares(a, b map[string]bool) bool {
	for id := range a {
		if b[id] {
			return true
		}
	}
	return false
}

// attach names a bulletin beside the things that it is about. When one of them
// has no record of its own, the bulletin is a finding.
func attach(found []*vulnerability, v *osv.Vulnerability) []*vulnerability {
	about := append(slices.Clone(v.GetAliases()), v.GetUpstream()...)
	covered := map[string]bool{}
	var those []*vulnerability
	for _, one := range found {
		hit := false
		for _, id := range about {
			if one.ids[id] {
				covered[id], hit = true, true
			}
		}
		if hit {
			those = append(those, one)
		}
	}
	if slices.ContainsFunc(about, func(id string) bool { return !covered[id] }) {
		one := &vulnerability{records: []*osv.Vulnerability{v}, ids: map[string]bool{v.GetId(): true}}
		for _, id := range about {
			one.ids[id] = true
		}
		return append(found, one)
	}
	for _, one := range those {
		one.records = append(one.records, v)
		one.ids[v.GetId()] = true
	}
	return found
}

// finding tells of a vulnerability in a package.
func (one *vulnerability) finding(ecosystem string, kind extractor.Package, p kiln.Package) kiln.Finding {
	first := slices.MinFunc(one.records, func(a, b *osv.Vulnerability) int {
		return cmp.Or(cmp.Compare(rank(a.GetId()), rank(b.GetId())), strings.Compare(a.GetId(), b.GetId()))
	})
	f := kiln.Finding{
		ID: first.GetId(), Kind: kiln.FindingVulnerability, State: kiln.FindingOpen, Severity: severity(one.told),
		Package: p.Name, Version: p.Version, PURL: p.PURL, Layer: p.Layer, FixedIn: one.fixed(ecosystem, kind),
	}
	delete(one.ids, f.ID)
	f.Aliases = slices.Sorted(maps.Keys(one.ids))
	if len(p.Locations) > 0 {
		f.Path = p.Locations[0]
	}
	for _, v := range append([]*osv.Vulnerability{first}, one.told...) {
		f.Title = cmp.Or(f.Title, v.GetSummary())
	}
	f.Title = cmp.Or(f.Title, f.ID)
	if ecosystem == "Go" && p.Name != "stdlib" && p.Name != "toolchain" {
		for i, v := range f.FixedIn {
			f.FixedIn[i] = "v" + v
		}
	}
	f.Change = change(f)
	return f
}

// change says what to do about a finding.
func change(f kiln.Finding) string {
	switch {
	case len(f.FixedIn) == 0:
		return "no version mends it: do without " + f.Package + ", or ignore the finding with a reason"
	case f.Package == "stdlib" && strings.HasPrefix(f.PURL, "pkg:golang/stdlib"):
		return "build with Go " + f.FixedIn[0]
	}
	return "upgrade " + f.Package + " to " + f.FixedIn[0]
}

// rank orders databases: the first one's number is the finding's.
func rank(id string) int {
	for i, prefix := range []string{"GO-", "PYSEC-", "RUSTSEC-", "GHSA-", "CVE-"} {
		if strings.HasPrefix(id, prefix) {
			return i
		}
	}
	if strings.Contains(id, "-CVE-") { // a distribution's record of one thing
		return 5
	}
	return 6
}

// fixed are the versions that the records say mend it, above the present one,
// and that none of them affects.
func (one *vulnerability) fixed(ecosystem string, p extractor.Package) []string {
	present, err := semantic.Parse(p.Version, ecosystem)
	if err != nil {
		return nil
	}
	var all []string
	for _, v := range one.records {
		for _, a := range v.GetAffected() {
			for _, r := range a.GetRanges() {
				for _, e := range r.GetEvents() {
					if e.GetFixed() != "" && newer(present, e.GetFixed()) {
						all = append(all, e.GetFixed())
					}
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b string) int { return compare(ecosystem, a, b) })
	all = slices.Compact(all)
	return slices.DeleteFunc(all, func(version string) bool {
		p.Version = version
		return len(affecting(one.records, &p)) > 0
	})
}

func newer(than semantic.Version, version string) bool {
	order, err := than.CompareStr(version)
	return err == nil && order < 0
}

// compare orders versions of an ecosystem; those that are none come last.
func compare(ecosystem, a, b string) int {
	v, err := semantic.Parse(a, ecosystem)
	if err != nil {
		return 1
	}
	order, err := v.CompareStr(b)
	if err != nil {
		return -1
	}
	return order
}

// severity is the worst that the records' vectors give; without one, the
// database's own word; without that, the distribution's urgency.
func severity(records []*osv.Vulnerability) kiln.Severity {
	worst := kiln.SeverityUnknown
	raise := func(s kiln.Severity) {
		if s.Rank() > worst.Rank() {
			worst = s
		}
	}
	for _, v := range records {
		for _, s := range v.GetSeverity() {
			raise(rating(s.GetScore()))
		}
		for _, a := range v.GetAffected() {
			for _, s := range a.GetSeverity() {
				raise(rating(s.GetScore()))
			}
		}
	}
	for _, key := range []string{"severity", "urgency"} {
		if worst != kiln.SeverityUnknown {
			break
		}
		for _, v := range records {
			raise(word(v.GetDatabaseSpecific().GetFields()[key].GetStringValue()))
			for _, a := range v.GetAffected() {
				raise(word(a.GetDatabaseSpecific().GetFields()[key].GetStringValue()))
				raise(word(a.GetEcosystemSpecific().GetFields()[key].GetStringValue()))
			}
		}
	}
	return worst
}

// rating is what a CVSS vector amounts to, unknown for what is none.
func rating(vector string) kiln.Severity {
	switch {
	case strings.HasPrefix(vector, "CVSS:4.0/"):
		if v, err := gocvss40.ParseVector(vector); err == nil {
			return scored(v.Score(), 9)
		}
	case strings.HasPrefix(vector, "CVSS:3.1/"):
		if v, err := gocvss31.ParseVector(vector); err == nil {
			return scored(v.BaseScore(), 9)
		}
	case strings.HasPrefix(vector, "CVSS:3.0/"):
		if v, err := gocvss30.ParseVector(vector); err == nil {
			return scored(v.BaseScore(), 9)
		}
	default:
		if v, err := gocvss20.ParseVector(vector); err == nil {
			return scored(v.BaseScore(), 11) // version 2 has no word above high
		}
	}
	return kiln.SeverityUnknown
}

// scored is the word for a score of 0 to 10 (CVSS specification, section
// "Qualitative Severity Rating Scale"; NVD's for version 2).
func scored(score, critical float64) kiln.Severity {
	switch {
	case score >= critical:
		return kiln.SeverityCritical
	case score >= 7:
		return kiln.SeverityHigh
	case score >= 4:
		return kiln.SeverityMedium
	}
	return kiln.SeverityLow
}

// word is what a database's own word means.
func word(s string) kiln.Severity {
	switch strings.ToLower(strings.TrimRight(s, "*")) {
	case "critical":
		return kiln.SeverityCritical
	case "high", "important":
		return kiln.SeverityHigh
	case "medium", "moderate":
		return kiln.SeverityMedium
	case "low", "unimportant", "negligible", "minor":
		return kiln.SeverityLow
	}
	return kiln.SeverityUnknown
}
