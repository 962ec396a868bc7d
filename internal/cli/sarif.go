package cli

import (
	"encoding/json"
	"net/url"
	"strings"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/gate"
)

// What follows is of SARIF 2.1.0 (docs.oasis-open.org/sarif/sarif/v2.1.0) what a
// scan says. The sections are those of that.
type (
	sarifLog struct { // 3.13
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct { // 3.14
		Tool        sarifTool         `json:"tool"`
		Invocations []sarifInvocation `json:"invocations"`
		Results     []sarifResult     `json:"results"`
	}
	sarifTool struct { // 3.18
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct { // 3.19
		Name    string      `json:"name"`
		Version string      `json:"version"`
		Rules   []sarifRule `json:"rules"`
	}
	sarifRule struct { // 3.49
		ID         string         `json:"id"`
		Short      sarifText      `json:"shortDescription"`
		Default    sarifLevel     `json:"defaultConfiguration"`
		Properties map[string]any `json:"properties,omitempty"`
	}
	sarifLevel struct { // 3.50
		Level string `json:"level"`
	}
	sarifText struct { // 3.11
		Text string `json:"text"`
	}
	sarifInvocation struct { // 3.20
		Successful    bool                `json:"executionSuccessful"`
		Notifications []sarifNotification `json:"toolExecutionNotifications,omitempty"`
	}
	sarifNotification struct { // 3.58
		Level   string    `json:"level"`
		Message sarifText `json:"message"`
	}
	sarifResult struct { // 3.27
		RuleID       string             `json:"ruleId"`
		RuleIndex    int                `json:"ruleIndex"`
		Level        string             `json:"level"`
		Message      sarifText          `json:"message"`
		Locations    []sarifLocation    `json:"locations"`
		Suppressions []sarifSuppression `json:"suppressions,omitempty"`
		Fingerprints map[string]string  `json:"partialFingerprints"`
		Properties   map[string]any     `json:"properties"`
	}
	sarifLocation struct { // 3.28
		Physical sarifPhysical  `json:"physicalLocation"`
		Logical  []sarifLogical `json:"logicalLocations"`
	}
	sarifPhysical struct { // 3.29
		Artifact sarifArtifact `json:"artifactLocation"`
	}
	sarifArtifact struct { // 3.4
		URI string `json:"uri"`
	}
	sarifLogical struct { // 3.33
		Name      string `json:"name"`
		Qualified string `json:"fullyQualifiedName"`
		Kind      string `json:"kind"`
	}
	sarifSuppression struct { // 3.35
		Kind          string `json:"kind"`
		Justification string `json:"justification,omitempty"`
	}
)

func (a *app) printSARIF(r control.ScanResult) error {
	encoder := json.NewEncoder(a.Out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(sarifOf(r, a.Version))
}

// sarifOf is a scan in SARIF: a rule for each finding's identifier, and a result
// for each finding.
func sarifOf(r control.ScanResult, version string) sarifLog {
	run := sarifRun{
		Tool:        sarifTool{sarifDriver{Name: "kiln", Version: version, Rules: []sarifRule{}}},
		Invocations: []sarifInvocation{{Successful: true}}, Results: []sarifResult{},
	}
	rules := map[string]int{}
	for _, image := range r.Images {
		if image.Verdict.Outcome == kiln.OutcomeUnknown {
			run.Invocations[0].Successful = false
			for _, reason := range image.Verdict.Reasons {
				run.Invocations[0].Notifications = append(run.Invocations[0].Notifications, sarifNotification{"error", sarifText{image.Name + ": " + reason}})
			}
		}
		for _, f := range image.Verdict.Findings {
			index, known := rules[f.ID]
			if !known {
				index = len(run.Tool.Driver.Rules)
				rules[f.ID] = index
				run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, sarifRuleOf(f))
			}
			run.Results = append(run.Results, sarifResultOf(image, f, index))
		}
	}
	return sarifLog{Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{run}}
}

func sarifRuleOf(f kiln.Finding) sarifRule {
	// Viewers rank by this number, which is of CVSS's scale.
	score := map[kiln.Severity]string{kiln.SeverityLow: "2.0", kiln.SeverityMedium: "5.0", kiln.SeverityHigh: "8.0", kiln.SeverityCritical: "9.5"}[f.Severity]
	properties := map[string]any{"tags": append([]string{string(f.Kind)}, f.Aliases...)}
	if score != "" {
		properties["security-severity"] = score
	}
	return sarifRule{f.ID, sarifText{f.Title}, sarifLevel{levelOf(f.Severity)}, properties}
}

func levelOf(s kiln.Severity) string {
	switch s {
	case kiln.SeverityHigh, kiln.SeverityCritical:
		return "error"
	case kiln.SeverityLow:
		return "note"
	default:
		return "warning"
	}
}

func sarifResultOf(image control.Scanned, f kiln.Finding, rule int) sarifResult {
	text := f.Title
	if where := gate.Where(f); where != "" {
		text += " (" + where + ")"
	}
	if f.Change != "" {
		text += ": " + f.Change
	}
	of := image.Name + "@" + string(image.Verdict.Image)
	logical := sarifLogical{Name: image.Name, Qualified: of, Kind: "module"}
	if f.Package != "" {
		logical = sarifLogical{Name: f.Package, Qualified: of + "/" + f.Package + "@" + f.Version, Kind: "module"}
	}
	// A finding about the image itself is at its root.
	path := url.URL{Path: strings.TrimPrefix(f.Path, "/")}
	uri := path.String()
	if uri == "" {
		uri = "."
	}
	out := sarifResult{
		RuleID: f.ID, RuleIndex: rule, Level: levelOf(f.Severity), Message: sarifText{text},
		Locations:    []sarifLocation{{sarifPhysical{sarifArtifact{uri}}, []sarifLogical{logical}}},
		Fingerprints: map[string]string{"kilnFinding/v1": kiln.DigestJSON([]string{image.Name, f.ID, f.PURL, f.Path}).Hex()},
		Properties:   map[string]any{"image": image.Verdict.Image, "fails": f.Fails, "severity": f.Severity},
	}
	if f.State != kiln.FindingOpen {
		out.Suppressions = []sarifSuppression{{"external", f.Reason}}
	}
	return out
}
