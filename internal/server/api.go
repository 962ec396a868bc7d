package server

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// VersionHeader carries the version of each side, in requests and in answers.
const VersionHeader = "Kiln-Version"

// The media types of bodies.
const (
	typeJSON   = "application/json"
	typeStream = "application/x-ndjson"
	typeSSE    = "text/event-stream"
	typeTar    = "application/x-tar"
	typeBackup = "application/zstd"
	typeZip    = "application/zip"
)

// Control is what the API is the face of. A context that ends means that the
// caller is gone; what must go on without it (a rollout past its begin), goes
// on. Progress functions return at once and may be called concurrently.
type Control interface {
	Up(ctx context.Context, request control.UpRequest, progress func(kiln.Progress)) (control.UpResult, error)
	Bake(ctx context.Context, request control.UpRequest, progress func(kiln.Progress)) (control.BakeResult, error)
	Plan(ctx context.Context, request control.UpRequest) (control.PlanResult, error)
	Rollback(ctx context.Context, request control.RollbackRequest, progress func(kiln.Progress)) (control.RollbackResult, error)
	Repave(ctx context.Context, request control.RepaveRequest, progress func(kiln.Progress)) (control.RepaveResult, error)
	Down(ctx context.Context, request control.DownRequest, progress func(kiln.Progress)) error
	VerifyRelease(ctx context.Context, request control.ProofRequest, progress func(kiln.Progress)) (kiln.ReleaseProof, error)
	DiffReleases(ctx context.Context, request control.DiffRequest) (kiln.ReleaseDiff, error)
	Status(ctx context.Context) (control.Status, error)
	Scan(ctx context.Context, request control.ScanRequest, progress func(kiln.Progress)) (control.ScanResult, error)
	Inventory(ctx context.Context, request control.InventoryRequest) (control.Described, error)
	InstancePage(ctx context.Context, query control.InstanceQuery) ([]kiln.Instance, error)
	ReleasePage(ctx context.Context, query control.ReleaseQuery) ([]kiln.Release, error)
	// Events calls each for every event in order and returns when there are no
	// more, when following ends with ctx, or with each's error.
	Events(ctx context.Context, query control.EventQuery, each func(kiln.Event) error) error
	// Logs writes kiln.LogLine values as JSON, one a line.
	Logs(ctx context.Context, w io.Writer, query kiln.LogQuery) error
}

// Store is where uploaded blobs go.
type Store interface {
	Missing(digests []kiln.Digest) []kiln.Digest
	NewBatch() Batch
}

// Batch takes blobs that become durable together.
type Batch interface {
	// Put refuses content whose digest is not the wanted one.
	Put(ctx context.Context, r io.Reader, want kiln.Digest) (kiln.Digest, int64, error)
	Commit(ctx context.Context) error
	// Discard removes what was not committed.
	Discard()
}

// Version is what GET /v1/version answers.
type Version struct {
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	DataDir   string    `json:"data_dir"`
	StartedAt time.Time `json:"started_at"`
}

// Settings is the configuration in effect: what GET /v1/config answers.
type Settings struct {
	Path    string      `json:"path,omitempty"` // of the file; empty for none
	Digest  kiln.Digest `json:"digest,omitempty"`
	DataDir string      `json:"data_dir"`
	HTTP    []string    `json:"http"` // the gateway's public listeners
	HTTPS   []string    `json:"https"`
	Metrics []string    `json:"metrics"`
	API     APISettings `json:"api"`
	Tokens  []TokenInfo `json:"tokens"`
	// StorageMax bounds images, caches, seals and logs together, in bytes; 0 is no bound.
	StorageMax int64    `json:"storage_max"`
	KeepEvents int64    `json:"keep_events"`
	LogBytes   int64    `json:"log_bytes"` // bound of all instances' logs
	LogLevel   string   `json:"log_level"`
	Traces     string   `json:"traces,omitempty"` // where they go, without a path; empty for nowhere
	Notify     []string `json:"notify"`           // names
}

// APISettings says where the API is served over TCP.
type APISettings struct {
	Listen []string `json:"listen"`
	// Fingerprint is the SHA-256 of the certificate that clients pin: of the
	// control plane's own authority, or of the one from files.
	Fingerprint string `json:"fingerprint,omitempty"`
}

// TokenInfo is a token as others may know it.
type TokenInfo struct {
	Name         string    `json:"name"`
	Role         kiln.Role `json:"role"`
	Environments []string  `json:"environments,omitempty"` // empty means all
	Expires      time.Time `json:"expires,omitzero"`
}

// Reloaded is what POST /v1/reload answers.
type Reloaded struct {
	Path string `json:"path"` // of the file that was read
	// Changed are the parts of the configuration that are others now, one
	// sentence each; empty when nothing is.
	Changed  []string          `json:"changed"`
	Warnings []kiln.Diagnostic `json:"warnings,omitempty"`
}

// PushRequest asks for an image to be sent to another registry.
type PushRequest struct {
	Image       string `json:"image"`       // name of one that was baked, or digest of a manifest
	Destination string `json:"destination"` // host/name:tag
}

// PushResult says what was sent.
type PushResult struct {
	Digest      kiln.Digest `json:"digest"`      // of the image's manifest
	Destination string      `json:"destination"` // by digest
}

// NotifyTest asks for a test event.
type NotifyTest struct {
	Name string `json:"name,omitempty"` // of one receiver; empty for all
}

// NotifyResults says how a test event was taken.
type NotifyResults struct {
	Results []NotifyResult `json:"results"`
}

// NotifyResult is how one receiver took an event.
type NotifyResult struct {
	Name   string        `json:"name"`
	URL    string        `json:"url"`              // without its query, which may have a secret
	Status int           `json:"status,omitempty"` // of the answer; 0 for none
	Error  string        `json:"error,omitempty"`  // empty when it was taken
	Took   time.Duration `json:"took"`
}

// Frame is one line of a stream; exactly one field is set.
type Frame struct {
	Progress *kiln.Progress  `json:"progress,omitempty"`
	Event    *kiln.Event     `json:"event,omitempty"`
	Log      json.RawMessage `json:"log,omitempty"`    // a kiln.LogLine
	Result   json.RawMessage `json:"result,omitempty"` // ends the stream
	Error    *kiln.Error     `json:"error,omitempty"`  // ends the stream
}

// MissingRequest asks which of the digests the store has not.
type MissingRequest struct {
	Digests []kiln.Digest `json:"digests"`
}

// MissingResult answers it, in the order of the request, without repeats.
type MissingResult struct {
	Missing []kiln.Digest `json:"missing"`
}

// UploadResult says what an upload stored.
type UploadResult struct {
	Blobs int   `json:"blobs"`
	Bytes int64 `json:"bytes"`
}

// Limits bound what one request may send. The zero value of a field means its
// default.
type Limits struct {
	Request int64 // bytes of a JSON body; 64 MiB
	Blob    int64 // bytes of one blob; 8 GiB
	Upload  int64 // bytes of all blobs of one upload; 32 GiB
	Blobs   int   // number of blobs of one upload, and of digests of one question; 1,000,000
}

func (l Limits) withDefaults() Limits {
	const mib, gib = 1 << 20, 1 << 30
	if l.Request == 0 {
		l.Request = 64 * mib
	}
	if l.Blob == 0 {
		l.Blob = 8 * gib
	}
	if l.Upload == 0 {
		l.Upload = 32 * gib
	}
	if l.Blobs == 0 {
		l.Blobs = 1_000_000
	}
	return l
}
