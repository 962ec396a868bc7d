package buildkit

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/distribution/reference"
	"github.com/kilnproject/kiln"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
)

// Build is one Dockerfile to bake.
type Build struct {
	Image    string // the image's name, for progress and errors
	File     string // slash path of the Dockerfile in Context
	Shown    string // the same in the definition's folder, for messages
	Target   string
	Args     map[string]string
	Platform string // "linux/amd64"
	Context  fsutil.FS
	// ContextID names the content of Context. Contexts of different content
	// must have different names: BuildKit compares files of one name by
	// modification time, and ours never changes.
	ContextID string
	// Bases maps what FROM and COPY --from say to a manifest in Content.
	Bases map[string]kiln.Digest
	// Content is where bases are read from and the image is written to.
	Content content.Store
	// Epoch is the time of every file and of the image, Unix seconds.
	Epoch int64
	// Hermetic takes every network away.
	Hermetic bool
	Progress func(kiln.Progress) // never nil
}

const (
	storeKey  = "kiln"
	exportKey = "kiln"
)

// Build bakes b into its content store and returns the image's manifest.
//
// An error is a *kiln.Error where the Dockerfile, a command in it, or the
// machine is at fault, and ctx's error where that ended the build.
func (e *Engine) Build(ctx context.Context, b Build) (ocispec.Descriptor, error) {
	opt, err := b.options()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	seen := newObserver(b.Image, b.Progress)
	status := make(chan *client.SolveStatus)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range status {
			seen.update(s)
		}
	}()
	res, err := e.client.Solve(ctx, nil, opt, status)
	<-done
	if err != nil {
		return ocispec.Descriptor{}, explain(ctx, b, seen, err)
	}
	return manifestOf(res)
}

// manifestOf reads the exporter's answer.
func manifestOf(res *client.SolveResponse) (ocispec.Descriptor, error) {
	raw, err := base64.StdEncoding.DecodeString(res.ExporterResponse[exptypes.ExporterImageDescriptorKey])
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read the exporter's answer: %w", err)
	}
	var d ocispec.Descriptor
	if err := json.Unmarshal(raw, &d); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read the exporter's answer: %w", err)
	}
	if d.MediaType != ocispec.MediaTypeImageManifest {
		return ocispec.Descriptor{}, fmt.Errorf("the exporter wrote a %s, want an image manifest", d.MediaType)
	}
	return d, nil
}

func (b Build) options() (client.SolveOpt, error) {
	attrs := map[string]string{
		"filename": b.File,
		"target":   b.Target,
		"platform": b.Platform,
		// With a command line given, a "# syntax=" line does not make the
		// frontend fetch another frontend as an image.
		"cmdline":                     "kiln",
		"build-arg:SOURCE_DATE_EPOCH": strconv.FormatInt(b.Epoch, 10),
	}
	for k, v := range b.Args {
		attrs["build-arg:"+k] = v
	}
	if b.Hermetic {
		attrs["force-network-mode"] = "none"
	}
	for _, name := range slices.Sorted(maps.Keys(b.Bases)) {
		d := b.Bases[name]
		key, err := ContextName(name)
		if err != nil {
			return client.SolveOpt{}, kiln.Errorf(kiln.CodeInvalid,
				"Name it as an image is named: lower-case letters, digits, '.', '_', '-' and '/'.",
				"image %q: context %q: %w", b.Image, name, err)
		}
		attrs["context:"+key] = "oci-layout://" + storeKey + "@" + string(d)
	}
	maps.DeleteFunc(attrs, func(k, v string) bool { return k == "target" && v == "" })
	return client.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: attrs,
		LocalMounts:   map[string]fsutil.FS{"context": b.Context, "dockerfile": b.Context},
		SharedKey:     b.ContextID,
		OCIStores:     map[string]content.Store{storeKey: b.Content},
		Exports: []client.ExportEntry{{
			Type:        client.ExporterOCI,
			OutputStore: b.Content,
			Attrs: map[string]string{
				"tar":               "false",
				"name":              exportKey,
				"oci-mediatypes":    "true",
				"compression":       "uncompressed", // what is sealed here is read more often than it is stored
				"rewrite-timestamp": "true",
				"source-date-epoch": strconv.FormatInt(b.Epoch, 10),
			},
		}},
		SourcePolicy: policy(b.Hermetic),
		Internal:     true, // no history record and no provenance
	}, nil
}

// policy denies what would fetch past the lock: registries, Git, and for
// hermetic builds everything.
func policy(hermetic bool) *spb.Policy {
	denied := []string{"docker-image://*", "docker-image+blob://*", "git://*"}
	if hermetic {
		denied = append(denied, "http://*", "https://*")
	}
	p := &spb.Policy{Version: 1}
	for _, id := range denied {
		p.Rules = append(p.Rules, &spb.Rule{
			Action:   spb.PolicyAction_DENY,
			Selector: &spb.Selector{Identifier: id, MatchType: spb.MatchType_WILDCARD},
		})
	}
	return p
}

// ContextName is how the Dockerfile frontend looks a named context up.
func ContextName(name string) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(reference.FamiliarString(named), ":latest"), nil
}
