package debian

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake/debian/strip"
)

// mergedHook prepares a root whose /bin, /lib and /sbin are links into /usr.
const mergedHook = "/usr/share/mmdebstrap/hooks/merged-usr"

// Build makes the image of locked packages and returns its manifest. Packages
// that the store lacks are downloaded from where the lock says.
func (b *Builder) Build(ctx context.Context, d kiln.Debian, lock kiln.LockedDebian, progress func(kiln.Progress)) (kiln.Digest, error) {
	arch, err := b.check(d, lock.Platform)
	if err != nil {
		return "", err
	}
	if len(lock.Packages) == 0 {
		return "", kiln.Errorf(kiln.CodeInvalid, "Remove the image's entry from kiln.lock.", "the lock names no packages")
	}
	if err := b.fetch(ctx, lock.Packages, progress); err != nil {
		return "", err
	}
	w, err := b.newWork(arch)
	if err != nil {
		return "", err
	}
	defer w.remove()
	if err := b.repository(ctx, w, lock.Packages); err != nil {
		return "", err
	}
	start := time.Now()
	step := fmt.Sprintf("install %d packages", len(lock.Packages))
	say := func(line string) { progress(kiln.Progress{Step: step, Message: line}) }
	layer, size, err := b.install(ctx, w, d, lock, say)
	if err != nil {
		return "", err
	}
	progress(kiln.Progress{Step: step, Done: true, Took: time.Since(start)})
	return b.describe(ctx, d, lock, layer, size)
}

// repository lays the packages out as an archive that apt reads from the
// folder. It is not signed: each file was checked against the lock.
func (b *Builder) repository(ctx context.Context, w *work, packages []kiln.LockedPackage) error {
	if err := os.Mkdir(filepath.Join(w.dir, "repo"), 0o755); err != nil { //nolint:gosec // the sandbox reads it
		return fmt.Errorf("lay out packages: %w", err)
	}
	for _, p := range packages {
		if err := b.copyBlob(p.Digest, filepath.Join(w.dir, "repo", p.Digest.Hex()+".deb")); err != nil {
			return fmt.Errorf("lay out package %s: %w", p.Name, err)
		}
	}
	controls, err := w.controls(ctx, packages)
	if err != nil {
		return err
	}
	var index bytes.Buffer
	for i, p := range packages {
		all := stanzas(controls[i])
		if len(all) != 1 || all[0]["package"] != p.Name || all[0]["version"] != p.Version || all[0]["architecture"] != p.Architecture {
			return kiln.Errorf(kiln.CodeInvalid, "Remove the image's entry from kiln.lock.",
				"the lock's digest for %s %s is another package's", p.Name, p.Version)
		}
		fmt.Fprintf(&index, "%s\nFilename: ./%s.deb\nSize: %d\nSHA256: %s\n\n",
			strings.TrimSpace(controls[i]), p.Digest.Hex(), p.Size, p.Digest.Hex())
	}
	return w.write("repo/Packages", index.String())
}

// maxControl bounds what a package says of itself, in bytes.
const maxControl = 1 << 20

// controls returns what each package says of itself. They are read by an
// unprivileged process, and each text ends with a NUL.
func (w *work) controls(ctx context.Context, packages []kiln.LockedPackage) ([]string, error) {
	const script = `for f in "$@"; do dpkg-deb --field "$f" && printf '\000' || exit 1; done`
	command := []string{"sh", "-c", script, "dpkg-deb"}
	for _, p := range packages {
		command = append(command, "repo/"+p.Digest.Hex()+".deb")
	}
	out := &bounded{left: maxControl * len(packages)}
	if err := w.run(ctx, plainScript, nil, out, nil, command...); err != nil {
		return nil, fmt.Errorf("read the packages: %w", err)
	}
	all := strings.Split(out.b.String(), "\x00")
	if len(all) != len(packages)+1 {
		return nil, kiln.Errorf(kiln.CodeInvalid, "Remove the image's entry from kiln.lock.", "a package's description has a NUL or is too long")
	}
	return all[:len(packages)], nil
}

// bounded keeps what is written up to a number of bytes.
type bounded struct {
	b    bytes.Buffer
	left int
}

func (w *bounded) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errors.New("more than allowed")
	}
	return w.b.Write(p)
}

