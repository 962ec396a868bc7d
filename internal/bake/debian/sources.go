package debian

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/kilnproject/kiln"
	"golang.org/x/sync/errgroup"
)

// source is one suite of one archive.
type source struct {
	uri        string // base, without a slash at its end
	suite      string // as apt's sources name it, perhaps "stable"
	components []string
	signedBy   string // the keyring that apt's sources name, empty for any
}

// debianComponents are the components of a source that Debian has.
func debianComponents(s source) []string {
	var out []string
	for _, c := range []string{"main", "contrib", "non-free", "non-free-firmware"} {
		if slices.Contains(s.components, c) {
			out = append(out, c)
		}
	}
	return out
}

// sources returns the suites that an image is made from, each checked to be
// Debian's: from the mirror when there is one, else from the machine's apt.
func (b *Builder) sources(ctx context.Context, d kiln.Debian, keyring string) ([]source, error) {
	var candidates []source
	var err error
	if d.Mirror != "" {
		candidates, err = mirrorSources(d)
	} else {
		candidates, err = machineSources(b.opts.Etc, keyring)
	}
	if err != nil {
		return nil, err
	}
	keys, err := readKeyring(keyring)
	if err != nil {
		return nil, err
	}
	wanted := []string{d.Suite, d.Suite + "-updates", d.Suite + "-security"}
	accepted := map[string]source{}
	var mu sync.Mutex
	var first error
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, c := range plausible(candidates, d.Suite) {
		g.Go(func() error {
			codename, err := b.codename(each, keys, c)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				b.opts.Log.Info("leave out an archive", "uri", c.uri, "suite", c.suite, "error", err)
				if first == nil || c.suite == d.Suite {
					first = err
				}
				return each.Err()
			}
			if slices.Contains(wanted, codename) {
				accepted[c.uri+" "+codename] = c
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := make([]source, 0, len(accepted))
	main := false
	for key, s := range accepted {
		main = main || strings.HasSuffix(key, " "+d.Suite)
		out = append(out, s)
	}
	if !main {
		return nil, noSource(d, first)
	}
	slices.SortFunc(out, func(x, y source) int { return cmp.Compare(x.uri+" "+x.suite, y.uri+" "+y.suite) })
	return out, nil
}

func noSource(d kiln.Debian, cause error) error {
	if d.Mirror != "" {
		return kiln.Errorf(kiln.CodeUnavailable, "Give the base URL of a Debian archive that has the suite: the folder that holds dists and pool.",
			"the mirror %s has no signed Debian suite %q: %w", d.Mirror, d.Suite, cmp.Or(cause, errors.New("another code name")))
	}
	if cause != nil {
		return kiln.Errorf(kiln.CodeUnavailable, `Check the network, or set mirror in the debian block to the base URL of a Debian archive.`,
			"no signed Debian archive of %q that this machine's apt uses can be read: %w", d.Suite, cause)
	}
	return kiln.Errorf(kiln.CodeInvalid, `Set mirror in the debian block to the base URL of a Debian archive.`,
		"this machine's apt uses no signed Debian archive of %q", d.Suite)
}

// mirrorSources guesses the suites of a mirror: the security archive is
// beside the main one where both are mirrored.
func mirrorSources(d kiln.Debian) ([]source, error) {
	u, err := url.Parse(d.Mirror)
	if err != nil || !slices.Contains([]string{"http", "https", "file"}, u.Scheme) || strings.ContainsAny(d.Mirror, " \t\n\"'[]\\;") || u.RawQuery != "" || u.Fragment != "" {
		return nil, kiln.Errorf(kiln.CodeInvalid, "Use an http, https or file URL.", "%q is not the URL of a Debian archive", d.Mirror)
	}
	base := strings.TrimRight(d.Mirror, "/")
	return []source{
		{uri: base, suite: d.Suite, components: []string{"main"}},
		{uri: base, suite: d.Suite + "-updates", components: []string{"main"}},
		{uri: base + "-security", suite: d.Suite + "-security", components: []string{"main"}},
		{uri: base, suite: d.Suite + "-security", components: []string{"main"}},
	}, nil
}

// plausible keeps the sources whose suite may be the wanted one: by its code
// name, or by a name such as "stable" that says nothing.
func plausible(all []source, suite string) []source {
	var out []source
	for _, s := range all {
		name := strings.TrimSuffix(strings.TrimSuffix(s.suite, "-updates"), "-security")
		alias := slices.Contains([]string{"stable", "oldstable", "oldoldstable", "testing", "unstable"}, name)
		if name == suite || alias {
			out = append(out, s)
		}
	}
	return out
}

// machineSources reads the sources of the machine's apt. Sources that name
// another keyring than Debian's are third parties' and left out.
func machineSources(etc, keyring string) ([]source, error) {
	var out []source
	files := []string{filepath.Join(etc, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(etc, "sources.list.d", pattern))
		if err != nil {
			return nil, fmt.Errorf("list apt's sources: %w", err)
		}
		files = append(files, more...)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read apt's sources: %w", err)
		}
		if strings.HasSuffix(f, ".sources") {
			out = append(out, parseDeb822(string(b))...)
		} else {
			out = append(out, parseList(string(b))...)
		}
	}
	return slices.DeleteFunc(out, func(s source) bool { return !ours(s, keyring) }), nil
}

// ours says whether a source may be Debian's.
func ours(s source, keyring string) bool {
	scheme, _, _ := strings.Cut(s.uri, ":")
	if !slices.Contains([]string{"http", "https", "file"}, scheme) || !slices.Contains(s.components, "main") {
		return false
	}
	named := path.Base(s.signedBy)
	return s.signedBy == "" || s.signedBy == keyring ||
		strings.HasPrefix(named, "debian-archive-") && path.Dir(s.signedBy) == path.Dir(keyring)
}

// parseList reads one-line sources (sources.list(5)).
func parseList(text string) []source {
	var out []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		rest = strings.TrimSpace(rest)
		s := source{}
		if strings.HasPrefix(rest, "[") {
			options, after, closed := strings.Cut(rest[1:], "]")
			if !closed {
				continue
			}
			for o := range strings.FieldsSeq(options) {
				if key, value, _ := strings.Cut(o, "="); strings.EqualFold(key, "signed-by") {
					s.signedBy = value
				}
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 3 {
			continue
		}
		s.uri, s.suite, s.components = strings.TrimRight(f[0], "/"), f[1], f[2:]
		out = append(out, s)
	}
	return out
}

// parseDeb822 reads sources of the newer form (sources.list(5)).
func parseDeb822(text string) []source {
	var out []source
	for _, f := range stanzas(text) {
		if !slices.Contains(strings.Fields(f["types"]), "deb") || strings.EqualFold(f["enabled"], "no") {
			continue
		}
		signed := f["signed-by"]
		if strings.Contains(signed, "\n") {
			signed = "an inline key"
		}
		for uri := range strings.FieldsSeq(f["uris"]) {
			for suite := range strings.FieldsSeq(f["suites"]) {
				out = append(out, source{strings.TrimRight(uri, "/"), suite, strings.Fields(f["components"]), signed})
			}
		}
	}
	return out
}

func readKeyring(file string) (openpgp.EntityList, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, unreadableKeys(file, err)
	}
	read := openpgp.ReadKeyRing
	if armored(b) {
		read = openpgp.ReadArmoredKeyRing
	}
	keys, err := read(bytes.NewReader(b))
	if err != nil {
		return nil, unreadableKeys(file, err)
	}
	return keys, nil
}

func unreadableKeys(file string, err error) error {
	return kiln.Errorf(kiln.CodeUnavailable, "gpg --export KEY > "+file+" makes one; kilnd.hcl names it", "read the keys of the Debian archives, %s: %w", file, err)
}

// armored says whether keys are written as text.
func armored(keys []byte) bool { return bytes.HasPrefix(keys, []byte("-----BEGIN")) }

const maxRelease = 8 << 20 // bytes of an InRelease file

// codename fetches a suite's InRelease file, checks its signature, its origin
// and its date, and returns the suite's code name.
func (b *Builder) codename(ctx context.Context, keys openpgp.EntityList, s source) (string, error) {
	raw, err := b.get(ctx, s.uri+"/dists/"+s.suite+"/InRelease", maxRelease)
	if err != nil {
		return "", err
	}
	return checkRelease(keys, raw, time.Now())
}

// checkRelease returns the code name that a signed Release file of Debian's
// states.
func checkRelease(keys openpgp.EntityList, raw []byte, now time.Time) (string, error) {
	block, _ := clearsign.Decode(raw)
	if block == nil {
		return "", errors.New("InRelease is not signed")
	}
	if _, err := block.VerifySignature(keys, &packet.Config{Time: func() time.Time { return now }}); err != nil {
		return "", fmt.Errorf("InRelease is not signed by Debian: %w", err)
	}
	all := stanzas(string(block.Plaintext))
	if len(all) == 0 {
		return "", errors.New("InRelease is empty")
	}
	release := all[0]
	if release["origin"] != "Debian" {
		return "", fmt.Errorf("its origin is %q, want Debian", release["origin"])
	}
	if until, err := time.Parse(time.RFC1123, release["valid-until"]); err == nil && now.After(until) {
		return "", fmt.Errorf("it was valid until %s", until.Format(time.DateOnly))
	}
	return release["codename"], nil
}
