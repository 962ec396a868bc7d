package bake

import (
	"fmt"
	"path"

	"github.com/kilnproject/kiln"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

const noSecrets = "A build is given no secrets and no keys: fetch what needs one before, into the context, or let the program read it when it runs."

// allowed refuses a RUN that wants what no RUN gets.
func (r *recipe) allowed(image kiln.Image, c *instructions.RunCommand) error {
	if instructions.GetNetwork(c) == instructions.NetworkHost {
		return r.refuse(image, c, "Remove --network=host. A RUN reaches the Internet by a network of its own, and neither this machine nor private networks.",
			"RUN --network=host is not allowed")
	}
	if instructions.GetSecurity(c) == instructions.SecurityInsecure {
		return r.refuse(image, c, "Remove --security=insecure.", "RUN --security=insecure is not allowed")
	}
	for _, m := range r.secrets(image, c) {
		if m.Required {
			return r.refuse(image, c, noSecrets, "RUN --mount=type=%s,required=true is not supported", m.Type)
		}
	}
	return nil
}

// secrets lists the mounts of a RUN that stay empty here. One whose options
// are arguments of the stage is BuildKit's to judge.
func (r *recipe) secrets(image kiln.Image, c *instructions.RunCommand) []*instructions.Mount {
	if c.Expand(func(word string) (string, error) { return r.expand(image, word) }) != nil {
		return nil
	}
	var out []*instructions.Mount
	for _, m := range instructions.GetMounts(c) {
		if m.Type == instructions.MountTypeSecret || m.Type == instructions.MountTypeSSH {
			out = append(out, m)
		}
	}
	return out
}

// warnings says which mounts of the Dockerfile will be left out.
func (r *recipe) warnings(image kiln.Image) []string {
	var out []string
	for _, s := range r.stages {
		for _, command := range s.Commands {
			c, ok := command.(*instructions.RunCommand)
			if !ok {
				continue
			}
			for _, m := range r.secrets(image, c) {
				out = append(out, fmt.Sprintf("warning: line %d: --mount=type=%s is left out: a build is given no secrets and no keys", line(c), m.Type))
			}
		}
	}
	return out
}

func line(c *instructions.RunCommand) int {
	if at := c.Location(); len(at) > 0 {
		return at[0].Start.Line
	}
	return 0
}

// refuse shows the RUN and says what is wrong with it.
func (r *recipe) refuse(image kiln.Image, c *instructions.RunCommand, hint, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	e := kiln.Errorf(kiln.CodeRefused, hint, "image %q: %s", image.Name, what)
	e.Diagnostics = []kiln.Diagnostic{onLine(kiln.Diagnostic{
		Severity: "error", Summary: "Not allowed in a Dockerfile", Detail: what + ". " + hint,
		File: path.Join(image.Dockerfile.Context, image.Dockerfile.File),
	}, r.source, c.Location())}
	return e
}
