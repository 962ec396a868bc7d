// Package config reads the configuration of a control plane, kilnd.hcl: where
// it listens, who may use its API from other machines, how much it keeps, and
// whom it notifies. It validates the whole before any of it is taken, and says
// what is wrong like the definition's reader does.
//
// The file holds no secret: tokens are in it by their SHA-256, and secrets by
// the names of files that only their owner may read. The file and those that
// it names are checked to be under the control of root, or of the user that
// runs the control plane, alone.
//
// The package applies nothing; cmd/kilnd does.
package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

const (
	// FileName is the configuration's name in a data directory.
	FileName = "kilnd.hcl"
	// SystemFile is the configuration of the machine's own control plane.
	SystemFile = "/etc/kiln/" + FileName
)

// Config is what a file says. What it does not say has the zero value.
type Config struct {
	Path    string      // of the file
	Digest  kiln.Digest // of its bytes
	Data    string      // data directory, absolute
	Listen  Listen
	API     API
	Tokens  []kiln.Token // by name
	Storage Storage
	// LogLevel is "debug", "info", "warn" or "error".
	LogLevel string
	Traces   Traces
	Notify   []Notify // by name
	// Registries are those of others, by host.
	Registries []Registry
	Signing    Signing
	Debian     Debian
	Sources    []Source // by name
}

// Debian is how Debian images are made.
type Debian struct {
	Keyring string // file with the keys of the archives; empty is Debian's own
}

// Source is a repository that is followed.
type Source struct {
	Name       string
	Repository string
	// Protocol is how it is reached: "https", "ssh", or "file" for a path.
	Protocol string
	Folder   string // of the definition, a slash path; "." is the root
	Interval time.Duration
	// CredentialsFile has a token or a private key; Secret reads it. Empty is
	// none.
	CredentialsFile string
}

// Registry is how images of a registry of others are pulled.
type Registry struct {
	Host string // "docker.io", "registry.example.com:5000"
	// Mirrors are asked before it: hosts, which may be followed by a path.
	Mirrors []string
}

// Listen is where the gateway takes public traffic, and where metrics are
// served. Nil is what the file does not say; an empty list is none.
type Listen struct {
	HTTP    []string // "address:port"
	HTTPS   []string
	Metrics []string
}

// API is where the API is served over TCP; no address means nowhere.
type API struct {
	Listen []string // "address:port"
	// Cert and Key are files in PEM; without them the control plane is its own
	// authority.
	Cert, Key string
	// Names are host names and addresses that its own certificate is for,
	// besides those that it finds out.
	Names []string
}

// Storage is how much is kept.
type Storage struct {
	Max        int64 // bytes of images, caches, seals and logs together; 0 is no bound
	KeepEvents int64 // newest events of the ledger; 0 is the default
	Logs       int64 // bytes of all instances' logs; 0 is the default
}

// Notify is whom to tell about events.
type Notify struct {
	Name string
	URL  string
	// SecretFile has the key that notifications are signed with; Secret reads it.
	SecretFile string
	// Events are patterns of path.Match for kinds of events, such as "release.*".
	Events []string
	// Environments are those whose events alone are told; none means all, and
	// events of no environment.
	Environments kiln.Reach
}

// Traces is where traces go.
type Traces struct {
	Endpoint string // empty is nowhere
	// HeadersFile has headers that may be secret; Headers reads it.
	HeadersFile string
}

// Options say what a file is read for.
type Options struct {
	// Data is the data directory of the control plane that runs, which cannot
	// change; empty when none does.
	Data string
	// Now is the time that expiry is judged by; zero is the present.
	Now time.Time
}

// Find returns the configuration of a data directory where nobody named one:
// its own, else that of the machine. It returns "" when there is neither.
func Find(data string) (string, error) {
	for _, path := range []string{filepath.Join(data, FileName), SystemFile} {
		switch _, err := os.Lstat(path); {
		case err == nil:
			return path, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", unreadable(path, err)
		}
	}
	return "", nil
}

// Load reads and validates a file and looks at those that it names. Warnings
// are what is odd and does not stop it. The error is a *kiln.Error: refused
// for a file that others could have written, not_found, or invalid with every
// diagnostic.
func Load(path string, o Options) (Config, kiln.Diagnostics, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return Config{}, nil, unreadable(path, err)
	}
	src, err := readSafe(path, trusted(), hclfile.MaxBytes)
	if err != nil {
		return Config{}, nil, err
	}
	r := newReader(path, src, o)
	c := r.read()
	if !r.report.Failed() {
		r.checkFiles(c)
	}
	return r.result(c)
}

// Parse reads and validates a text alone; name is used in diagnostics.
func Parse(name string, src []byte, o Options) (Config, kiln.Diagnostics, error) {
	r := newReader(name, src, o)
	return r.result(r.read())
}

func (r *reader) result(c Config) (Config, kiln.Diagnostics, error) {
	if !r.report.Failed() {
		return c, r.report.List(), nil
	}
	err := hclfile.Invalid("the configuration "+r.name, r.report.List())
	err.Hint = "kiln config check " + r.name + " checks it without a control plane"
	return Config{}, nil, err
}
