package spec

import (
	"net/url"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/hashicorp/hcl/v2"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

// images reads all image blocks, sorted by name.
func (l *loader) images() []kiln.Image {
	var out []kiln.Image
	places := map[string]hcl.Range{}
	all := l.gate()
	for _, i := range l.all("image") {
		image, own := l.image(i)
		if image.Gate = over(all, own); image.Reference == "" {
			image.Gate.SignedBy = nil // it is nobody else's
		}
		out = append(out, image)
		places[i.name] = i.at()
	}
	slices.SortFunc(out, func(a, b kiln.Image) int { return compare(a.Name, b.Name) })
	l.checkImages(out, places)
	return out
}

// all expands the blocks of a kind and reports names that occur twice.
func (l *loader) all(kind string) []*instance {
	var out []*instance
	seen := map[string]*instance{}
	for _, b := range l.doc.blocks[kind] {
		list, _ := l.scope.instances(b)
		for _, i := range list {
			if first, ok := seen[i.name]; ok {
				if first.block.Labels[0] != i.block.Labels[0] {
					l.report.Error(i.at(), "Duplicate "+kind, "%s %q is defined at %s already.", kind, i.name, hclfile.Place(first.at()))
				}
				continue
			}
			seen[i.name] = i
			out = append(out, i)
		}
	}
	if len(out) > maxAllObjects {
		l.report.Error(hcl.Range{}, "Too many blocks", "The definition makes %d %ss; at most %d are possible.", len(out), kind, maxAllObjects)
		return nil
	}
	return out
}

func (l *loader) image(i *instance) (image kiln.Image, gate gateSaid) {
	d := l.scope.decode(i.block.Body, i)
	image = kiln.Image{Name: i.name, Platform: d.Checked("platform", "Invalid platform", badPlatform), Hermetic: d.Bool("hermetic", false)}
	if image.Platform == "" {
		image.Platform = "linux/" + runtime.GOARCH
	}
	kinds := 0
	if inner := d.single("dockerfile"); inner != nil {
		kinds++
		image.Dockerfile = dockerfile(inner)
	}
	if inner := d.single("debian"); inner != nil {
		kinds++
		image.Debian = debian(inner)
	}
	if d.Has("reference") {
		kinds++
		image.Reference = d.Checked("reference", "Invalid reference", badReference)
	}
	if inner := d.single("gate"); inner != nil {
		gate = l.gateBlock(inner)
		if inner.Has("signed_by") && !d.Has("reference") {
			l.report.Error(inner.At("signed_by"), "Not an image of a registry", "Image %q is baked here, and signed by this control plane alone. Whose signature an image must have can be said of one with reference = \"...\".", i.block.Labels[0])
		}
	}
	if kinds != 1 {
		l.report.Error(i.at(), "Which kind of image?", "An image has exactly one of dockerfile { ... }, debian { ... } and reference = \"...\"; image %q has %d.", i.block.Labels[0], kinds)
	}
	return image, gate
}

func badPlatform(s string) string {
	if !matches(`linux/(amd64|arm64|arm|386|ppc64le|s390x|riscv64|loong64)(/v[0-9])?`, s) {
		return "is not a platform. Write \"linux/amd64\" or \"linux/arm64\"."
	}
	return ""
}

func dockerfile(d *decoder) *kiln.Dockerfile {
	out := &kiln.Dockerfile{
		Context: ".", File: "Dockerfile",
		Target: d.Checked("target", "Invalid target", func(s string) string {
			if !matches(`[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`, s) {
				return "is not the name of a stage."
			}
			return ""
		}),
	}
	if p := d.Checked("context", "Invalid path", badTreePath); p != "" {
		out.Context = path.Clean(p)
	}
	if p := d.Checked("file", "Invalid path", badTreePath); p != "" {
		out.File = path.Clean(p)
	}
	for _, arg := range d.Table("args", "a map of strings") {
		if !matches(`[A-Za-z_][A-Za-z0-9_]*`, arg.Key) || hasNUL(arg.Text) {
			d.report.Error(arg.At, "Invalid argument of the build", "%q is not the name of an ARG, or its value holds a NUL byte.", arg.Key)
			continue
		}
		if out.Args == nil {
			out.Args = map[string]string{}
		}
		out.Args[arg.Key] = arg.Text
	}
	out.Contexts = contexts(d)
	return out
}

// contexts reads { base = image.base }.
func contexts(d *decoder) map[string]string {
	a, ok := d.Value("contexts")
	if !ok {
		return nil
	}
	if ty := a.Type(); !ty.IsObjectType() && !ty.IsMapType() {
		d.report.Error(a.At, "Unsuitable value", "contexts must be a map of images: { base = image.base }.")
		return nil
	}
	places := d.KeyPlaces("contexts")
	out := map[string]string{}
	for it := a.ElementIterator(); it.Next(); {
		k, v := it.Element()
		at := a
		if r, ok := places[k.AsString()]; ok {
			at.At = r
		}
		if !matches(`[a-z0-9]([a-z0-9._/:-]{0,126}[a-z0-9])?`, k.AsString()) {
			d.report.Error(at.At, "Invalid name", "%q is not a name that FROM can use.", k.AsString())
			continue
		}
		if image := d.blockName(at, "contexts", "image", v); image != "" {
			out[k.AsString()] = image
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// badTreePath accepts relative paths that stay inside.
func badTreePath(s string) string {
	clean := path.Clean(s)
	switch {
	case s == "" || hasNUL(s) || strings.Contains(s, "\\"):
		return "is not a path. Write it with slashes, relative to the definition's folder."
	case path.IsAbs(s):
		return "is absolute. Paths are relative, so that the same commit means the same everywhere."
	case clean == ".." || strings.HasPrefix(clean, "../"):
		return "leaves the folder. Only what is inside of it can be used; move the definition up, or the files in."
	}
	return ""
}

func debian(d *decoder) *kiln.Debian {
	out := &kiln.Debian{
		Suite: d.Checked("suite", "Invalid suite", func(s string) string {
			if !matches(`[a-z][a-z0-9.-]{1,40}`, s) {
				return "is not the name of a suite. Write \"bookworm\" or \"trixie\"."
			}
			return ""
		}),
		Mirror: d.Checked("mirror", "Invalid mirror", badMirror),
		Apt:    d.Bool("apt", false),
	}
	for _, p := range d.List("packages") {
		if !matches(`[a-z0-9][a-z0-9+.-]{1,100}`, p.Text) {
			d.report.Error(p.At, "Invalid package", "%s is not the name of a Debian package. Versions are kept in kiln.lock.", p.Whole.Show(p.Text))
			continue
		}
		out.Packages = append(out.Packages, p.Text)
	}
	slices.Sort(out.Packages)
	out.Packages = slices.Compact(out.Packages)
	return out
}

func badMirror(s string) string {
	u, err := url.Parse(s)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || strings.ContainsAny(s, " \t\n\"'\\[]"):
		return "is not an http or https URL."
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "holds a user, a query or a fragment. Write the archive's base URL only."
	}
	return ""
}

// badReference wants the registry's host and a tag or a digest, so that the
// same words mean the same image everywhere.
func badReference(s string) string {
	host, rest, ok := strings.Cut(s, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		short := s
		if !ok {
			short = "library/" + s
		}
		return "does not name the registry's host. For Docker Hub write \"docker.io/" + short + "\"."
	}
	if last := rest[strings.LastIndexByte(rest, '/')+1:]; !strings.ContainsAny(last, ":@") {
		return "has neither tag nor digest. Write host/name:tag or host/name@sha256:..."
	}
	if _, err := name.ParseReference(s, name.StrictValidation); err != nil {
		return "is not a reference: host/name:tag or host/name@sha256:..."
	}
	return ""
}

// checkImages checks what images say of each other.
func (l *loader) checkImages(images []kiln.Image, places map[string]hcl.Range) {
	byName := map[string]kiln.Image{}
	for _, i := range images {
		byName[i.Name] = i
	}
	done := map[string]bool{}
	for _, i := range images {
		l.walkImage(i.Name, nil, byName, done, places)
	}
}

// walkImage follows contexts and reports circles and unlike platforms.
func (l *loader) walkImage(image string, above []string, byName map[string]kiln.Image, done map[string]bool, places map[string]hcl.Range) {
	if at := slices.Index(above, image); at >= 0 {
		circle := append(slices.Clone(above[at:]), image)
		l.report.Error(places[image], "Cycle", "These images are built from each other in a circle: %s.", strings.Join(circle, " -> "))
		return
	}
	this := byName[image]
	if done[image] || this.Dockerfile == nil {
		return
	}
	above = append(above, image)
	for _, as := range sortedKeys(this.Dockerfile.Contexts) {
		base, ok := byName[this.Dockerfile.Contexts[as]]
		if !ok {
			continue
		}
		if base.Platform != this.Platform {
			l.report.Error(places[image], "Unlike platforms", "Image %q is for %s and its context %q, image %q, for %s.", image, this.Platform, as, base.Name, base.Platform)
		}
		l.walkImage(base.Name, above, byName, done, places)
	}
	done[image] = true
}
