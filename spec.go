package kiln

import (
	"fmt"
	"net/netip"
	"time"
)

// Spec is what a definition says for one environment: parsed, evaluated with
// that environment's values, and checked. Slices are sorted by name.
type Spec struct {
	Images       []Image       `json:"images,omitempty"`
	Services     []Service     `json:"services,omitempty"`
	Routes       []Route       `json:"routes,omitempty"`
	Environments []Environment `json:"environments,omitempty"`
	// Files are the paths that the definition was read from or read with
	// file(), relative to its folder, sorted: what a bundle must carry.
	Files []string `json:"files,omitempty"`
}

// Image is one image of a definition. Exactly one of Dockerfile, Debian and
// Reference is set.
type Image struct {
	Name     string `json:"name"`
	Platform string `json:"platform"` // "linux/amd64"; never empty after parsing
	// Hermetic bakes without any network.
	Hermetic   bool        `json:"hermetic,omitempty"`
	Dockerfile *Dockerfile `json:"dockerfile,omitempty"`
	Debian     *Debian     `json:"debian,omitempty"`
	// Reference is "host/name:tag" or "host/name@sha256:...".
	Reference string `json:"reference,omitempty"`
	// Gate is what the image must be to run: the definition's with the image's
	// own over it. It is no part of what the image is made from.
	Gate Gate `json:"gate,omitzero"`
}

// Dockerfile bakes an image from a context of the tree.
type Dockerfile struct {
	Context string            `json:"context"` // slash path relative to the definition's folder, "." for itself
	File    string            `json:"file"`    // relative to Context, "Dockerfile" when not said
	Target  string            `json:"target,omitempty"`
	Args    map[string]string `json:"args,omitempty"`
	// Contexts maps the name that FROM or COPY --from uses to the name of
	// another image of the same definition.
	Contexts map[string]string `json:"contexts,omitempty"`
}

// Debian bakes a golden base from signed Debian archives.
type Debian struct {
	Suite    string   `json:"suite"`
	Packages []string `json:"packages,omitempty"` // sorted, without repeats
	// Mirror is the archive's base URL; empty means the signed Debian suites
	// that the machine's own apt uses.
	Mirror string `json:"mirror,omitempty"`
	// Apt keeps apt and dpkg's tools in the image, so that a Dockerfile may
	// install from it. Off by default: the runtime variant.
	Apt bool `json:"apt,omitempty"`
}

// Protocol is what a port speaks.
type Protocol string

// The protocols of a port. H2C is HTTP/2 without TLS, with prior knowledge.
const (
	ProtocolHTTP Protocol = "http"
	ProtocolH2C  Protocol = "h2c"
	ProtocolTCP  Protocol = "tcp"
)

// Port is a named port of a service.
type Port struct {
	Name     string   `json:"name"`
	Number   uint16   `json:"number"`
	Protocol Protocol `json:"protocol"`
}

// Service is a template and a count. Without ports it is a worker.
type Service struct {
	Name   string `json:"name"`
	Image  string `json:"image"` // name of an image of the spec
	Count  int    `json:"count"` // 0 to 1,000
	Ports  []Port `json:"ports,omitempty"`
	Config Config `json:"config"`
	// Rollout says how a new release takes over.
	Rollout Strategy `json:"rollout"`
}

// Config is what a definition says of a service's instances besides its image
// and ports. All of it is part of the template.
type Config struct {
	Entrypoint []string          `json:"entrypoint,omitempty"` // replaces the image's, and its Cmd
	Command    []string          `json:"command,omitempty"`    // replaces the image's Cmd
	Env        map[string]string `json:"env,omitempty"`        // over the image's
	User       string            `json:"user,omitempty"`       // "uid", "uid:gid", or names of the image; empty means the image's
	WorkingDir string            `json:"working_dir,omitempty"`
	Ready      Probe             `json:"ready"`
	Limits     Limits            `json:"limits"`
	Writable   []Writable        `json:"writable,omitempty"` // sorted by path
	Egress     []Egress          `json:"egress,omitempty"`
	// Capabilities are granted by name without "CAP_"; only CHOWN, SETUID,
	// SETGID, SETPCAP and NET_BIND_SERVICE may be.
	Capabilities []string `json:"capabilities,omitempty"`
	// HostRoot runs without a user namespace: root in the image is root of
	// the host.
	HostRoot bool `json:"host_root,omitempty"`
	// NoInit runs the command as process 1 of the instance, without the init
	// that reaps and forwards signals.
	NoInit     bool          `json:"no_init,omitempty"`
	StopSignal string        `json:"stop_signal,omitempty"` // "SIGTERM" style; empty means the image's, else SIGTERM
	Drain      time.Duration `json:"drain"`                 // how long streams and requests may go on once out of traffic
	Grace      time.Duration `json:"grace"`                 // from the stop signal to SIGKILL
	// StartTimeout is how long an instance may take to become ready.
	StartTimeout time.Duration `json:"start_timeout"`
}

