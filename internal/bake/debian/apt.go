package debian

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// aptConf is a configuration of apt that knows nothing of the machine's:
// neither its sources nor its preferences, options, keys and state.
// ForceEssential keeps apt from counting itself among the essential packages.
const aptConf = `Dir "/mnt";
Dir::Etc "/mnt";
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "/mnt/none";
Dir::Etc::SourceList "/mnt/sources.list";
Dir::Etc::SourceParts "/mnt/none";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/mnt/none";
Dir::Etc::Trusted "/dev/null";
Dir::Etc::TrustedParts "/mnt/none";
Dir::State "/mnt/state";
Dir::State::Lists "/mnt/lists";
Dir::State::status "/mnt/status";
Dir::Cache "/mnt/cache";
Dir::Log "/mnt/state";
APT::Architecture "ARCH";
APT::Architectures "ARCH";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Acquire::AllowInsecureRepositories "false";
Acquire::ForceHash "SHA256";
Debug::NoLocking "true";
pkgCacheGen::ForceEssential ",";
`

func aptEnv() []string { return []string{"APT_CONFIG=" + path.Join(mount, "apt.conf")} }

// solve lets apt read the sources and choose.
func (w *work) solve(ctx context.Context, d kiln.Debian, sources []source, progress func(kiln.Progress)) ([]kiln.LockedPackage, error) {
	if err := w.prepareApt(sources); err != nil {
		return nil, err
	}
	step := "read package lists"
	start := time.Now()
	said := func(line string) { progress(kiln.Progress{Step: step, Message: line}) }
	var out bytes.Buffer
	if err := w.run(ctx, plainScript, aptEnv(), &out, said, "apt-get", "update", "-q", "--error-on=any"); err != nil {
		return nil, err
	}
	progress(kiln.Progress{Step: step, Done: true, Took: time.Since(start)})
	want := append([]string{"?essential"}, d.Packages...)
	if d.Apt {
		want = append(want, "apt", "debian-archive-keyring")
	}
	packages, err := w.choose(ctx, want)
	if err != nil {
		return nil, err
	}
	// The package usrmerge moves files of an installed system and needs all of
	// Perl; its stand-in needs nothing and suits a system that is born merged.
	if slices.ContainsFunc(packages, func(p kiln.LockedPackage) bool { return p.Name == "usrmerge" }) {
		return w.choose(ctx, append(want, "usr-is-merged", "usrmerge-"))
	}
	return packages, nil
}

func (w *work) prepareApt(sources []source) error {
	keys, err := os.ReadFile(w.keyring)
	if err != nil {
		return fmt.Errorf("prepare apt: %w", err)
	}
	for _, name := range []string{"lists", "lists/partial", "cache", "cache/archives", "cache/archives/partial", "state", "none"} {
		if err := w.folder(name); err != nil {
			return fmt.Errorf("prepare apt: %w", err)
		}
	}
	ring := "keyring.gpg"
	if armored(keys) {
		ring = "keyring.asc" // apt goes by the name
	}
	var list strings.Builder
	for _, s := range sources {
		fmt.Fprintf(&list, "deb [arch=%s signed-by=/mnt/%s] %s %s %s\n", w.arch, ring, s.uri, s.suite, strings.Join(debianComponents(s), " "))
	}
	for name, content := range map[string]string{
		"apt.conf":     strings.ReplaceAll(aptConf, "ARCH", w.arch),
		"sources.list": list.String(),
		"status":       "",
		ring:           string(keys),
	} {
		if err := w.write(name, content); err != nil {
			return fmt.Errorf("prepare apt: %w", err)
		}
	}
	return nil
}

// choose asks apt what it would install.
func (w *work) choose(ctx context.Context, want []string) ([]kiln.LockedPackage, error) {
	var out bytes.Buffer
	args := append([]string{"apt-get", "install", "-qq", "-y", "--print-uris", "-o", "Acquire::ForceHash=SHA256", "--"}, want...)
	if err := w.run(ctx, plainScript, aptEnv(), &out, nil, args...); err != nil {
		return nil, err
	}
	return parseURIs(out.String())
}

// parseURIs reads what apt-get --print-uris writes:
// 'URL' name_version_arch.deb SIZE SHA256:HEX, where the name is escaped as
// in a URL.
func parseURIs(text string) ([]kiln.LockedPackage, error) {
	var out []kiln.LockedPackage
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "'") {
			continue
		}
		p, err := parseURI(line)
		if err != nil {
			return nil, kiln.Errorf(kiln.CodeInternal, "", "apt-get wrote %q: %w", line, err)
		}
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, kiln.Errorf(kiln.CodeFailed, "", "apt chose no packages")
	}
	slices.SortFunc(out, func(a, b kiln.LockedPackage) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Architecture, b.Architecture))
	})
	return out, nil
}

func parseURI(line string) (kiln.LockedPackage, error) {
	at, rest, ok := strings.Cut(line[1:], "'")
	f := strings.Fields(rest)
	if !ok || len(f) != 3 {
		return kiln.LockedPackage{}, fmt.Errorf("want 4 fields")
	}
	hash, ok := strings.CutPrefix(f[2], "SHA256:")
	if !ok {
		return kiln.LockedPackage{}, fmt.Errorf("want a SHA-256")
	}
	digest, err := kiln.ParseDigest("sha256:" + hash)
	if err != nil {
		return kiln.LockedPackage{}, err
	}
	size, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil {
		return kiln.LockedPackage{}, err
	}
	file, err := url.PathUnescape(strings.TrimSuffix(f[0], ".deb"))
	if err != nil {
		return kiln.LockedPackage{}, err
	}
	parts := strings.Split(file, "_")
	if len(parts) != 3 {
		return kiln.LockedPackage{}, fmt.Errorf("want name_version_arch")
	}
	return kiln.LockedPackage{Name: parts[0], Version: parts[1], Architecture: parts[2], Digest: digest, Size: size, URL: at}, nil
}
