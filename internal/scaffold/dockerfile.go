package scaffold

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnproject/kiln"
)

// stage is what a Dockerfile says of one of its stages' images.
type stage struct {
	expose  []string
	health  *parser.Node
	volumes []string
	env     map[string]string
}

// exampleEgress is the line that opens the way to one destination.
const exampleEgress = `| egress = ["api.example.com:443"]`

// inherit copies a stage, as FROM does.
func (s stage) inherit() stage {
	return stage{expose: slices.Clone(s.expose), health: s.health, volumes: slices.Clone(s.volumes), env: maps.Clone(s.env)}
}

// parseDockerfile returns what the last stage, or the target, says.
func parseDockerfile(src []byte, target string) (stage, error) {
	result, err := parser.Parse(bytes.NewReader(src))
	if err != nil {
		return stage{}, fmt.Errorf("read the Dockerfile: %w", err)
	}
	stages := map[string]stage{}
	var global map[string]string
	now, name := stage{env: map[string]string{}}, "" // of no stage: what stands before the first FROM
	for i, n := 0, result.AST.Children; i < len(n); i++ {
		words := values(n[i])
		if strings.EqualFold(n[i].Value, "from") {
			switch name {
			case "":
				global = now.env
			case target:
				return now, nil
			}
			now, name = from(words, stages, global)
		} else {
			now.add(n[i], words)
		}
		stages[name] = now
	}
	return now, nil
}

// add takes in an instruction of the stage.
func (s *stage) add(n *parser.Node, words []string) {
	switch strings.ToLower(n.Value) {
	case "arg":
		for _, word := range words {
			k, v, _ := strings.Cut(word, "=")
			if _, ok := s.env[k]; !ok {
				s.env[k] = strings.Trim(v, `"'`)
			}
		}
	case "env":
		for j := 0; j+1 < len(words); j += 3 {
			s.env[words[j]] = strings.Trim(words[j+1], `"'`)
		}
	case "expose":
		for _, word := range words {
			s.expose = append(s.expose, expand(word, s.env))
		}
	case "volume":
		s.volumes = append(s.volumes, words...)
	case "healthcheck":
		s.health = n
	}
}

// from begins a stage on an earlier one or on an image.
func from(words []string, stages map[string]stage, global map[string]string) (stage, string) {
	now := stage{env: maps.Clone(global)}
	if len(words) == 0 {
		return now, "(unnamed)"
	}
	if before, ok := stages[strings.ToLower(words[0])]; ok {
		now = before.inherit()
	}
	if len(words) == 3 && strings.EqualFold(words[1], "as") {
		return now, strings.ToLower(words[2])
	}
	return now, fmt.Sprintf("(stage %d)", len(stages))
}

func values(n *parser.Node) []string {
	var out []string
	for w := n.Next; w != nil; w = w.Next {
		out = append(out, w.Value)
	}
	return out
}

// expand replaces $NAME and ${NAME}, ${NAME:-default} by what the Dockerfile
// itself says of them.
func expand(s string, env map[string]string) string {
	name, ok := strings.CutPrefix(s, "$")
	if !ok {
		return s
	}
	name, rest, _ := strings.Cut(name, "/")
	inner, braced := strings.CutPrefix(name, "{")
	fallback := ""
	if braced {
		name, fallback, _ = strings.Cut(strings.TrimSuffix(inner, "}"), ":-")
	}
	value := env[name]
	if value == "" {
		value = fallback
	}
	if rest != "" {
		value += "/" + rest
	}
	return value
}

// fromDockerfile makes a definition of one image and one service.
func fromDockerfile(src []byte) (map[string][]byte, []string, error) {
	st, err := parseDockerfile(src, "")
	if err != nil {
		return nil, nil, kiln.Errorf(kiln.CodeInvalid, "correct the Dockerfile", "%w", err)
	}
	s := service{name: "app", image: "app", count: 1}
	for _, e := range st.expose {
		s.expose(e)
	}
	s.probe(dockerfileCheck(st.health), "The Dockerfile's HEALTHCHECK")
	for _, v := range st.volumes {
		s.volume(v, "The Dockerfile's VOLUME")
	}
	memory := int64(256)
	for _, size := range s.writable {
		memory += size
	}
	s.limits = []setting{{"memory", quote(mebibytes(memory))}}
	s.notes = append(s.notes, "Nothing outside of the environment can be reached until it is named:", exampleEgress)
	out := stack{
		header: []string{
			"Written by `kiln init` from the Dockerfile. Check the comments: they say what was chosen.",
			"The root file system is read-only. A program that must write to a path needs it in `writable`, as a tmpfs.",
		},
		images:   []image{{name: "app", context: ".", notes: []string{"What the build does not need belongs into .dockerignore, so that it does not bake anew for it."}}},
		services: []service{s},
	}
	out.routes = routesOf(s, "app.localhost", "")
	if len(s.ports) == 0 {
		out.services[0].notes = append([]string{
			"The Dockerfile has no EXPOSE, so this is a worker. If it serves, add a route and",
			"| port \"http\" { number = 8080 }",
		}, out.services[0].notes...)
	}
	return map[string][]byte{definitionFile: out.bytes()}, []string{"The definition was made from the Dockerfile."}, nil
}

// routesOf makes the public routes of a service: its first http port by host,
// each tcp port on the machine's own loopback.
func routesOf(s service, host, listenHost string) []route {
	var out []route
	if listenHost == "" {
		listenHost = "127.0.0.1"
	}
	for i, p := range s.ports {
		name := p.name
		if i == 0 {
			name = ""
		}
		if p.protocol == "tcp" {
			out = append(out, route{
				name: s.name + "-" + p.name, service: s.name, port: name, listen: listenHost + ":" + strconv.Itoa(p.number),
				notes: []string{"Chosen: only this machine can connect. Write 0.0.0.0 for all."},
			})
			continue
		}
		if len(out) == 0 || out[0].host == "" {
			out = append([]route{{
				name: s.name, service: s.name, port: name, host: host,
				notes: []string{"Chosen: a name that means this machine. Write your own host, with a certificate:", "| tls { mode = \"acme\" }"},
			}}, out...)
		}
	}
	return out
}

// dockerfileCheck returns the command of a HEALTHCHECK and its options.
func dockerfileCheck(n *parser.Node) *check {
	if n == nil {
		return nil
	}
	words := values(n)
	if len(words) == 0 || strings.EqualFold(words[0], "none") {
		return nil
	}
	c := &check{command: words[1:]}
	for _, flag := range n.Flags {
		k, v, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		switch k {
		case "interval":
			c.interval = parseDuration(v)
		case "timeout":
			c.timeout = parseDuration(v)
		case "start-period":
			c.start = parseDuration(v)
		case "retries":
			c.failures, _ = strconv.Atoi(v)
		}
	}
	return c
}
