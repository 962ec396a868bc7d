package kiln

import (
	"slices"
	"time"
)

// Lock pins what a definition names loosely. It is the content of kiln.lock.
type Lock struct {
	References []LockedReference `json:"references,omitempty"` // sorted by Reference
	Debian     []LockedDebian    `json:"debian,omitempty"`     // sorted by Key
}

// LockedReference is an image reference and what it resolved to.
type LockedReference struct {
	Reference string `json:"reference"`
	Index     Digest `json:"index"`
	// Platforms maps "linux/amd64" to the digest of that manifest.
	Platforms map[string]Digest `json:"platforms"`
}

// LockedDebian is a Debian image and the packages that it is made of.
type LockedDebian struct {
	// Key is DigestJSON of the Debian block and the platform.
	Key      Digest          `json:"key"`
	Suite    string          `json:"suite"`
	Platform string          `json:"platform"`
	Packages []LockedPackage `json:"packages"` // sorted by name and architecture
}

// LockedPackage is one .deb file.
type LockedPackage struct {
	Name         string `json:"name"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"`
	Digest       Digest `json:"digest"` // of the .deb
	Size         int64  `json:"size"`
	URL          string `json:"url"`
}

// BakeRequest asks for every image of a spec.
type BakeRequest struct {
	Images []Image
	Tree   Tree
	Lock   Lock
	// Locked refuses to resolve what the lock does not name.
	Locked bool
	// Progress is called from several goroutines; nil is allowed.
	Progress func(Progress)
}

// BakeResult is what a bake made.
type BakeResult struct {
	Images map[string]Baked `json:"images"` // by name
	// Lock is the request's lock with what was resolved added and what no
	// image names any more removed.
	Lock Lock `json:"lock"`
}

// Baked is one image in the store.
type Baked struct {
	Name     string `json:"name"`
	Manifest Digest `json:"manifest"` // of the platform's manifest
	Platform string `json:"platform"`
	Size     int64  `json:"size"` // bytes of its compressed layers
	// Inputs is the digest of all that the image was made from.
	Inputs Digest `json:"inputs"`
	// Debs are the .deb files that a rebuild needs, sorted.
	Debs []Digest `json:"debs,omitempty"`
	// Materials are what the image was made from, sorted by kind, then name.
	Materials []Material `json:"materials,omitempty"`
	// Cached is true when the inputs had been baked before.
	Cached bool          `json:"cached"`
	Took   time.Duration `json:"took"`
}

// MaterialKind is what a material is.
type MaterialKind string

// The kinds of materials.
const (
	MaterialImage      MaterialKind = "image"      // a base, or what COPY --from reads: a manifest
	MaterialPackage    MaterialKind = "package"    // a .deb file
	MaterialContext    MaterialKind = "context"    // the visible files of a context, as a tree
	MaterialDockerfile MaterialKind = "dockerfile" // its text
)

// Material is something that an image was made from.
type Material struct {
	Kind   MaterialKind `json:"kind"`
	Name   string       `json:"name"`          // as the definition or the Dockerfile says it
	URI    string       `json:"uri,omitempty"` // where it came from, where that is known
	Digest Digest       `json:"digest"`
}

// Progress is one line of news from a long operation. Step groups the lines
// of one unit of work; a step ends with Done or Error set.
type Progress struct {
	Stage   string        `json:"stage"`             // "bake", "prove", "seal", "start", "verify", "switch", "park", "undo", "push"
	Subject string        `json:"subject"`           // the image or service; of a push, where to
	Step    string        `json:"step,omitempty"`    // "[build 2/5] RUN make"
	Message string        `json:"message,omitempty"` // a line of output, without its newline
	Cached  bool          `json:"cached,omitempty"`
	Done    bool          `json:"done,omitempty"`
	Error   string        `json:"error,omitempty"`
	Took    time.Duration `json:"took,omitempty"` // with Done
}

// ImageConfigTypes are the media types of the configurations of images: OCI's
// and Docker's.
func ImageConfigTypes() []string {
	return []string{"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
}

// MayBeImage says whether an entry of an index with that artifact type may be an
// image. Most clients say the type of artifacts alone, and some that of images
// too, which is the type of their configuration (image-spec, descriptor.md).
func MayBeImage(artifactType string) bool {
	return artifactType == "" || slices.Contains(ImageConfigTypes(), artifactType)
}
