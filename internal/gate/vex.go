package gate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// The bounds of an OpenVEX document.
const (
	MaxVEXBytes   = 1 << 20
	maxStatements = 10_000
	maxProducts   = 10_000 // of one statement, subcomponents included
	maxWords      = 2_000  // bytes of a text that is shown
)

// Statement is what an OpenVEX document says of one vulnerability.
type Statement struct {
	Names         []string // of the vulnerability, its aliases included
	Products      []Product
	Status        string // "not_affected", "affected", "fixed" or "under_investigation"
	Justification string
	Impact        string
	At            time.Time // zero where neither it nor the document says
	Document      string    // its path in the definition's folder
}

// Product is what a statement is about: an image or a package.
type Product struct {
	Names         []string // package URLs and digests, as "sha256:..."
	Subcomponents []Product
}

// The words of OpenVEX.
const (
	statusNotAffected = "not_affected"
	statusFixed       = "fixed"
)

func statuses() []string {
	return []string{statusNotAffected, "affected", statusFixed, "under_investigation"}
}

func justifications() []string {
	return []string{
		"component_not_present", "vulnerable_code_not_present", "vulnerable_code_not_in_execute_path",
		"vulnerable_code_cannot_be_controlled_by_adversary", "inline_mitigations_already_exist",
	}
}

// ParseVEX reads an OpenVEX document, of version 0.0.1 to 0.2.0; name is its
// path, for messages. The error is a *kiln.Error with the code invalid.
func ParseVEX(name string, document []byte) ([]Statement, error) {
	statements, err := parseVEX(name, document)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "write it with vexctl, or as openvex.dev says", "%s is not an OpenVEX document: %w", name, err)
	}
	return statements, nil
}

type vexDocument struct {
	Context    string         `json:"@context"`
	Timestamp  string         `json:"timestamp"`
	Statements []vexStatement `json:"statements"`
}

type vexStatement struct {
	Vulnerability vexVulnerability `json:"vulnerability"`
	Timestamp     string           `json:"timestamp"`
	Products      []vexProduct     `json:"products"`
	Subcomponents []vexProduct     `json:"subcomponents"` // until 0.0.1
	Status        string           `json:"status"`
	Justification string           `json:"justification"`
	Impact        string           `json:"impact_statement"`
}

// vexVulnerability is an object, and until 0.0.1 a string.
type vexVulnerability struct {
	ID      string   `json:"@id"`
	Name    string   `json:"name"`
	Aliases []string `json:"aliases"`
}

func (v *vexVulnerability) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(b, []byte(`"`)) {
		return json.Unmarshal(b, &v.Name)
	}
	type plain vexVulnerability
	return json.Unmarshal(b, (*plain)(v))
}

// vexProduct is an object, and until 0.0.1 a string.
type vexProduct struct {
	ID            string            `json:"@id"`
	Identifiers   map[string]string `json:"identifiers"`
	Hashes        map[string]string `json:"hashes"`
	Subcomponents []vexProduct      `json:"subcomponents"`
}

func (p *vexProduct) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(b, []byte(`"`)) {
		return json.Unmarshal(b, &p.ID)
	}
	type plain vexProduct
	return json.Unmarshal(b, (*plain)(p))
}

func parseVEX(name string, document []byte) ([]Statement, error) {
	if len(document) > MaxVEXBytes {
		return nil, fmt.Errorf("it has more than %d bytes", MaxVEXBytes)
	}
	var doc vexDocument
	if err := json.Unmarshal(document, &doc); err != nil {
		return nil, fmt.Errorf("it is not JSON of that form: %w", err)
	}
	switch {
	case !strings.HasPrefix(doc.Context, "https://openvex.dev/ns"):
		return nil, fmt.Errorf("its @context is %q, not one of https://openvex.dev/ns", cut(doc.Context))
	case len(doc.Statements) > maxStatements:
		return nil, fmt.Errorf("it has more than %d statements", maxStatements)
	}
	at, err := timestamp(doc.Timestamp)
	if err != nil {
		return nil, err
	}
	var out []Statement
	for i, s := range doc.Statements {
		one, err := s.statement()
		if err != nil {
			return nil, fmt.Errorf("statement %d: %w", i+1, err)
		}
		if one.At.IsZero() {
			one.At = at
		}
		one.Document = name
		out = append(out, one)
	}
	return out, nil
}

