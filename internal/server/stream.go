package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/kilnproject/kiln"
)

// stream writes frames to one client from one goroutine, so that whoever makes
// news never waits for a client that does not read.
type stream struct {
	ctx    context.Context
	as     string // media type
	frames chan Frame
	done   chan struct{} // closed when the writer has ended
}

const (
	streamQueue = 1024 // frames that wait for the client
	// writeTimeout is how long a client may take to read what is sent to it; one
	// that takes longer is dropped.
	writeTimeout = 30 * time.Second
	// aliveEvery is how often a stream without news says that it is alive.
	aliveEvery = 15 * time.Second
)

// newStream starts the writer; finish waits for it.
func newStream(ctx context.Context, w http.ResponseWriter, as string) *stream {
	s := &stream{ctx: ctx, as: as, frames: make(chan Frame, streamQueue), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.write(w)
	}()
	return s
}

// open answers before there is news, so that the client knows that it comes.
func (s *stream) open() { _ = s.send(Frame{}) }

// offer sends what may be lost: output of a build that a slow client would
// otherwise hold up. The end of a step is worth a wait only while there is room.
func (s *stream) offer(p kiln.Progress) {
	select {
	case s.frames <- Frame{Progress: &p}:
	default:
	}
}

// send sends what may not be lost, and waits for the client.
func (s *stream) send(f Frame) error {
	select {
	case s.frames <- f:
		return nil
	case <-s.done:
		return context.Canceled
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// finish sends the last frame and waits until it is written. A client that
// does not read it is gone after writeTimeout.
func (s *stream) finish(result any, err error) {
	frame := Frame{}
	if err == nil {
		frame.Result, err = json.Marshal(result)
	}
	if err != nil {
		frame = Frame{Error: errorOf(err)}
	}
	select {
	case s.frames <- frame:
	case <-s.done: // the client is gone
	}
	close(s.frames)
	<-s.done
}

// write owns w until the frames end or the client is gone. The status is that
// of the first frame, so that a refusal at once is one in HTTP too.
func (s *stream) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", s.as)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	buffered := bufio.NewWriter(w)
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	first := true
	for {
		var frame Frame
		select {
		case next, more := <-s.frames:
			if !more {
				return
			}
			frame = next
		case <-alive.C:
			if first {
				continue // the status is not known yet
			}
		}
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
		if first {
			first = false
			w.WriteHeader(frameStatus(frame))
		}
		if s.encode(buffered, frame) != nil {
			return
		}
		if len(s.frames) > 0 {
			continue
		}
		alive.Reset(aliveEvery)
		if buffered.Flush() != nil || control.Flush() != nil {
			return
		}
	}
}

// encode writes one frame; one that is empty only says that the stream is
// alive.
func (s *stream) encode(w *bufio.Writer, f Frame) error {
	if s.as == typeSSE {
		return encodeSSE(w, f)
	}
	if f.empty() {
		return w.WriteByte('\n')
	}
	return json.NewEncoder(w).Encode(f)
}

// encodeSSE writes a frame as an event of a browser's EventSource (HTML
// Living Standard, 9.2). The ID of an event is where to go on after it.
func encodeSSE(w *bufio.Writer, f Frame) error {
	if f.empty() {
		_, err := w.WriteString(":\n\n")
		return err
	}
	name, data := "end", any(struct{}{})
	switch {
	case f.Event != nil:
		name, data = f.Event.Kind, f.Event
		if _, err := fmt.Fprintf(w, "id: %d\n", f.Event.Sequence); err != nil {
			return err
		}
	case f.Error != nil:
		name, data = "refused", f.Error // "error" is the browser's own
	}
	body, err := json.Marshal(data) // has no newline
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, body)
	return err
}

func (f Frame) empty() bool {
	return f.Progress == nil && f.Event == nil && f.Log == nil && f.Result == nil && f.Error == nil
}

func frameStatus(f Frame) int {
	if f.Error != nil {
		return statusOf(f.Error.Code)
	}
	return http.StatusOK
}

// logFrames is a writer that makes each line a frame.
type logFrames struct {
	s    *stream
	rest []byte // a line that has not ended
}

const longestLine = 1 << 20 // bytes of one log line as JSON

func (l *logFrames) Write(p []byte) (int, error) {
	n := len(p)
	for {
		line, after, ended := bytes.Cut(p, []byte("\n"))
		if len(l.rest)+len(line) > longestLine {
			return 0, kiln.Errorf(kiln.CodeInternal, "", "a log line of more than %d bytes", longestLine)
		}
		l.rest = append(l.rest, line...)
		if !ended {
			return n, nil
		}
		if len(l.rest) > 0 {
			if err := l.s.send(Frame{Log: bytes.Clone(l.rest)}); err != nil {
				return 0, err
			}
		}
		l.rest, p = l.rest[:0], after
	}
}
