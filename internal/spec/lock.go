package spec

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

const (
	// LockFile is the name of the lock file in a definition's folder.
	LockFile = "kiln.lock"
	// lockVersion grows when an older Kiln could misread the file.
	lockVersion  = 1
	maxLockBytes = 32 << 20
)

// lockContent is the lock file as the hcl library decodes it.
type lockContent struct {
	Version    int             `hcl:"version"`
	References []lockReference `hcl:"reference,block"`
	Debian     []lockDebian    `hcl:"debian,block"`
}

type lockReference struct {
	Reference string            `hcl:"reference,label"`
	Index     string            `hcl:"index,optional"`
	Platforms map[string]string `hcl:"platforms"`
}

type lockDebian struct {
	Suite    string        `hcl:"suite,label"`
	Platform string        `hcl:"platform,label"`
	Key      string        `hcl:"key"`
	Packages []lockPackage `hcl:"packages"`
}

type lockPackage struct {
	Name         string `cty:"name"`
	Version      string `cty:"version"`
	Architecture string `cty:"architecture"`
	Digest       string `cty:"digest"`
	Size         int64  `cty:"size"`
	URL          string `cty:"url"`
}

// ParseLock reads a kiln.lock. An empty file is an empty lock. The error is a
// *kiln.Error with diagnostics, or of code refused for a file that a newer
// Kiln wrote.
func ParseLock(src []byte) (lock kiln.Lock, err error) {
	r := &hclfile.Report{}
	r.Source(LockFile, src)
	if len(bytes.TrimSpace(src)) == 0 {
		return kiln.Lock{}, nil
	}
	content, ok := decodeLock(src, r)
	if ok && content.Version > lockVersion {
		return kiln.Lock{}, kiln.Errorf(kiln.CodeRefused, "use the version of Kiln that wrote it, or a newer one",
			"%s is of version %d; this Kiln understands up to %d", LockFile, content.Version, lockVersion)
	}
	if ok {
		lock = content.lock(r)
	}
	if r.Failed() {
		failure := invalid(r.List())
		failure.Message = LockFile + " cannot be read"
		failure.Hint = "restore it from Git, or remove it and run `kiln up` to resolve everything anew"
		return kiln.Lock{}, failure
	}
	return lock, nil
}

func decodeLock(src []byte, r *hclfile.Report) (content lockContent, ok bool) {
	defer recovered(r, hcl.Range{Filename: LockFile, Start: hcl.InitialPos, End: hcl.InitialPos})
	if at, found := hclfile.ConflictMarker(LockFile, src); found {
		r.Error(at, "Unresolved merge conflict", "Git left conflict markers in this file. Take either side whole; the next `kiln up` adds what is missing.")
		return content, false
	}
	if len(src) > maxLockBytes {
		r.Error(hcl.Range{}, "File too large", "%s has %d bytes; at most %d are read.", LockFile, len(src), maxLockBytes)
		return content, false
	}
	if !plainTokens(src, r) {
		return content, false
	}
	file, diags := hclsyntax.ParseConfig(src, LockFile, hcl.InitialPos)
	if diags.HasErrors() {
		r.HCL(diags)
		return content, false
	}
	version := struct {
		Version int      `hcl:"version"`
		Rest    hcl.Body `hcl:",remain"`
	}{}
	if diags := gohcl.DecodeBody(file.Body, nil, &version); diags.HasErrors() {
		r.HCL(diags)
		return content, false
	}
	if content.Version = version.Version; content.Version > lockVersion {
		return content, true
	}
	diags = gohcl.DecodeBody(file.Body, nil, &content)
	r.HCL(diags)
	return content, !diags.HasErrors()
}

// plainTokens says whether a file holds nothing but blocks and constants. What
// would need evaluating, or nests deeply, is refused before it is parsed.
func plainTokens(src []byte, r *hclfile.Report) bool {
	tokens, diags := hclsyntax.LexConfig(src, LockFile, hcl.InitialPos)
	if diags.HasErrors() {
		r.HCL(diags)
		return false
	}
	depth := 0
	for _, t := range tokens {
		switch t.Type {
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack:
			depth++
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack:
			depth--
		case hclsyntax.TokenIdent, hclsyntax.TokenEqual, hclsyntax.TokenComma, hclsyntax.TokenNewline, hclsyntax.TokenEOF,
			hclsyntax.TokenOQuote, hclsyntax.TokenCQuote, hclsyntax.TokenQuotedLit, hclsyntax.TokenNumberLit, hclsyntax.TokenComment:
		default:
			r.Error(t.Range, "Not a lock file", "A lock file holds blocks and constants only. It is written by Kiln; do not edit it.")
			return false
		}
		if depth > 8 {
			r.Error(t.Range, "Not a lock file", "Brackets are nested too deep. The file is written by Kiln; do not edit it.")
			return false
		}
	}
	return true
}

