package advisory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/osv-scalibr/enricher/vulnmatch/osvlocal"
	"github.com/google/osv-scalibr/extractor"
	apkmeta "github.com/google/osv-scalibr/extractor/filesystem/os/apk/metadata"
	dpkgmeta "github.com/google/osv-scalibr/extractor/filesystem/os/dpkg/metadata"
	rpmmeta "github.com/google/osv-scalibr/extractor/filesystem/os/rpm/metadata"
	"github.com/google/osv-scalibr/purl"
	"github.com/google/osv-scalibr/semantic"
	osv "github.com/ossf/osv-schema/bindings/go/osvschema"
	"golang.org/x/mod/semver"

	"github.com/kilnproject/kiln"
)

// Result is what is known of packages.
type Result struct {
	// Findings are open ones, the worst first.
	Findings []kiln.Finding
	Database kiln.Digest // "" where there is none
	Dated    time.Time   // the oldest part that was asked; zero where none was
	// Missing are the ecosystems that packages need and the database has not.
	Missing []string
	// Unjudged are sentences: packages with advisories whose version says nothing.
	Unjudged []string
}

// ecosystems are the kinds of packages by the name that OSV has for them: what
// makes the matcher compare versions as that ecosystem does.
func ecosystems() map[string]extractor.Package {
	const release = "1" // any: records have none by then
	all := map[string]extractor.Package{
		"Alpine": {PURLType: purl.TypeApk, Metadata: &apkmeta.Metadata{OSID: "alpine", OSVersionID: release}},
		"Debian": {PURLType: purl.TypeDebian, Metadata: &dpkgmeta.Metadata{OSID: "debian", OSVersionID: release, PackageName: module}},
		"Ubuntu": {PURLType: purl.TypeDebian, Metadata: &dpkgmeta.Metadata{OSID: "ubuntu", OSVersionID: release, PackageName: module}},
	}
	for name, id := range map[string]string{"Wolfi": "wolfi", "Chainguard": "chainguard", "MinimOS": "minimos"} {
		all[name] = extractor.Package{PURLType: purl.TypeApk, Metadata: &apkmeta.Metadata{OSID: id, OSVersionID: release}}
	}
	for name, id := range map[string]string{
		"Red Hat": "rhel", "Rocky Linux": "rocky", "AlmaLinux": "almalinux", "SUSE": "sles", "openSUSE": "opensuse-leap", "Mageia": "mageia", "openEuler": "openEuler",
	} {
		all[name] = extractor.Package{PURLType: purl.TypeRPM, Metadata: &rpmmeta.Metadata{OSID: id, OSVersionID: release}}
	}
	for name, kind := range map[string]string{
		"Go": purl.TypeGolang, "npm": purl.TypeNPM, "PyPI": purl.TypePyPi, "Maven": purl.TypeMaven, "crates.io": purl.TypeCargo,
		"NuGet": purl.TypeNuget, "RubyGems": purl.TypeGem, "Packagist": purl.TypeComposer, "Pub": purl.TypePub,
	} {
		all[name] = extractor.Package{PURLType: kind}
	}
	return all
}

// Ecosystems are those that can be imported and matched, sorted.
func Ecosystems() []string { return slices.Sorted(maps.Keys(ecosystems())) }

// neutral is a package of an ecosystem for the matcher, nil for one that it
// knows no versions of.
func neutral(ecosystem string) *extractor.Package {
	p, ok := ecosystems()[ecosystem]
	if !ok {
		return nil
	}
	p.Name = module
	return &p
}

// Match looks packages up. Those without an ecosystem have no advisories.
func (db *DB) Match(ctx context.Context, packages []kiln.Package) (Result, error) {
	s := db.acquire()
	defer db.release(s)
	r := Result{Database: s.manifest.status().Digest, Findings: []kiln.Finding{}}
	byEcosystem := map[string][]kiln.Package{}
	for _, p := range packages {
		if base, _, _ := strings.Cut(p.Ecosystem, ":"); base != "" {
			byEcosystem[base] = append(byEcosystem[base], p)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byEcosystem)) {
		t := s.tables[name]
		if t == nil {
			r.Missing = append(r.Missing, name)
			continue
		}
		if dated := s.manifest.Ecosystems[name].Dated; r.Dated.IsZero() || dated.Before(r.Dated) {
			r.Dated = dated
		}
		kind := neutral(name)
		for _, p := range byEcosystem[name] {
			if err := r.judge(ctx, t, name, *kind, p); err != nil {
				return Result{}, err
			}
		}
	}
	slices.SortFunc(r.Findings, worstFirst)
	slices.Sort(r.Unjudged)
	return r, nil
}

// worstFirst orders findings for people, the same ones always the same way.
func worstFirst(a, b kiln.Finding) int {
	return cmp.Or(cmp.Compare(b.Severity.Rank(), a.Severity.Rank()), strings.Compare(a.Package, b.Package), strings.Compare(a.PURL, b.PURL), strings.Compare(a.ID, b.ID))
}

// judge adds what is known of one package. kind is a copy of its ecosystem's.
func (r *Result) judge(ctx context.Context, t *table, ecosystem string, kind extractor.Package, p kiln.Package) error {
	_, release, _ := strings.Cut(p.Ecosystem, ":")
	g, err := t.records(ctx, releaseOf(ecosystem, release), nameOf(ecosystem, cmp.Or(p.Source, p.Name)))
	if err != nil || len(g.records) == 0 {
		return err
	}
	kind.Version = cmp.Or(p.SourceVersion, p.Version)
	if !canCompare(ecosystem, &kind) {
		r.Unjudged = append(r.Unjudged, fmt.Sprintf("%s has the version %q, which cannot be compared with those of its advisories", p.Name, p.Version))
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	matched := affecting(g.records, &kind)
	for _, one := range merge(matched, g.records) {
		r.Findings = append(r.Findings, one.finding(ecosystem, kind, p))
	}
	return nil
}

// canCompare says whether a version can be compared, and writes it as the
// matcher wants it. A Go program built from a working tree has none.
func canCompare(ecosystem string, p *extractor.Package) bool {
	if ecosystem == "Go" {
		p.Version = strings.TrimPrefix(p.Version, "v")
		if part := toolchain.FindStringSubmatch(p.Version); part != nil { // as "1.27rc1" is written in advisories
			p.Version = part[1] + cmp.Or(part[2], ".0") + "-" + part[3]
		}
		return semver.IsValid("v" + p.Version)
	}
	_, err := semantic.Parse(p.Version, ecosystem)
	return err == nil && p.Version != ""
}

// toolchain is a version of Go that is not released yet.
var toolchain = regexp.MustCompile(`^(\d+\.\d+)(\.\d+)?((?:rc|beta)\d+)$`)

// affecting are the records that a version is affected by. A record whose
// versions the matcher cannot read is one: a false alarm is seen and a silence
// is not.
func affecting(records []*osv.Vulnerability, p *extractor.Package) []*osv.Vulnerability {
	var all []*osv.Vulnerability
	for _, v := range records {
		if affects(v, p) {
			all = append(all, v)
		}
	}
	return all
}

func affects(v *osv.Vulnerability, p *extractor.Package) (yes bool) {
	defer func() {
		if recover() != nil {
			yes = true
		}
	}()
	return len(osvlocal.VulnerabilitiesAffectingPackage([]*osv.Vulnerability{v}, p)) > 0
}