// Probe is a check of an instance. At most one of HTTP and TCP is set; none
// means TCP on the first port, or for a worker that its process runs.
type Probe struct {
	HTTP     string        `json:"http,omitempty"`     // path; 200 to 399 is ready
	TCP      bool          `json:"tcp,omitempty"`      // a connection is enough
	Port     string        `json:"port,omitempty"`     // name of a port; empty means the first
	Interval time.Duration `json:"interval,omitempty"` // between checks once ready
	Timeout  time.Duration `json:"timeout,omitempty"`  // of one check
	// Failures in a row make a ready instance unready.
	Failures int `json:"failures,omitempty"`
}

// Limits bound what one instance may use. Zero means the default that the
// definition's reader fills in; after parsing none is zero but CPU, where zero
// means unlimited.
type Limits struct {
	Memory   int64   `json:"memory"`        // bytes, tmpfs included
	CPU      float64 `json:"cpu,omitempty"` // cores
	PIDs     int64   `json:"pids"`
	Files    uint64  `json:"files"`               // RLIMIT_NOFILE
	CoreSize uint64  `json:"core_size"`           // RLIMIT_CORE, bytes
	LogBytes int64   `json:"log_bytes"`           // kept per instance
	Nice     int     `json:"nice,omitempty"`      // 0 to 19
	Umask    uint32  `json:"umask"`               // of the first process
	FileSize uint64  `json:"file_size,omitempty"` // RLIMIT_FSIZE, bytes; 0 is unlimited
}

// Writable is a path that is a tmpfs of its own; everything else is read-only.
type Writable struct {
	Path string `json:"path"` // absolute, clean
	Size int64  `json:"size"` // bytes
}

// Egress is one destination outside the environment that instances may reach.
// Exactly one of Host and Prefix is set.
type Egress struct {
	Host     string       `json:"host,omitempty"`
	Prefix   netip.Prefix `json:"prefix,omitzero"`
	Port     uint16       `json:"port"`
	Protocol string       `json:"protocol"` // "tcp" or "udp"
}

// Route is where public traffic enters.
type Route struct {
	Name    string `json:"name"`
	Service string `json:"service"`
	Port    string `json:"port"` // name of a port of the service
	// Host is the name that HTTP requests are matched by; empty only for TCP.
	Host string `json:"host,omitempty"`
	// Path is the prefix of whole segments that requests are matched by; "/"
	// when not said. The longest wins.
	Path string `json:"path,omitempty"`
	// Listen is "address:port" of the gateway's own for a TCP route.
	Listen string `json:"listen,omitempty"`
	TLS    TLS    `json:"tls,omitzero"`
}

// TLS says how a route's host gets its certificate.
type TLS struct {
	// Mode is "off", "acme", "local" (an authority of this machine, for
	// .localhost names) or "files".
	Mode string `json:"mode,omitempty"`
	Cert string `json:"cert,omitempty"` // absolute path on the gateway's machine
	Key  string `json:"key,omitempty"`
}

// Environment is one isolated running copy of a spec.
type Environment struct {
	Name string `json:"name"`
	// Branch binds the environment to one branch: a tree with uncommitted
	// changes or of another branch is refused.
	Branch   string        `json:"branch,omitempty"`
	Branches []string      `json:"branches,omitempty"` // patterns of path.Match, one environment per branch
	TTL      time.Duration `json:"ttl,omitempty"`
	// Repave says who bakes again what the world learnt to be vulnerable.
	Repave RepavePolicy `json:"repave,omitempty"`
	// RepaveEvery is the least time between two repaves that nobody asked for.
	RepaveEvery time.Duration `json:"repave_every,omitempty"`
}

// RepavePolicy says who repaves an environment.
type RepavePolicy string

// The policies of repaving.
const (
	RepaveManual RepavePolicy = "manual" // a person, by kiln repave
	RepaveAuto   RepavePolicy = "auto"   // the control plane by itself, too
)

// Strategy is how a rollout moves an environment to a new release.
type Strategy struct {
	Kind string        `json:"kind"` // "blue-green"
	Park time.Duration `json:"park"` // how long the previous release stays warm
	// Verify runs against the new release before it has public traffic.
	Verify []Verify `json:"verify,omitempty"`
}

// Verify is one check of a new release: an HTTP request to the service, or a
// command run in an image beside it. Exactly one of HTTP and Command is set.
type Verify struct {
	Name    string        `json:"name"`
	HTTP    string        `json:"http,omitempty"`   // path
	Port    string        `json:"port,omitempty"`   // name of an http port; empty means the first
	Status  int           `json:"status,omitempty"` // wanted; 0 means 200 to 399
	Body    string        `json:"body,omitempty"`   // must be contained in the answer
	Command []string      `json:"command,omitempty"`
	Image   string        `json:"image,omitempty"` // name of an image; empty means the service's
	Timeout time.Duration `json:"timeout"`
}

// Size writes a number of bytes as a definition does: "64MiB".
func Size(n int64) string {
	unit := "B"
	for _, larger := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if n < 1024 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, larger
	}
	return fmt.Sprintf("%d%s", n, unit)
}