// lock converts and checks what was decoded.
func (c lockContent) lock(r *hclfile.Report) kiln.Lock {
	whole := hcl.Range{Filename: LockFile, Start: hcl.InitialPos, End: hcl.InitialPos}
	digest := func(of, s string) kiln.Digest {
		d, err := kiln.ParseDigest(s)
		if err != nil {
			r.Error(whole, "Invalid digest", "%s: %s.", of, err)
		}
		return d
	}
	out := kiln.Lock{}
	for _, ref := range c.References {
		locked := kiln.LockedReference{Reference: ref.Reference, Platforms: map[string]kiln.Digest{}}
		if problem := badReference(ref.Reference); problem != "" {
			r.Error(whole, "Invalid reference", "%q %s", ref.Reference, problem)
		}
		if ref.Index != "" {
			locked.Index = digest(ref.Reference, ref.Index)
		}
		for platform, s := range ref.Platforms {
			locked.Platforms[platform] = digest(ref.Reference, s)
		}
		out.References = append(out.References, locked)
	}
	for _, deb := range c.Debian {
		locked := kiln.LockedDebian{Key: digest(deb.Suite, deb.Key), Suite: deb.Suite, Platform: deb.Platform}
		for _, p := range deb.Packages {
			if p.Size < 0 {
				r.Error(whole, "Invalid size", "%s: %d is not a size.", p.Name, p.Size)
			}
			locked.Packages = append(locked.Packages, kiln.LockedPackage{
				Name: p.Name, Version: p.Version, Architecture: p.Architecture, Digest: digest(p.Name, p.Digest), Size: p.Size, URL: p.URL,
			})
		}
		out.Debian = append(out.Debian, locked)
	}
	sortLock(&out)
	checkLock(out, whole, r)
	return out
}

// checkLock reports what is locked twice.
func checkLock(l kiln.Lock, at hcl.Range, r *hclfile.Report) {
	for i := 1; i < len(l.References); i++ {
		if l.References[i].Reference == l.References[i-1].Reference {
			r.Error(at, "Locked twice", "%q is locked twice.", l.References[i].Reference)
		}
	}
	for i := 1; i < len(l.Debian); i++ {
		if l.Debian[i].Key == l.Debian[i-1].Key {
			r.Error(at, "Locked twice", "The Debian image %s is locked twice.", l.Debian[i].Key.Short())
		}
	}
}

func sortLock(l *kiln.Lock) {
	slices.SortFunc(l.References, func(a, b kiln.LockedReference) int { return compare(a.Reference, b.Reference) })
	slices.SortFunc(l.Debian, func(a, b kiln.LockedDebian) int { return compare(string(a.Key), string(b.Key)) })
	for _, d := range l.Debian {
		slices.SortFunc(d.Packages, func(a, b kiln.LockedPackage) int {
			return cmp.Or(compare(a.Name, b.Name), compare(a.Architecture, b.Architecture), compare(a.Version, b.Version))
		})
	}
}

// FormatLock writes a lock as the content of kiln.lock: the same lock always
// gives the same bytes, one line a package, so that a difference reads well.
func FormatLock(lock kiln.Lock) []byte {
	lock = kiln.Lock{References: slices.Clone(lock.References), Debian: slices.Clone(lock.Debian)}
	for i := range lock.Debian {
		lock.Debian[i].Packages = slices.Clone(lock.Debian[i].Packages)
	}
	sortLock(&lock)
	var b strings.Builder
	fmt.Fprintf(&b, "# What kiln.hcl names loosely, pinned. Written by Kiln: commit it, do not edit it.\nversion = %d\n", lockVersion)
	for _, ref := range lock.References {
		fmt.Fprintf(&b, "\nreference %s {\n", literal(ref.Reference))
		if ref.Index != "" {
			fmt.Fprintf(&b, "index = %s\n", literal(string(ref.Index)))
		}
		b.WriteString("platforms = {\n")
		for _, platform := range sortedKeys(ref.Platforms) {
			fmt.Fprintf(&b, "%s = %s\n", literal(platform), literal(string(ref.Platforms[platform])))
		}
		b.WriteString("}\n}\n")
	}
	for _, deb := range lock.Debian {
		fmt.Fprintf(&b, "\ndebian %s %s {\nkey = %s\npackages = [\n", literal(deb.Suite), literal(deb.Platform), literal(string(deb.Key)))
		for _, p := range deb.Packages {
			fmt.Fprintf(&b, "{ name = %s, version = %s, architecture = %s, digest = %s, size = %d, url = %s },\n",
				literal(p.Name), literal(p.Version), literal(p.Architecture), literal(string(p.Digest)), p.Size, literal(p.URL))
		}
		b.WriteString("]\n}\n")
	}
	return hclwrite.Format([]byte(b.String()))
}

// literal quotes a string for HCL.
func literal(s string) string {
	return string(hclwrite.TokensForValue(cty.StringVal(s)).Bytes())
}
