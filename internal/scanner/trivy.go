package scanner

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// trivy is Trivy from 0.20, whose reports have the schema 2.
func trivy() tool {
	return tool{
		name:    "trivy",
		install: "install Trivy there, or take scanner \"trivy\" out of the gate",
		input:   func(i Image) string { return i.Layout },
		args: func(input, cache string) []string {
			return []string{"image", "--input", input, "--format", "json", "--scanners", "vuln", "--exit-code", "0", "--quiet", "--cache-dir", cache}
		},
		alone: true,
		clean: func(int) bool { return false },
		parse: parseTrivy,
	}
}

type trivyReport struct {
	SchemaVersion int
	Results       []struct {
		Target          string
		Type            string
		Vulnerabilities []trivyVulnerability
	}
}

type trivyVulnerability struct {
	VulnerabilityID  string
	VendorIDs        []string
	PkgName          string
	PkgPath          string
	PkgIdentifier    struct{ PURL string }
	InstalledVersion string
	FixedVersion     string
	Layer            struct{ Digest string }
	Title            string
	Severity         string
}

func parseTrivy(report []byte) ([]kiln.Finding, error) {
	var r trivyReport
	if err := json.Unmarshal(report, &r); err != nil {
		return nil, err
	}
	if r.SchemaVersion != 2 {
		return nil, fmt.Errorf("its schema is %d, not 2", r.SchemaVersion)
	}
	var out []kiln.Finding
	for _, result := range r.Results {
		for _, v := range result.Vulnerabilities {
			if v.VulnerabilityID == "" || v.PkgName == "" {
				return nil, errors.New("a vulnerability has no identifier or no package")
			}
			if v.PkgPath == "" && slices.Contains(programs(), result.Type) {
				v.PkgPath = result.Target
			}
			out = append(out, v.finding())
		}
	}
	return out, nil
}

// programs are the types of results that are one program each: their target is
// its path, and their packages have none.
func programs() []string { return []string{"gobinary", "rustbinary"} }

func (v trivyVulnerability) finding() kiln.Finding {
	f := kiln.Finding{
		ID: words(v.VulnerabilityID), Kind: kiln.FindingScanner, Scanner: "trivy", State: kiln.FindingOpen,
		Severity: severity(v.Severity), Title: words(v.Title),
		Package: words(v.PkgName), Version: words(v.InstalledVersion), PURL: words(v.PkgIdentifier.PURL),
		Path: words(absolute(v.PkgPath)),
	}
	if f.Title == "" {
		f.Title = f.ID + " of " + f.Package
	}
	for _, id := range v.VendorIDs {
		f.Aliases = append(f.Aliases, words(id))
	}
	slices.Sort(f.Aliases)
	if d, err := kiln.ParseDigest(v.Layer.Digest); err == nil {
		f.Layer = d
	}
	for fixed := range strings.SplitSeq(v.FixedVersion, ",") {
		if fixed = words(fixed); fixed != "" {
			f.FixedIn = append(f.FixedIn, fixed)
		}
	}
	f.Change = change(f)
	return f
}
