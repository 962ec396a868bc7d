package gate

import (
	"net/url"
	"strings"
)

// purl is a package URL: pkg:type/namespace/name@version?qualifiers#subpath.
type purl struct {
	kind       string
	name       string // with its namespace
	version    string
	qualifiers url.Values
}

func parsePURL(s string) (purl, bool) {
	rest, ok := strings.CutPrefix(s, "pkg:")
	if !ok {
		return purl{}, false
	}
	rest, _, _ = strings.Cut(strings.TrimLeft(rest, "/"), "#")
	rest, query, _ := strings.Cut(rest, "?")
	kind, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return purl{}, false
	}
	out := purl{kind: strings.ToLower(kind)}
	name := rest
	if i := strings.LastIndexByte(rest, '@'); i > 0 {
		name = rest[:i]
		if out.version, ok = unescape(rest[i+1:]); !ok {
			return purl{}, false
		}
	}
	if out.name, ok = unescape(strings.Trim(name, "/")); !ok || out.name == "" {
		return purl{}, false
	}
	values, err := url.ParseQuery(query)
	out.qualifiers = values
	return out, err == nil
}

func unescape(s string) (string, bool) {
	out, err := url.PathUnescape(s)
	return out, err == nil
}

// covers says whether a package is one that this URL means: all that it says
// must be so, what it leaves out may be anything.
func (u purl) covers(have purl) bool {
	if u.kind != have.kind || u.name != have.name || u.version != "" && u.version != have.version {
		return false
	}
	for key := range u.qualifiers {
		if u.qualifiers.Get(key) != have.qualifiers.Get(key) {
			return false
		}
	}
	return true
}
