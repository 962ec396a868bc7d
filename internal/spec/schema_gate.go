package spec

import "github.com/kilnproject/kiln/internal/hclfile"

// lintRules are the rules that allow may name; a test keeps them equal to
// those of the lint.
func lintRules() []string {
	return []string{
		"lint/compiler", "lint/mutable-base", "lint/package-manager", "lint/probe", "lint/secret",
		"lint/setuid", "lint/shell", "lint/sshd", "lint/world-writable",
	}
}

func scannerNames() []string { return []string{"snyk", "trivy"} }

func gateSchema(doc string) hclfile.Block {
	return hclfile.Block{
		Name: "gate", Single: true, Doc: doc,
		Arguments: []hclfile.Argument{
			{Name: "fail_on", Type: "string", Default: "`\"high\"`", Range: "`\"low\"`, `\"medium\"`, `\"high\"`, `\"critical\"`", Doc: "The least severity of a vulnerability that fails."},
			{Name: "unknown", Type: "string", Default: "`\"warn\"`", Range: "`\"fail\"`, `\"warn\"`, `\"ignore\"`", Doc: "What happens to a vulnerability whose severity nobody says."},
			{Name: "only_fixable", Type: "bool", Default: "`false`", Doc: "Lets vulnerabilities pass that no version mends yet."},
			{Name: "max_db_age", Type: "duration", Default: "any", Range: "1h to 8760h", Doc: "How old the vulnerability database may be. With an older one it cannot be told whether the image may run."},
			{Name: "no_database", Type: "string", Default: "`\"fail\"`", Range: "`\"fail\"`, `\"warn\"`", Doc: "What happens where no vulnerability database can judge the image: there is none, it is too old, or it lacks an ecosystem."},
			{Name: "vex", Type: "list of strings", Range: "paths of OpenVEX documents below the definition's folder", Doc: "Documents that say which vulnerabilities do not affect the image. They are part of the definition."},
			{Name: "signed_by", Type: "list of strings", Default: "anybody", Range: "names of `trust` blocks of `kilnd.hcl`", Doc: "Whose signature an image of a registry must have: that of one of them. It says nothing of images that are baked here."},
		},
		Blocks: []hclfile.Block{
			{
				Name: "ignore", Labels: []string{"advisory"}, Doc: "Lets one vulnerability pass, by its identifier or one of its aliases.",
				Arguments: []hclfile.Argument{
					{Name: "until", Type: "string", Default: "for ever", Range: "a day: `\"2027-01-31\"`", Doc: "The day, in UTC, from which it counts again."},
					{Name: "reason", Type: "string", Required: true, Range: "1 to 300 characters of one line", Doc: "Why; every verdict shows it."},
				},
			},
			{
				Name: "allow", Labels: []string{"rule"}, Kinds: lintRules(), Doc: "Lets the image break a rule of the lint. There may be several of a rule, for several paths.",
				Arguments: []hclfile.Argument{
					{Name: "path", Type: "string", Default: "everywhere", Range: "absolute path; `*` does not match `/`", Doc: "Where in the image the rule may be broken."},
					{Name: "reason", Type: "string", Required: true, Range: "1 to 300 characters of one line", Doc: "Why; every verdict shows it."},
				},
			},
			{
				Name: "scanner", Labels: []string{"scanner"}, Kinds: scannerNames(), Doc: "Asks another scanner, too, which must be installed where the control plane runs: `trivy` or `snyk`. When it fails, the gate fails.",
				Arguments: []hclfile.Argument{
					{Name: "fail_on", Type: "string", Default: "the gate's", Range: "`\"low\"`, `\"medium\"`, `\"high\"`, `\"critical\"`", Doc: "The least severity of its findings that fails."},
				},
			},
		},
	}
}
