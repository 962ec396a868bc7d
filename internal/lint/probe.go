package lint

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// maxLinks is how many symbolic links one path may go through, as in Linux.
const maxLinks = 40

// defaultPath is where programs are looked for without PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Service judges what a service asks of the image: that its program is there
// to answer, that the port that is asked is one of its ports, and that a check
// with a command in this image finds its program. What cannot be told for sure
// is no finding. The image is that of the service; image is its name.
func (l *Lint) Service(s kiln.Service, image string, config v1.Image, tree fs.FS) {
	if what := missingProgram(s, command(s, config), config, tree); what != "" {
		l.add(Probe, "service "+s.Name+" starts "+what, "", "")
	}
	if p := s.Config.Ready; p.Port != "" && !slices.ContainsFunc(s.Ports, func(have kiln.Port) bool { return have.Name == p.Port }) {
		l.add(Probe, "service "+s.Name+" is asked on port "+p.Port+", which it has not", "", "")
	}
	if p := s.Config.Ready; len(s.Ports) == 0 && (p.HTTP != "" || p.TCP) {
		l.add(Probe, "service "+s.Name+" is asked over the network and has no port", "", "")
	}
	for _, v := range s.Rollout.Verify {
		if len(v.Command) == 0 || v.Image != "" && v.Image != image {
			continue
		}
		if what := missingProgram(s, v.Command, config, tree); what != "" {
			l.add(Probe, "check "+v.Name+" of service "+s.Name+" runs "+what, "", "")
		}
	}
}

// command is what an instance starts, as the OCI image specification has it.
func command(s kiln.Service, config v1.Image) []string {
	entrypoint, arguments := config.Config.Entrypoint, config.Config.Cmd
	if len(s.Config.Entrypoint) > 0 {
		entrypoint, arguments = s.Config.Entrypoint, nil
	}
	if len(s.Config.Command) > 0 {
		arguments = s.Config.Command
	}
	return slices.Concat(entrypoint, arguments)
}

// missingProgram names a command's program when it is for sure not in the
// image; empty otherwise.
func missingProgram(s kiln.Service, command []string, config v1.Image, tree fs.FS) string {
	if len(command) == 0 || command[0] == "" {
		return ""
	}
	program := command[0]
	var candidates []string
	switch {
	case path.IsAbs(program):
		candidates = []string{program}
	case strings.Contains(program, "/"):
		candidates = []string{path.Join("/", s.Config.WorkingDir, program)}
		if s.Config.WorkingDir == "" {
			candidates = []string{path.Join("/", config.Config.WorkingDir, program)}
		}
	default:
		for folder := range strings.SplitSeq(searchPath(s, config), ":") {
			if !path.IsAbs(folder) {
				return "" // relative to where it starts
			}
			candidates = append(candidates, path.Join(folder, program))
		}
	}
	for _, at := range candidates {
		if mayBe(s, tree, at) {
			return ""
		}
	}
	return printable(program) + ", which the image has not"
}

func searchPath(s kiln.Service, config v1.Image) string {
	if p, ok := s.Config.Env["PATH"]; ok {
		return p
	}
	for _, e := range config.Config.Env {
		if p, ok := strings.CutPrefix(e, "PATH="); ok {
			return p
		}
	}
	return defaultPath
}

// mayBe says whether a program may be at a path: it is there and may be run, or
// that cannot be told.
func mayBe(s kiln.Service, tree fs.FS, at string) bool {
	done, rest := "/", strings.Split(strings.Trim(path.Clean(at), "/"), "/")
	for links := 0; len(rest) > 0; {
		step := path.Join(done, rest[0])
		rest = rest[1:]
		if slices.ContainsFunc(s.Config.Writable, func(w kiln.Writable) bool { return w.Path == step }) || step == "/proc" || step == "/dev" || step == "/sys" {
			return true // mounted when it runs
		}
		info, err := fs.Lstat(tree, inTree(step))
		if err != nil {
			return !errors.Is(err, fs.ErrNotExist)
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			if len(rest) == 0 {
				return info.Mode().IsRegular() && info.Mode()&0o111 != 0
			}
			done = step
			continue
		}
		target, err := fs.ReadLink(tree, inTree(step))
		if links++; links > maxLinks || err != nil {
			return true
		}
		if path.IsAbs(target) {
			done = "/"
		}
		rest = append(strings.Split(strings.Trim(path.Clean(target), "/"), "/"), rest...)
	}
	return false
}

func inTree(at string) string {
	if at == "/" {
		return "."
	}
	return strings.TrimPrefix(at, "/")
}

// References judges the image references that an image is made from: one with
// a tag must be pinned by the lock that the definition came with.
func (l *Lint) References(references []string, lock kiln.Lock) {
	for _, r := range references {
		if strings.Contains(r, "@sha256:") {
			continue
		}
		if !slices.ContainsFunc(lock.References, func(p kiln.LockedReference) bool { return p.Reference == r && p.Index != "" }) {
			l.add(MutableBase, printable(r)+" is a tag that no lock pins", "", "")
		}
	}
}