func (s vexStatement) statement() (Statement, error) {
	out := Statement{Status: s.Status, Justification: s.Justification, Impact: cut(s.Impact)}
	for _, n := range append([]string{s.Vulnerability.Name, lastStep(s.Vulnerability.ID)}, s.Vulnerability.Aliases...) {
		if n != "" && !slices.Contains(out.Names, n) {
			out.Names = append(out.Names, n)
		}
	}
	switch {
	case len(out.Names) == 0:
		return out, fmt.Errorf("it names no vulnerability")
	case !slices.Contains(statuses(), s.Status):
		return out, fmt.Errorf("its status is %q; there are: %s", cut(s.Status), strings.Join(statuses(), ", "))
	case s.Justification != "" && !slices.Contains(justifications(), s.Justification):
		return out, fmt.Errorf("its justification is %q; there are: %s", cut(s.Justification), strings.Join(justifications(), ", "))
	case s.Status == statusNotAffected && s.Justification == "" && strings.TrimSpace(s.Impact) == "":
		return out, fmt.Errorf("its status is not_affected, which needs a justification or an impact_statement")
	case len(s.Products) == 0:
		return out, fmt.Errorf("it names no product: an image by its digest, or a package by its package URL")
	}
	var err error
	if out.At, err = timestamp(s.Timestamp); err != nil {
		return out, err
	}
	left := maxProducts
	for _, p := range s.Products {
		p.Subcomponents = append(p.Subcomponents, s.Subcomponents...)
		out.Products = append(out.Products, p.product(&left))
	}
	if left < 0 {
		return out, fmt.Errorf("it has more than %d products", maxProducts)
	}
	return out, nil
}

// lastStep is the identifier at the end of a vulnerability's IRI.
func lastStep(iri string) string { return iri[strings.LastIndexByte(iri, '/')+1:] }

// product stops when nothing is left.
func (p vexProduct) product(left *int) Product {
	var out Product
	if *left--; *left < 0 {
		return out
	}
	for _, n := range []string{p.ID, p.Identifiers["purl"]} {
		if n != "" {
			out.Names = append(out.Names, n)
		}
	}
	if hash := p.Hashes["sha-256"]; hash != "" {
		out.Names = append(out.Names, "sha256:"+strings.ToLower(hash))
	}
	for _, sub := range p.Subcomponents {
		sub.Subcomponents = nil // one level, as OpenVEX has it
		out.Subcomponents = append(out.Subcomponents, sub.product(left))
	}
	return out
}

func timestamp(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("its timestamp %q is not one of RFC 3339", cut(s))
	}
	return t, nil
}

// cut bounds a text and keeps it on one line.
func cut(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s[:min(len(s), maxWords)], "�")), " ")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}

// notAffected says whether the statements take a finding out, and why. Of
// several about it the latest holds; of several of the same moment one that says
// that it does affect.
func notAffected(statements []Statement, f kiln.Finding, image kiln.Digest) (string, bool) {
	var last Statement
	found := false
	for _, s := range statements {
		if !slices.ContainsFunc(s.Names, func(n string) bool { return is(f, n) }) || !s.about(f.PURL, image) {
			continue
		}
		if !found || s.over(last) {
			last, found = s, true
		}
	}
	if !found || !last.clears() {
		return "", false
	}
	return last.reason(), true
}

func (s Statement) clears() bool { return s.Status == statusNotAffected || s.Status == statusFixed }

// over says whether a statement holds in the place of another about the same.
func (s Statement) over(o Statement) bool {
	switch {
	case !s.At.Equal(o.At):
		return s.At.After(o.At)
	case s.clears() != o.clears():
		return !s.clears()
	}
	return s.reason() < o.reason()
}

func (s Statement) reason() string {
	words := firstOf(s.Justification, s.Impact)
	if s.Justification != "" && s.Impact != "" {
		words = s.Justification + " (" + s.Impact + ")"
	}
	out := s.Status
	if words != "" {
		out += ": " + words
	}
	if s.Document != "" {
		out += ", says " + s.Document
	}
	return out
}

// about says whether a statement is about a package of an image. A product
// with subcomponents is about those only.
func (s Statement) about(purl string, image kiln.Digest) bool {
	return slices.ContainsFunc(s.Products, func(p Product) bool {
		if !p.isImage(image) && !p.isPackage(purl) {
			return false
		}
		return len(p.Subcomponents) == 0 || slices.ContainsFunc(p.Subcomponents, func(sub Product) bool { return sub.isPackage(purl) })
	})
}

func (p Product) isImage(image kiln.Digest) bool {
	return image != "" && slices.ContainsFunc(p.Names, func(n string) bool {
		if n == string(image) {
			return true
		}
		u, ok := parsePURL(n)
		return ok && u.kind == "oci" && u.version == string(image)
	})
}

func (p Product) isPackage(purl string) bool {
	have, ok := parsePURL(purl)
	return ok && slices.ContainsFunc(p.Names, func(n string) bool {
		want, ok := parsePURL(n)
		return ok && want.covers(have)
	})
}
