package spec

import "github.com/kilnproject/kiln/internal/hclfile"

// forEach is the argument of the blocks that can be repeated.
func forEach() hclfile.Argument {
	return hclfile.Argument{
		Name: "for_each", Type: "map or set of strings", Range: "1000 entries",
		Doc: "Makes one instance of the block per entry, named `<label>-<key>`. `each.key` and `each.value` are the entry.",
	}
}

// rootSchema is the whole language. It is built anew by every call.
func rootSchema() *hclfile.Block {
	return &hclfile.Block{
		Name:  "file",
		Later: []string{"secret", "stack", "policy", "cluster", "engine", "notify", "schedule"},
		Blocks: []hclfile.Block{
			imageSchema(), gateSchema("What every image must be to run. An image's own gate wins over it, argument by argument; blocks add up."), serviceSchema(), routeSchema(), environmentSchema(), variableSchema(),
			{Name: "locals", Free: true, Doc: "Names for values, used as `local.NAME`. Each argument is one."},
		},
	}
}

func imageSchema() hclfile.Block {
	return hclfile.Block{
		Name: "image", Labels: []string{"name"}, Later: []string{"scan", "sign", "machine"},
		Doc: "An image that services run from: baked from a Dockerfile or from Debian packages, or taken from a registry. Exactly one of `dockerfile`, `debian` and `reference`.",
		Arguments: []hclfile.Argument{
			forEach(),
			{Name: "platform", Type: "string", Default: "`linux/` and the machine's architecture", Range: "`linux/ARCH` or `linux/ARCH/VARIANT`", Doc: "What the image is baked for."},
			{Name: "hermetic", Type: "bool", Default: "`false`", Doc: "Bakes without any network."},
			{Name: "reference", Type: "string", Range: "`host/name:tag` or `host/name@sha256:...`", Doc: "An image of a registry. `kiln.lock` keeps the digests that it resolved to."},
		},
		Blocks: []hclfile.Block{
			{
				Name: "dockerfile", Single: true, Doc: "Bakes the image from a Dockerfile.",
				Arguments: []hclfile.Argument{
					{Name: "context", Type: "string", Default: "`\".\"`", Range: "a folder below the definition's", Doc: "The folder that COPY and ADD read from, without what its .dockerignore names."},
					{Name: "file", Type: "string", Default: "`\"Dockerfile\"`", Range: "a path below the context", Doc: "The Dockerfile."},
					{Name: "target", Type: "string", Doc: "The stage to stop at; the last when not said."},
					{Name: "args", Type: "map of strings", Doc: "Values of the Dockerfile's ARGs. They can be read from the image's history: not for secrets."},
					{Name: "contexts", Type: "map of images", Doc: "Names that FROM and COPY --from may use, each for another image of the definition: `{ base = image.base }`."},
				},
			},
			{
				Name: "debian", Single: true, Doc: "Bakes the image from signed Debian archives, without a registry.",
				Arguments: []hclfile.Argument{
					{Name: "suite", Type: "string", Required: true, Range: "a suite's name", Doc: "The Debian release: `\"bookworm\"`."},
					{Name: "packages", Type: "list of strings", Range: "names of packages", Doc: "What to install besides the minimal system, with dependencies."},
					{Name: "mirror", Type: "string", Default: "the Debian suites of the machine's own apt", Range: "http or https URL", Doc: "The archive's base URL. Needed where the machine is not Debian. It is signed by Debian's keys, or by those that `debian` of `kilnd.hcl` names."},
					{Name: "apt", Type: "bool", Default: "`false`", Doc: "Keeps apt and dpkg in the image, so that a Dockerfile can install from it."},
				},
			},
			gateSchema("What this image must be to run: what is not said here is as in the definition's gate."),
		},
	}
}

