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
	typeTar    = "application/x-tar"
)

// Control is what the API is the face of. A context that ends means that the
// caller is gone; what must go on without it (a rollout past its begin), goes
// on. Progress functions return at once and may be called concurrently.
type Control interface {
	Up(ctx context.Context, request control.UpRequest, progress func(kiln.Progress)) (control.UpResult, error)
	Bake(ctx context.Context, request control.UpRequest, progress func(kiln.Progress)) (control.BakeResult, error)
	Plan(ctx context.Context, request control.UpRequest) (control.PlanResult, error)
	Rollback(ctx context.Context, request control.RollbackRequest, progress func(kiln.Progress)) (control.RollbackResult, error)
	Down(ctx context.Context, request control.DownRequest, progress func(kiln.Progress)) error
	Status(ctx context.Context) (control.Status, error)
	Instances(ctx context.Context, environment string) ([]kiln.Instance, error)
	Releases(ctx context.Context, environment string) ([]kiln.Release, error)
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
