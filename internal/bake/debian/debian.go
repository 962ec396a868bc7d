// Package debian makes golden base images from signed Debian archives,
// without a container registry.
//
// Resolve lets apt choose packages, from archives whose Release file Debian
// has signed, and puts the .deb files into the store. Build installs exactly
// those files with mmdebstrap in its unshare mode: a user namespace in which
// root is an unprivileged user of this machine, without a network. A first
// build and a rebuild from the lock are therefore the same, and give the same
// digest, whether or not the archive still has the packages.
package debian

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
)

// Store is where packages and images are.
type Store interface {
	Put(ctx context.Context, r io.Reader, want kiln.Digest) (kiln.Digest, int64, error)
	Open(d kiln.Digest) (*os.File, error)
	Has(d kiln.Digest) bool
	// Verify removes a blob that is damaged, and says so: kiln.ErrNotFound.
	Verify(ctx context.Context, d kiln.Digest) error
}

// Options configure a builder.
type Options struct {
	Dir   string // the builder's own folder, for work in progress
	Store Store
	Epoch int64 // latest time of a file, Unix seconds
	// Etc is where apt's sources are; "/etc/apt" when empty.
	Etc string
	// Keyring holds the keys of the archives; that of the package
	// debian-archive-keyring when empty. SetKeyring exchanges it.
	Keyring string
	// Client downloads; one that honours the environment's proxies when nil.
	Client *http.Client
	// Worker does a strip.Task, so that what reads an installed root has no
	// privileges. Without it this process reads it.
	Worker confine.Program
	Log    *slog.Logger
}

// Builder makes Debian images. Its methods may be called concurrently.
type Builder struct {
	opts    Options
	keyring atomic.Pointer[string] // file
}

// archiveKeyring has Debian's own keys.
const archiveKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// New makes a builder and removes what a killed one left.
func New(o Options) *Builder {
	if o.Etc == "" {
		o.Etc = "/etc/apt"
	}
	if o.Client == nil {
		o.Client = newClient()
	}
	if left, err := filepath.Glob(filepath.Join(o.Dir, "work-*")); err == nil {
		for _, dir := range left {
			if err := os.RemoveAll(dir); err != nil {
				o.Log.Warn("remove an earlier build's folder", "error", err)
			}
		}
	}
	b := &Builder{opts: o}
	b.SetKeyring(o.Keyring)
	return b
}

// SetKeyring exchanges the file with the keys of the archives; Debian's own when
// empty. What is being resolved keeps the one that it began with.
func (b *Builder) SetKeyring(file string) {
	file = cmp.Or(file, archiveKeyring)
	b.keyring.Store(&file)
}

// Resolve chooses the packages of an image and puts their files into the
// store: Debian's essential packages and what d names, with dependencies and
// without recommendations. The list is sorted.
func (b *Builder) Resolve(ctx context.Context, d kiln.Debian, platform string, progress func(kiln.Progress)) ([]kiln.LockedPackage, error) {
	arch, err := b.check(d, platform)
	if err != nil {
		return nil, err
	}
	w, err := b.newWork(arch)
	if err != nil {
		return nil, err
	}
	defer w.remove()
	if _, err := os.Stat(w.keyring); w.keyring == archiveKeyring && err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "apt-get install debian-archive-keyring", "the keys of the Debian archive are missing: %w", err)
	}
	progress(kiln.Progress{Step: "resolve packages", Message: "looking for signed archives of " + d.Suite})
	sources, err := b.sources(ctx, d, w.keyring)
	if err != nil {
		return nil, err
	}
	packages, err := w.solve(ctx, d, sources, progress)
	if err != nil {
		return nil, err
	}
	progress(kiln.Progress{Step: "resolve packages", Done: true})
	return packages, b.fetch(ctx, packages, progress)
}

var (
	suitePattern   = regexp.MustCompile(`^[a-z][a-z0-9.-]*$`)
	packagePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?$`)
)

// architectures maps Go's names to Debian's where they differ.
func architecture(platform string) string {
	switch _, arch, _ := strings.Cut(platform, "/"); arch {
	case "386":
		return "i386"
	case "arm/v7":
		return "armhf"
	case "arm/v6", "arm/v5":
		return "armel"
	case "ppc64le":
		return "ppc64el"
	default:
		return arch
	}
}

// check refuses what this machine cannot build, and returns Debian's name of
// the architecture.
func (b *Builder) check(d kiln.Debian, platform string) (string, error) {
	if !suitePattern.MatchString(d.Suite) {
		return "", kiln.Errorf(kiln.CodeInvalid, `Use a code name such as "bookworm".`, "%q is not a Debian suite", d.Suite)
	}
	for _, p := range d.Packages {
		if !packagePattern.MatchString(p) {
			return "", kiln.Errorf(kiln.CodeInvalid, `Use a package's name, or "name=version".`, "%q is not a Debian package", p)
		}
	}
	if host := runtime.GOOS + "/" + runtime.GOARCH; platform != host {
		return "", kiln.Errorf(kiln.CodeRefused, "Bake it on a machine of that platform.",
			"a Debian image for %s cannot be installed on %s: its packages' scripts must run", platform, host)
	}
	if os.Geteuid() != 0 {
		return "", kiln.Errorf(kiln.CodeUnavailable, "Run kilnd as root.", "baking a Debian image needs root")
	}
	for program, pkg := range map[string]string{
		"mmdebstrap": "mmdebstrap", "apt-get": "apt", "dpkg-deb": "dpkg",
		"unshare": "util-linux", "setpriv": "util-linux", "newuidmap": "uidmap",
	} {
		if _, err := exec.LookPath(program); err != nil {
			return "", kiln.Errorf(kiln.CodeUnavailable, "apt-get install "+pkg, "baking a Debian image needs the program %s", program)
		}
	}
	return architecture(platform), nil
}

// explain says what a failed program said.
func explain(ctx context.Context, what string, err error, tail []string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	code := kiln.CodeFailed
	if strings.Contains(strings.Join(tail, "\n"), "No space left on device") {
		code = kiln.CodeNoRoom
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("%s: %w", what, err)
	}
	e := kiln.Errorf(code, "The last lines of its output are above.", "%s: %w", what, err)
	e.Evidence = tail
	return e
}
