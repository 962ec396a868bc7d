package scanner

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"

	"github.com/kilnproject/kiln"
)

func snyk() tool {
	return tool{
		name:    "snyk",
		install: "install the Snyk CLI there and set SNYK_TOKEN for the control plane, or take scanner \"snyk\" out of the gate",
		input:   func(i Image) string { return i.Archive },
		args: func(input, _ string) []string {
			return []string{"container", "test", "oci-archive:" + input, "--json"}
		},
		clean: func(status int) bool { return status == 1 }, // vulnerabilities were found
		parse: parseSnyk,
		said:  saidSnyk,
		statuses: map[int]string{
			2: "it failed, and may succeed when tried again",
			3: "it found nothing in the image that it supports",
		},
	}
}

// snykReport is what is printed of one project: the image, or an application
// inside of it. Several are a list; the applications of an image are in it.
type snykReport struct {
	OK              *bool         `json:"ok"`
	Error           string        `json:"error"`
	Vulnerabilities []snykFinding `json:"vulnerabilities"`
	DisplayTarget   string        `json:"displayTargetFile"`
	Applications    []*snykReport `json:"applications"`
}

type snykFinding struct {
	ID          string              `json:"id"`
	Title       string              `json:"title"`
	Severity    string              `json:"severity"`
	Type        string              `json:"type"` // "license" is none of a gate's matters
	PackageName string              `json:"packageName"`
	Name        string              `json:"name"`
	Version     string              `json:"version"`
	Identifiers map[string][]string `json:"identifiers"`
	FixedIn     []string            `json:"fixedIn"`
	Nearest     string              `json:"nearestFixedInVersion"`
}

// saidSnyk is what a report has in the place of findings.
func saidSnyk(report []byte) string {
	var r snykReport
	if err := json.Unmarshal(report, &r); err != nil {
		return ""
	}
	return r.Error
}

func parseSnyk(report []byte) ([]kiln.Finding, error) {
	var reports []*snykReport
	if bytes.HasPrefix(bytes.TrimSpace(report), []byte("[")) {
		if err := json.Unmarshal(report, &reports); err != nil {
			return nil, err
		}
	} else {
		one := &snykReport{}
		if err := json.Unmarshal(report, one); err != nil {
			return nil, err
		}
		reports = append(reports, one)
	}
	if len(reports) == 0 {
		return nil, errors.New("it is empty")
	}
	var out []kiln.Finding
	for len(reports) > 0 {
		r := reports[0]
		reports = reports[1:]
		findings, err := r.findings()
		if err != nil {
			return nil, err
		}
		out = append(out, findings...)
		reports = append(reports, r.Applications...)
	}
	return out, nil
}

func (r *snykReport) findings() ([]kiln.Finding, error) {
	switch {
	case r == nil:
		return nil, errors.New("a project is null")
	case r.Error != "":
		return nil, errors.New(words(r.Error))
	case r.OK == nil:
		return nil, errors.New("a project does not say whether it is ok")
	case !*r.OK && len(r.Vulnerabilities) == 0:
		return nil, errors.New("a project is not ok, and nothing says why")
	}
	var out []kiln.Finding
	seen := map[string]bool{} // one for each path to a package is printed
	for _, v := range r.Vulnerabilities {
		if v.ID == "" {
			return nil, errors.New("a vulnerability has no identifier")
		}
		f := v.finding(r.DisplayTarget)
		key := f.ID + "\x00" + f.Package + "\x00" + f.Version
		if v.Type == "license" || seen[key] {
			continue
		}
		seen[key] = true
		out = append(out, f)
	}
	return out, nil
}

func (v snykFinding) finding(target string) kiln.Finding {
	f := kiln.Finding{
		ID: words(v.ID), Kind: kiln.FindingScanner, Scanner: "snyk", State: kiln.FindingOpen,
		Severity: severity(v.Severity), Title: words(v.Title),
		Package: words(v.PackageName), Version: words(v.Version), Path: words(absolute(target)),
	}
	if f.Package == "" {
		f.Package = words(v.Name)
	}
	for _, kind := range []string{"CVE", "GHSA"} {
		for _, id := range v.Identifiers[kind] {
			f.Aliases = append(f.Aliases, words(id))
		}
	}
	slices.Sort(f.Aliases)
	fixed := v.FixedIn
	if len(fixed) == 0 && v.Nearest != "" {
		fixed = []string{v.Nearest}
	}
	for _, one := range fixed {
		f.FixedIn = append(f.FixedIn, words(one))
	}
	f.Change = change(f)
	return f
}
