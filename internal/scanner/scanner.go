// Package scanner asks other scanners about an image: Trivy and Snyk, found on
// PATH. A scanner is a program like any other that Kiln starts: it has a bound
// on its time and on what it writes, a home of its own that is removed, and what
// it prints is believed only when it is what its manual says. What fails is an
// error; no finding is taken from a scanner that failed.
package scanner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
)

// The bounds of a scanner.
const (
	maxOutput   = 64 << 20 // bytes of a report
	maxSpeech   = 64 << 10 // bytes of standard error that are kept
	maxFindings = 100_000
	grace       = 5 * time.Second // from the end of its time to the end of its pipes
)

// Scanner asks scanners. The zero value looks for them on PATH and gives them
// ten minutes. Its methods may be called concurrently.
type Scanner struct {
	// Timeout is how long one may take; 0 is ten minutes.
	Timeout time.Duration
	// Cache is a folder that scanners keep their databases in; empty means
	// that they load them anew.
	Cache string
	// Environment are "NAME=value" that are handed over besides PATH and HOME:
	// tokens and proxies. Nil means those of this process that the scanners
	// document.
	Environment []string
	// Launch is a command that becomes the user UID with the group GID, and then
	// the program that follows it: a scanner reads what strangers made. Without it
	// a scanner is this process's user. That user must be able to read the image.
	Launch   []string
	UID, GID int

	cache turn
}

// turn is held by one at a time. The zero value is nobody's.
type turn struct {
	once sync.Once
	held chan struct{}
}

func (t *turn) take(ctx context.Context) error {
	t.once.Do(func() { t.held = make(chan struct{}, 1) })
	select {
	case t.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *turn) end() { <-t.held }

// Image says where an image is, for whom it is asked.
type Image struct {
	Layout  string // a folder with an OCI image layout that holds this image alone
	Archive string // the same as a tar archive
}

// tool is one scanner.
type tool struct {
	name    string
	install string // the hint where it is missing
	// input is the path that it reads.
	input func(Image) string
	args  func(input, cache string) []string
	// alone is one that has the cache for itself: who finds it taken gives up
	// after seconds.
	alone bool
	// clean says whether an exit status means that the report is whole.
	clean func(status int) bool
	parse func(report []byte) ([]kiln.Finding, error)
	// said is what a report says about why there is none, for one that does not
	// say so on standard error.
	said func(report []byte) string
	// statuses says in words what its manual says of a status.
	statuses map[int]string
}

func tools() []tool {
	return []tool{trivy(), snyk()}
}

// Names are the scanners that can be asked, sorted.
func Names() []string { return []string{"snyk", "trivy"} }

// Scan asks one scanner about an image. The findings are of the kind scanner
// and open; their order is not said.
//
// The error is a *kiln.Error: not_found where the program is not installed,
// invalid for a name that is none of Names, else failed. It says why the scanner
// did not judge the image; its evidence is the end of what the scanner said.
func (s *Scanner) Scan(ctx context.Context, name string, image Image) ([]kiln.Finding, error) {
	all := tools()
	i := slices.IndexFunc(all, func(t tool) bool { return t.name == name })
	if i < 0 {
		return nil, kiln.Errorf(kiln.CodeInvalid, "there are: "+strings.Join(Names(), ", "), "there is no scanner %q", name)
	}
	t := all[i]
	input := t.input(image)
	if input == "" {
		return nil, kiln.Errorf(kiln.CodeInternal, "report this", "%s was given no image that it reads", name)
	}
	program, err := exec.LookPath(name)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeNotFound, t.install, "%s is not installed where the control plane runs: %w", name, err)
	}
	if t.alone {
		if err := s.cache.take(ctx); err != nil {
			return nil, fmt.Errorf("wait for %s to end with another image: %w", name, err)
		}
		defer s.cache.end()
	}
	return s.run(ctx, t, program, input)
}