func routeSchema() hclfile.Block {
	return hclfile.Block{
		Name: "route", Labels: []string{"name"}, Later: []string{"redirect", "auth", "rate_limit", "headers", "mirror"},
		Doc: "Where public traffic enters. A host and path belong to one route.",
		Arguments: []hclfile.Argument{
			forEach(),
			{Name: "to", Type: "service", Required: true, Doc: "The service that answers: `service.web`."},
			{Name: "port", Type: "string", Default: "the service's first port", Range: "name of a port of the service", Doc: "Which port of the service."},
			{Name: "host", Type: "string", Range: "a DNS name, without wildcards", Doc: "The name that requests are for. Required for http and h2c ports, not possible for tcp ones."},
			{Name: "path", Type: "string", Default: "`\"/\"`", Range: "begins with `/`", Doc: "The prefix, in whole segments, of the paths that the route takes. The longest wins."},
			{Name: "listen", Type: "string", Range: "`ADDRESS:PORT`", Doc: "The gateway's own address for a tcp port. Required for tcp ports, not possible for others."},
		},
		Blocks: []hclfile.Block{{
			Name: "tls", Single: true, Doc: "How the host gets its certificate. Without this block the route is plain HTTP.",
			Arguments: []hclfile.Argument{
				{Name: "mode", Type: "string", Required: true, Range: "`\"off\"`, `\"acme\"`, `\"local\"`, `\"files\"`", Doc: "`acme` asks a public authority; `local` uses an authority of this machine and is for `.localhost` names; `files` takes `cert` and `key`."},
				{Name: "cert", Type: "string", Range: "absolute path on the gateway's machine", Doc: "The certificate chain in PEM, with mode `files`."},
				{Name: "key", Type: "string", Range: "absolute path on the gateway's machine", Doc: "The private key in PEM, with mode `files`."},
			},
		}},
	}
}

func environmentSchema() hclfile.Block {
	return hclfile.Block{
		Name: "environment", Labels: []string{"name"}, Later: []string{"promote", "approve", "track", "window", "engine"},
		Doc: "One isolated running copy of the definition. Its arguments are constants: they may use functions but no references.",
		Arguments: []hclfile.Argument{
			{Name: "branch", Type: "string", Range: "name of a branch", Doc: "Binds the environment to a branch: other branches and uncommitted changes are refused."},
			{Name: "branches", Type: "list of strings", Range: "patterns; `*` does not match `/`", Doc: "One environment for every branch that matches, named `<name>-<branch>`. Not together with `branch`."},
			{Name: "ttl", Type: "duration", Range: "1m to 8760h", Doc: "How long after its last release went live an environment of `branches` ends by itself."},
			{Name: "repave", Type: "string", Default: "`\"manual\"`", Range: "`\"manual\"`, `\"auto\"`", Doc: "Who bakes again from newer bases when an image that runs is found to be vulnerable: a person by `kiln repave`, or Kiln by itself, too."},
			{Name: "repave_every", Type: "duration", Default: "`\"6h\"`", Range: "1h to 720h", Doc: "With `repave = \"auto\"`: the least time between two attempts of Kiln's own."},
			{Name: "values", Type: "map", Doc: "Values of variables for this environment. `--var`, `--var-file` and `KILN_VAR_name` win over them."},
		},
	}
}

func variableSchema() hclfile.Block {
	return hclfile.Block{
		Name: "variable", Labels: []string{"variable"},
		Doc: "A value from outside, used as `var.NAME`. It comes from, in this order: `--var name=value`, `--var-file`, `KILN_VAR_name`, the environment's `values`, `default`.",
		Arguments: []hclfile.Argument{
			{Name: "type", Type: "type", Default: "`any`", Range: "`string`, `number`, `bool`, `list(T)`, `set(T)`, `map(T)`, `object({...})`, `tuple([...])`, `any`", Doc: "What the value is converted to."},
			{Name: "default", Type: "constant", Doc: "The value when none is given. Without it, a value must be given."},
			{Name: "description", Type: "string", Doc: "What the variable is for; shown when it is missing."},
			{Name: "sensitive", Type: "bool", Default: "`false`", Doc: "Keeps the value out of diagnostics."},
		},
		Blocks: []hclfile.Block{{
			Name: "validation", Doc: "A rule for the value. There may be several.",
			Arguments: []hclfile.Argument{
				{Name: "condition", Type: "bool", Required: true, Doc: "Must be true."},
				{Name: "error_message", Type: "string", Required: true, Doc: "What is said when it is not."},
			},
		}},
	}
}
