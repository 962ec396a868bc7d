package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"

	"github.com/kilnproject/kiln"
)

// stream writes frames to one client from one goroutine, so that whoever makes
// news never waits for a client that does not read.
type stream struct {
	ctx    context.Context
	frames chan Frame
	done   chan struct{} // closed when the writer has ended
}

const streamQueue = 1024 // frames that wait for the client

// newStream starts the writer; close waits for it.
func newStream(ctx context.Context, w http.ResponseWriter) *stream {
	s := &stream{ctx: ctx, frames: make(chan Frame, streamQueue), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.write(w)
	}()
	return s
}

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

// finish sends the last frame and waits until it is written.
func (s *stream) finish(result any, err error) {
	frame := Frame{}
	if err == nil {
		frame.Result, err = json.Marshal(result)
	}
	if err != nil {
		frame = Frame{Error: errorOf(err)}
	}
	_ = s.send(frame) // fails only when the client is gone
	close(s.frames)
	<-s.done
}

// write owns w until the frames end or the client is gone. The status is that
// of the first frame, so that a refusal at once is one in HTTP too.
func (s *stream) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", typeStream)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	flush := http.NewResponseController(w)
	buffered := bufio.NewWriter(w)
	encoder := json.NewEncoder(buffered)
	first := true
	for frame := range s.frames {
		if first {
			first = false
			w.WriteHeader(frameStatus(frame))
		}
		if encoder.Encode(frame) != nil {
			return
		}
		if len(s.frames) > 0 {
			continue
		}
		if buffered.Flush() != nil || flush.Flush() != nil {
			return
		}
	}
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