func (s *Scanner) run(ctx context.Context, t tool, program, input string) ([]kiln.Finding, error) {
	home, err := s.home(t.name)
	if err != nil {
		return nil, fmt.Errorf("make a home for %s: %w", t.name, err)
	}
	defer func() { _ = os.RemoveAll(home) }()
	timeout := s.Timeout
	if timeout == 0 {
		timeout = 10 * time.Minute
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cache := s.Cache
	if cache == "" {
		cache = filepath.Join(home, "cache")
	}
	report, speech := &confine.Beginning{Most: maxOutput, Over: cancel}, &confine.Beginning{Most: maxSpeech}
	command := slices.Concat(s.Launch, []string{program}, t.args(input, cache))
	cmd := exec.CommandContext(bounded, command[0], command[1:]...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home}, s.environment()...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = home, report, speech, grace
	own(cmd)
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("ask %s: %w", t.name, ctx.Err())
	case report.Cut():
		return nil, t.failed(speech, "it printed more than %d bytes", maxOutput)
	case bounded.Err() != nil:
		return nil, t.failed(speech, "it took longer than %s", timeout)
	case errors.As(err, &exit) && exit.Exited() && t.clean(exit.ExitCode()):
	case errors.As(err, &exit) && exit.Exited():
		e := t.failed(speech, "it ended with status %d%s", exit.ExitCode(), t.words(exit.ExitCode()))
		if t.said != nil && len(e.Evidence) == 0 {
			e.Evidence = evidence(t.said(report.Bytes()))
		}
		return nil, e
	case err != nil:
		return nil, t.failed(speech, "%w", err)
	}
	return t.read(report.Bytes(), speech)
}

// read reads a tool's report.
func (t tool) read(report []byte, speech *confine.Beginning) ([]kiln.Finding, error) {
	findings, err := t.parse(report)
	if err != nil {
		return nil, t.failed(speech, "what it printed is not its report: %w", err)
	}
	if len(findings) > maxFindings {
		return nil, t.failed(speech, "it reports more than %d findings", maxFindings)
	}
	return findings, nil
}

// home makes a home for a scanner, and the cache; both are its user's.
func (s *Scanner) home(name string) (string, error) {
	home, err := os.MkdirTemp("", "kiln-"+name+"-")
	if err != nil || s.UID == 0 {
		return home, err
	}
	err = os.Lchown(home, s.UID, s.GID)
	if err == nil && s.Cache != "" {
		if err = os.MkdirAll(s.Cache, 0o700); err == nil {
			err = os.Lchown(s.Cache, s.UID, s.GID)
		}
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(home))
	}
	return home, nil
}

func (s *Scanner) environment() []string {
	if s.Environment != nil {
		return s.Environment
	}
	var out []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, "TRIVY_") || strings.HasPrefix(name, "SNYK_") || slices.Contains([]string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"}, name) {
			out = append(out, e)
		}
	}
	return out
}

func (t tool) words(status int) string {
	if w := t.statuses[status]; w != "" {
		return ": " + w
	}
	return ""
}

// failed is the error of a scanner that did not judge, with the end of what it
// said.
func (t tool) failed(speech *confine.Beginning, format string, args ...any) *kiln.Error {
	e := kiln.Errorf(kiln.CodeFailed, "run "+t.name+" by hand where the control plane runs, and mend what it says", format, args...)
	e.Evidence = evidence(speech.String())
	return e
}

// clock is the time that a line of a log begins with. Without it the same failure
// is the same.
var clock = regexp.MustCompile(`^\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)\s+`)

// evidence is the end of what was said, without empty lines.
func evidence(speech string) []string {
	var out []string
	for line := range strings.Lines(printable(speech)) {
		if line = words(clock.ReplaceAllString(strings.TrimSpace(line), "")); line != "" {
			out = append(out, line)
		}
	}
	return out[max(0, len(out)-10):]
}

// printable takes out what would move a terminal's cursor, and bounds what is
// left of a line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// words bounds a text of a report and keeps it on one line.
func words(s string) string {
	s = strings.Join(strings.Fields(printable(s)), " ")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "..."
	}
	return strings.TrimSuffix(s, ".")
}

// change says what to do about a finding. Several versions are of several lines
// of releases.
func change(f kiln.Finding) string {
	if len(f.FixedIn) == 0 {
		return "no version mends it: do without " + f.Package + ", or ignore the finding with a reason"
	}
	return "upgrade " + f.Package + " to " + strings.Join(f.FixedIn, " or ")
}

// severity reads a scanner's word.
func severity(s string) kiln.Severity {
	if out := kiln.Severity(strings.ToLower(s)); out.Rank() > 0 {
		return out
	}
	return kiln.SeverityUnknown
}

func absolute(path string) string {
	if path == "" || strings.HasPrefix(path, "/") {
		return path
	}
	return "/" + path
}
