package buildkit

import (
	"bytes"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
)

const (
	tailLines = 20   // kept of a step's output for an error
	lineBytes = 4096 // of one line; the rest is cut
)

// observer turns BuildKit's status into progress and remembers the end of
// each step's output. One goroutine uses it.
type observer struct {
	image string
	emit  func(kiln.Progress)
	steps map[digest.Digest]*step
}

type step struct {
	name    string
	started bool
	ended   bool
	failure string
	tail    []string
	partial map[int][]byte // by stream: a line without its end
}

func newObserver(image string, emit func(kiln.Progress)) *observer {
	return &observer{image: image, emit: emit, steps: map[digest.Digest]*step{}}
}

func (o *observer) step(d digest.Digest) *step {
	s, ok := o.steps[d]
	if !ok {
		s = &step{partial: map[int][]byte{}}
		o.steps[d] = s
	}
	return s
}

func (o *observer) update(status *client.SolveStatus) {
	for _, v := range status.Vertexes {
		o.begin(v)
	}
	for _, l := range status.Logs {
		o.log(l)
	}
	for _, v := range status.Vertexes {
		o.end(v)
	}
	for _, w := range status.Warnings {
		o.send(o.step(w.Vertex), kiln.Progress{Message: "warning: " + string(w.Short)})
	}
}

func (o *observer) begin(v *client.Vertex) {
	s := o.step(v.Digest)
	s.name = v.Name
	if v.Started == nil || s.started || internalStep(v.Name) {
		return
	}
	s.started = true
	o.send(s, kiln.Progress{Cached: v.Cached})
}

func (o *observer) end(v *client.Vertex) {
	s := o.step(v.Digest)
	if v.Completed == nil || s.ended || !s.started {
		return
	}
	s.ended = true
	s.failure = v.Error
	for stream, rest := range s.partial {
		if len(rest) > 0 {
			o.line(s, rest)
		}
		delete(s.partial, stream)
	}
	var took time.Duration
	if v.Started != nil {
		took = v.Completed.Sub(*v.Started)
	}
	o.send(s, kiln.Progress{Cached: v.Cached, Done: v.Error == "", Error: v.Error, Took: took})
}

func (o *observer) log(l *client.VertexLog) {
	s := o.step(l.Vertex)
	data := append(s.partial[l.Stream], l.Data...)
	for {
		line, rest, found := bytes.Cut(data, []byte{'\n'})
		if !found {
			break
		}
		o.line(s, line)
		data = rest
	}
	if len(data) > lineBytes {
		o.line(s, data)
		data = nil
	}
	s.partial[l.Stream] = bytes.Clone(data)
}

func (o *observer) line(s *step, raw []byte) {
	if i := bytes.LastIndexByte(bytes.TrimRight(raw, "\r"), '\r'); i >= 0 {
		raw = raw[i+1:] // what a terminal would show of a progress bar
	}
	text := strings.ToValidUTF8(string(bytes.TrimRight(raw[:min(len(raw), lineBytes)], "\r")), "\uFFFD")
	s.tail = append(s.tail, text)
	if len(s.tail) > tailLines {
		s.tail = s.tail[len(s.tail)-tailLines:]
	}
	o.send(s, kiln.Progress{Message: text})
}

func (o *observer) send(s *step, p kiln.Progress) {
	p.Stage, p.Subject, p.Step = "bake", o.image, s.name
	o.emit(p)
}

// failed returns the step that failed; nil when none did.
func (o *observer) failed() *step {
	var found *step
	for _, s := range o.steps {
		if s.failure != "" && (found == nil || len(s.tail) > len(found.tail)) {
			found = s
		}
	}
	return found
}

// internalStep says whether a step is BuildKit's own bookkeeping.
func internalStep(name string) bool {
	return strings.HasPrefix(name, "[internal] ") || strings.HasPrefix(name, "[context ")
}
