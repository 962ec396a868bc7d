package scan

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/osv-scalibr/extractor"
	apkmeta "github.com/google/osv-scalibr/extractor/filesystem/os/apk/metadata"
	dpkgmeta "github.com/google/osv-scalibr/extractor/filesystem/os/dpkg/metadata"
	rpmmeta "github.com/google/osv-scalibr/extractor/filesystem/os/rpm/metadata"
	"github.com/package-url/packageurl-go"

	"github.com/kilnproject/kiln"
)

// packageOf describes what an extractor found, false for what is no package: a
// name or version that is empty, too long or not text.
func packageOf(f *extractor.Package) (kiln.Package, bool) {
	p := kiln.Package{Name: f.Name, Version: f.Version, Ecosystem: f.Ecosystem().String(), Licenses: licenses(f.Licenses), Locations: locations(f)}
	url := f.PURL()
	if url == nil {
		return p, false
	}
	u := packageurl.PackageURL{Type: url.Type, Namespace: url.Namespace, Name: url.Name, Version: url.Version, Subpath: url.Subpath}
	switch m := f.Metadata.(type) {
	case *dpkgmeta.Metadata:
		p.Source, p.SourceVersion = m.SourceName, m.SourceVersion
		u.Qualifiers = qualifiers("arch", m.Architecture, "distro", distro(m.OSID, m.OSVersionID))
	case *apkmeta.Metadata:
		p.Source = m.OriginName
		u.Qualifiers = qualifiers("arch", m.Architecture, "distro", distro(m.OSID, m.OSVersionID))
	case *rpmmeta.Metadata:
		p.SourceVersion = evr(m.Epoch, f.Version)
		u.Qualifiers = qualifiers("arch", m.Architecture, "distro", distro(m.OSID, m.OSVersionID), "epoch", epoch(m.Epoch), "upstream", m.SourceRPM)
	}
	if p.Ecosystem == "" {
		p.Ecosystem = unnamed(f)
	}
	switch u.Type {
	case packageurl.TypeGolang:
		goModule(&p, &u)
	case packageurl.TypeMaven:
		if u.Namespace != "" {
			p.Name = u.Namespace + ":" + u.Name
		}
	}
	// Equal ones are left out: they would only say it twice.
	if p.Source == p.Name {
		p.Source = ""
	}
	if p.SourceVersion == p.Version {
		p.SourceVersion = ""
	}
	p.PURL = u.ToString()
	for _, text := range []string{p.Name, p.Version, p.Source, p.SourceVersion, p.Ecosystem} {
		if !plain(text) {
			return p, false
		}
	}
	return p, p.Name != "" && len(p.Locations) > 0
}

// unnamed is what the packages of a distribution belong to that OSV has no name
// for: nobody's advisories know them, which is another thing than that there is
// nothing to know. It is no ecosystem's name, whatever a distribution says of
// itself.
func unnamed(f *extractor.Package) string {
	id := ""
	switch m := f.Metadata.(type) {
	case *dpkgmeta.Metadata:
		id = m.OSID
	case *apkmeta.Metadata:
		id = m.OSID
	case *rpmmeta.Metadata:
		id = m.OSID
	default:
		return ""
	}
	id = strings.ReplaceAll(id, ":", " ") // what follows one is a release
	if id == "" || len(id) > maxID || !plain(id) {
		id = "an unknown distribution"
	}
	return id + " (" + f.PURLType + ")"
}

// maxID is the length in bytes of the name of a distribution that is shown.
const maxID = 64

// goModule names modules as Go does: the toolchain's library is stdlib, and
// versions begin with a v. A program that was built from a working tree has no
// version.
func goModule(p *kiln.Package, u *packageurl.PackageURL) {
	switch {
	case p.Name == "go" && u.Namespace == "":
		p.Name, u.Name = "stdlib", "stdlib"
	case p.Version == "(devel)":
		p.Version = ""
	case p.Version != "" && !strings.HasPrefix(p.Version, "v"):
		p.Version = "v" + p.Version
	}
	u.Version = p.Version
}

// distro is a distribution's release as package URLs name it, "debian-12".
func distro(id, version string) string {
	if id == "" || version == "" {
		return id
	}
	return id + "-" + version
}

func epoch(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// evr is a version as RPM compares it.
func evr(n int, version string) string {
	if n == 0 {
		return version
	}
	return strconv.Itoa(n) + ":" + version
}

// qualifiers makes those of a package URL from keys and values, without the
// empty ones.
func qualifiers(pairs ...string) packageurl.Qualifiers {
	var q packageurl.Qualifiers
	for pair := range slices.Chunk(pairs, 2) {
		if pair[1] != "" && plain(pair[1]) {
			q = append(q, packageurl.Qualifier{Key: pair[0], Value: pair[1]})
		}
	}
	return q
}

// locations are the absolute paths of the files that tell of a package.
func locations(f *extractor.Package) []string {
	var all []string
	add := func(name string) {
		if name != "" && len(name) <= maxPath && utf8.ValidString(name) {
			all = append(all, path.Clean("/"+name))
		}
	}
	add(f.Location.PathOrEmpty())
	return all
}

func licenses(said []string) []string {
	var all []string
	for _, l := range said {
		if l = strings.TrimSpace(l); l != "" && plain(l) && len(all) < maxLicenses {
			all = append(all, l)
		}
	}
	return all
}

// plain tells text that may be shown on a terminal and is not too long.
func plain(text string) bool {
	return len(text) <= maxText && utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}
