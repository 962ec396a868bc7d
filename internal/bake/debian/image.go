package debian

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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
	var index bytes.Buffer
	for _, p := range packages {
		file := filepath.Join(w.dir, "repo", p.Digest.Hex()+".deb")
		if err := b.copyBlob(p.Digest, file); err != nil {
			return fmt.Errorf("lay out package %s: %w", p.Name, err)
		}
		control, err := exec.CommandContext(ctx, "dpkg-deb", "--field", file).Output()
		if err != nil {
			return fmt.Errorf("read package %s: %w", p.Name, err)
		}
		all := stanzas(string(control))
		if len(all) != 1 || all[0]["package"] != p.Name || all[0]["version"] != p.Version || all[0]["architecture"] != p.Architecture {
			return kiln.Errorf(kiln.CodeInvalid, "Remove the image's entry from kiln.lock.",
				"the lock's digest for %s %s is another package's", p.Name, p.Version)
		}
		fmt.Fprintf(&index, "%s\nFilename: ./%s.deb\nSize: %d\nSHA256: %s\n\n",
			bytes.TrimSpace(control), p.Digest.Hex(), p.Size, p.Digest.Hex())
	}
	return w.write("repo/Packages", index.String())
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
	tarR, tarW := io.Pipe()
	layerR, layerW := io.Pipe()
	filtered := make(chan error, 1)
	go func() {
		f := filter{epoch: time.Unix(b.opts.Epoch, 0).UTC(), keepApt: d.Apt, extra: aptSources(d, lock)}
		err := f.copy(layerW, tarR)
		_ = layerW.CloseWithError(err)
		_ = tarR.CloseWithError(err)
		filtered <- err
	}()
	ran := make(chan error, 1)
	go func() {
		err := w.run(ctx, bootstrapScript, b.bootstrapEnv(lock.Packages), tarW, say, bootstrapCommand(w.arch, lock.Packages)...)
		_ = tarW.CloseWithError(err)
		ran <- err
	}()
	layer, size, putErr := b.opts.Store.Put(ctx, layerR, "")
	_ = layerR.CloseWithError(putErr)
	runErr, filterErr := <-ran, <-filtered
	if runErr != nil {
		return "", 0, runErr
	}
	if err := errors.Join(filterErr, putErr); err != nil {
		return "", 0, fmt.Errorf("keep the installed packages: %w", err)
	}
	return layer, size, nil
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