func (b *Builder) copyBlob(d kiln.Digest, to string) error {
	from, err := b.opts.Store.Open(d)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // the sandbox reads it
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// install runs mmdebstrap and streams the root through the filter into the
// store. The layer is not compressed, so its digest is its diff ID too.
func (b *Builder) install(ctx context.Context, w *work, d kiln.Debian, lock kiln.LockedDebian, say func(string)) (layer kiln.Digest, size int64, err error) {
	if err := os.Mkdir(filepath.Join(w.dir, "tmp"), 0o700); err != nil {
		return "", 0, fmt.Errorf("install packages: %w", err)
	}
	if err := os.Chmod(filepath.Join(w.dir, "tmp"), 0o1777|os.ModeSticky); err != nil {
		return "", 0, fmt.Errorf("install packages: %w", err)
	}
	tarR, tarW, err := os.Pipe()
	if err != nil {
		return "", 0, fmt.Errorf("install packages: %w", err)
	}
	layerR, layerW, err := os.Pipe()
	if err != nil {
		return "", 0, errors.Join(fmt.Errorf("install packages: %w", err), tarR.Close(), tarW.Close())
	}
	ctx, stop := context.WithCancel(ctx) // what one end cannot go on with, the others need not
	defer stop()
	filtered := make(chan error, 1)
	go func() {
		f := strip.Filter{Epoch: b.opts.Epoch, KeepApt: d.Apt, Extra: aptSources(d, lock)}
		err := b.filter(ctx, f, tarR, layerW)
		filtered <- errors.Join(err, tarR.Close(), layerW.Close())
	}()
	ran := make(chan error, 1)
	go func() {
		err := w.run(ctx, bootstrapScript, b.bootstrapEnv(lock.Packages), tarW, say, bootstrapCommand(w.arch, lock.Packages)...)
		ran <- errors.Join(err, tarW.Close())
	}()
	layer, size, putErr := b.opts.Store.Put(ctx, layerR, "")
	_ = layerR.Close() // whoever still writes is told
	runErr, filterErr := <-ran, <-filtered
	if runErr != nil {
		return "", 0, runErr
	}
	if err := errors.Join(filterErr, putErr); err != nil {
		return "", 0, fmt.Errorf("keep the installed packages: %w", err)
	}
	return layer, size, nil
}

// filter filters a root in a process of its own or, without a program for
// that, in this one.
func (b *Builder) filter(ctx context.Context, f strip.Filter, in, out *os.File) error {
	if b.opts.Worker.Path == "" {
		return f.Copy(out, in)
	}
	return b.opts.Worker.Call(ctx, strip.Task, f, nil, in, out)
}

func (b *Builder) bootstrapEnv(packages []kiln.LockedPackage) []string {
	return []string{
		"TMPDIR=" + path.Join(mount, "tmp"),
		fmt.Sprintf("SOURCE_DATE_EPOCH=%d", b.opts.Epoch),
		fmt.Sprintf("KILN_TMPFS=%d", memoryFor(packages)),
	}
}

// memoryFor returns how many bytes of memory the root may grow in; 0 when the
// machine has not plenty. Packages unpack to five times their size or so, and
// are copied once.
func memoryFor(packages []kiln.LockedPackage) int64 {
	var want int64
	for _, p := range packages {
		want += 16 * p.Size
	}
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		var free int64 // KiB
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &free); n == 1 && want < free<<10/4 {
			return want
		}
	}
	return 0
}

// bootstrapCommand installs every package of the repository. Flushing each
// file to the disk is left out: a build that the machine loses is made again.
func bootstrapCommand(arch string, packages []kiln.LockedPackage) []string {
	names := make([]string, 0, len(packages))
	merged := false
	for _, p := range packages {
		names = append(names, p.Name)
		merged = merged || p.Name == "usr-is-merged"
	}
	args := []string{
		"mmdebstrap", "--mode=unshare", "--variant=essential", "--format=tar", "--architectures=" + arch,
		"--skip=check/signed-by,cleanup/reproducible/machine-id",
		"--dpkgopt=force-unsafe-io",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/info/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--include=" + strings.Join(names, ","),
	}
	if merged {
		args = append(args, "--hook-dir="+mergedHook)
	}
	return append(args, "", "-", "deb [trusted=yes] copy:"+path.Join(mount, "repo")+" ./")
}

// aptSources is the image's own source of packages where it keeps apt: the
// archives that its packages came from.
func aptSources(d kiln.Debian, lock kiln.LockedDebian) map[string]string {
	if !d.Apt {
		return nil
	}
	var roots []string
	for _, p := range lock.Packages {
		if root, _, ok := strings.Cut(p.URL, "/pool/"); ok && !slices.Contains(roots, root) {
			roots = append(roots, root)
		}
	}
	slices.Sort(roots)
	var text strings.Builder
	for _, root := range roots {
		suites := d.Suite + " " + d.Suite + "-updates"
		if strings.HasSuffix(root, "-security") {
			suites = d.Suite + "-security"
		}
		fmt.Fprintf(&text, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n", root, suites)
	}
	return map[string]string{"etc/apt/sources.list.d/debian.sources": text.String()}
}

// describe writes the image's config and manifest.
func (b *Builder) describe(ctx context.Context, d kiln.Debian, lock kiln.LockedDebian, layer kiln.Digest, size int64) (kiln.Digest, error) {
	created := time.Unix(b.opts.Epoch, 0).UTC()
	os, arch, _ := strings.Cut(lock.Platform, "/")
	arch, variant, _ := strings.Cut(arch, "/")
	config, err := b.put(ctx, ocispec.MediaTypeImageConfig, ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: os, Architecture: arch, Variant: variant},
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: []string{"/bin/sh"},
		},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.Digest(layer)}},
		History: []ocispec.History{{Created: &created, CreatedBy: "kiln debian " + d.Suite}},
	})
	if err != nil {
		return "", err
	}
	manifest, err := b.put(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.Digest(layer), Size: size}},
	})
	return kiln.Digest(manifest.Digest), err
}

func (b *Builder) put(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("describe the image: %w", err)
	}
	d, n, err := b.opts.Store.Put(ctx, bytes.NewReader(raw), "")
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(d), Size: n}, err
}
