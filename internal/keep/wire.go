package keep

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kilnproject/kiln"
)

// The protocol: one connection a call. The client sends one line of JSON, a
// request, and reads one, a response; for "watch" one response a change, until
// either side closes. Both say their version.
const (
	// Protocol is its version.
	Protocol = 1
	protocol = Protocol
	// maxRequest and maxResponse bound one line, in bytes.
	maxRequest  = 1 << 20
	maxResponse = 16 << 20
)

// The methods.
const (
	methodPing   = "ping"
	methodStart  = "start"
	methodList   = "list"
	methodWatch  = "watch"
	methodForget = "forget"
	methodListen = "listen"
	methodStop   = "stop"
	// methodReplace is answered only when it did not work.
	methodReplace = "replace"
)

type request struct {
	Version   int           `json:"version"`
	Method    string        `json:"method"`
	Process   *kiln.Process `json:"process,omitempty"`
	ID        string        `json:"id,omitempty"`
	Listeners []string      `json:"listeners,omitempty"`
	Force     bool          `json:"force,omitempty"`
	Program   string        `json:"program,omitempty"`
}

type response struct {
	Version   int                  `json:"version"`
	Error     *kiln.Error          `json:"error,omitempty"`
	Process   *kiln.ProcessStatus  `json:"process,omitempty"`
	Processes []kiln.ProcessStatus `json:"processes,omitempty"`
	Info      *Info                `json:"info,omitempty"`
}

// Info is what a keeper says of itself.
type Info struct {
	Protocol  int       `json:"protocol"`
	Version   string    `json:"version"` // of the program
	PID       int       `json:"pid"`
	StartedAt time.Time `json:"started_at"`
	Living    int       `json:"living"` // instances
	Listeners []string  `json:"listeners,omitempty"`
	// GatewayPID is 0 without a gateway; GatewayStarts counts all of them.
	GatewayPID    int `json:"gateway_pid,omitempty"`
	GatewayStarts int `json:"gateway_starts,omitempty"`
}

// writeLine sends v as one line.
func writeLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// readLine takes one line of at most limit bytes into v.
func readLine(r *bufio.Reader, limit int, v any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return fmt.Errorf("a message is longer than %d bytes", limit)
		}
		line = append(line, part...)
		if err == nil {
			return json.Unmarshal(line, v)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// toError gives an error the form that a client gets.
func toError(err error) *kiln.Error {
	if err == nil {
		return nil
	}
	if e := (*kiln.Error)(nil); errors.As(err, &e) {
		return e
	}
	return &kiln.Error{Code: kiln.CodeFailed, Message: err.Error(), Err: err}
}
