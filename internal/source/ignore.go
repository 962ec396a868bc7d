package source

import (
	"bytes"
	"io"
	"os"
	"path"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/kilnproject/kiln"
)

// maxIgnoreFile is in bytes.
const maxIgnoreFile = 1 << 20

// ignore is what one Dockerfile's ignore file leaves out of its context.
type ignore struct {
	matcher *patternmatcher.PatternMatcher
	// prefixes says that all exceptions (!pattern) begin with plain names, so
	// that whole folders can be skipped.
	prefixes bool
	parents  map[string]patternmatcher.MatchInfo
}

// newIgnore reads the content of an ignore file; without one, only .git is
// left out.
func newIgnore(name string, content []byte) (*ignore, error) {
	more, err := ignorefile.ReadAll(bytes.NewReader(content))
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "correct its patterns", "read %s: %w", name, err)
	}
	m, err := patternmatcher.New(append([]string{".git"}, more...))
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "correct the patterns of its "+name, "%w", err)
	}
	i := &ignore{matcher: m, prefixes: true, parents: map[string]patternmatcher.MatchInfo{}}
	for _, p := range m.Patterns() {
		if p.Exclusion() && strings.ContainsAny(withoutFinalGlob(p), `*[]?^\`) {
			i.prefixes = false
		}
	}
	return i, nil
}

func ignoreFiles(dockerfile string) []string {
	return []string{dockerfile + ".dockerignore", ".dockerignore"}
}

func readSmall(root *os.Root, name string) ([]byte, error) {
	info, err := root.Lstat(name)
	if err == nil && !info.Mode().IsRegular() {
		return nil, kiln.Errorf(kiln.CodeRefused, "make it a file", "%s is %s", name, kind(info.Mode()))
	}
	f, err := openRegular(root, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxIgnoreFile+1))
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "", "read %s: %w", name, err)
	}
	if len(b) > maxIgnoreFile {
		return nil, kiln.Errorf(kiln.CodeRefused, "", "%s has more than %d bytes", name, maxIgnoreFile)
	}
	return b, nil
}

// hides says whether an entry is left out, and for a folder whether nothing
// below it can be let in again. Parents must be asked before what they hold.
func (i *ignore) hides(name string, folder bool) (hidden, whole bool, err error) {
	hidden, info, err := i.matcher.MatchesUsingParentResults(name, i.parents[path.Dir(name)])
	if err != nil {
		return false, false, kiln.Errorf(kiln.CodeInvalid, "correct the patterns of its .dockerignore", "match %s: %w", name, err)
	}
	if !folder {
		return hidden, false, nil
	}
	i.parents[name] = info
	return hidden, hidden && i.prefixes && !i.exceptionBelow(name), nil
}

func (i *ignore) exceptionBelow(folder string) bool {
	for _, p := range i.matcher.Patterns() {
		if p.Exclusion() && strings.HasPrefix(withoutFinalGlob(p)+"/", folder+"/") {
			return true
		}
	}
	return false
}

// withoutFinalGlob is the part of a pattern that BuildKit compares with
// folders' names.
func withoutFinalGlob(p *patternmatcher.Pattern) string {
	s := strings.TrimSuffix(p.String(), "/**")
	return strings.TrimSuffix(s, "/*")
}
