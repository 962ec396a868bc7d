package kiln

import (
	"encoding/json"
	"time"
)

// Bundle is what is baked once and promoted unchanged: the definition's files
// and the images by digest. In the store it is an OCI artifact whose config is
// this value's canonical JSON and whose one layer is a tar of the files.
type Bundle struct {
	Files  Tree          `json:"files"`  // the definition's files, by content
	Images []BundleImage `json:"images"` // sorted by name
}

// BundleImage is an image of a bundle.
type BundleImage struct {
	Name     string `json:"name"`
	Platform string `json:"platform"`
	Manifest Digest `json:"manifest"`
	// Debs are the .deb files that a rebuild needs.
	Debs []Digest `json:"debs,omitempty"`
}

// Origin is what a bundle was baked from, so that it can be baked again without
// its author: everything that the client sent, and what was resolved.
type Origin struct {
	Tree Tree `json:"tree"`
	Lock Lock `json:"lock"` // as the bake used it
}

// ReleaseState is where a release stands.
type ReleaseState string

// The states of a release.
const (
	ReleasePending   ReleaseState = "pending"   // its rollout runs
	ReleaseLive      ReleaseState = "live"      // has the traffic
	ReleaseParked    ReleaseState = "parked"    // runs without traffic, ready to take over
	ReleaseRetired   ReleaseState = "retired"   // kept, runs nothing
	ReleaseCondemned ReleaseState = "condemned" // was rolled back; never applied again by itself
	ReleaseFailed    ReleaseState = "failed"    // its rollout was undone
)

// Release is a bundle with an environment's values, numbered from 1 per
// environment. It never changes but for State, ParkedUntil and LiveAt.
type Release struct {
	Environment string    `json:"environment"`
	Number      int       `json:"number"`
	Bundle      Digest    `json:"bundle"` // of the bundle's manifest
	Source      Source    `json:"source"`
	CreatedAt   time.Time `json:"created_at"`
	Actor       string    `json:"actor"`
	// Values are the variables' values as JSON, by name.
	Values   map[string]json.RawMessage `json:"values,omitempty"`
	Services []ReleaseService           `json:"services"`
	Routes   []Route                    `json:"routes,omitempty"`
	State    ReleaseState               `json:"state"`
	// ParkedUntil is when a parked release is retired.
	ParkedUntil time.Time `json:"parked_until,omitzero"`
	// TTL is how long after LiveAt the environment ends by itself; 0 is never.
	TTL time.Duration `json:"ttl,omitempty"`
	// LiveAt is when the release got the traffic last.
	LiveAt time.Time `json:"live_at,omitzero"`
}

// Identity is the digest of what a release is made of. Two releases of one
// environment with the same identity are the same release.
func (r Release) Identity() Digest {
	return DigestJSON(struct {
		Bundle   Digest
		Values   map[string]json.RawMessage `json:",omitempty"`
		Services []ReleaseService           `json:",omitempty"`
		Routes   []Route                    `json:",omitempty"`
		TTL      time.Duration              `json:",omitempty"`
	}{r.Bundle, r.Values, r.Services, r.Routes, r.TTL})
}

// ReleaseService maps a service to the fleet that serves it.
type ReleaseService struct {
	Template Template `json:"template"`
	Count    int      `json:"count"`
	Rollout  Strategy `json:"rollout"`
	// VerifyImages maps the image names that Rollout.Verify uses to manifests.
	VerifyImages map[string]Digest `json:"verify_images,omitempty"`
}

// Template is everything that an instance is made from. Its digest is the
// fleet's identity; the count is not in it.
type Template struct {
	Service  string `json:"service"`
	Image    Digest `json:"image"` // of the platform's manifest
	Platform string `json:"platform"`
	Ports    []Port `json:"ports,omitempty"`
	Config   Config `json:"config"`
}

// Digest names the template.
func (t Template) Digest() Digest { return DigestJSON(t) }

// Port returns the port called name, or the first when name is empty.
func (t Template) Port(name string) (Port, bool) {
	for _, p := range t.Ports {
		if name == "" || p.Name == name {
			return p, true
		}
	}
	return Port{}, false
}

// Worker says whether the template serves no traffic.
func (t Template) Worker() bool { return len(t.Ports) == 0 }
