// Package http1 reads HTTP/1.1 messages (RFC 9112) strictly and without
// allocating: heads are parsed in place, in the buffer that they were read
// into, and bodies are decoded piece by piece. What could be understood in two
// ways is an error, never a guess. The package holds no sockets and no clocks.
package http1

// Error is why a message is refused. Status is what a server answers a request
// with; a message from an upstream is a bad gateway whatever Status says.
type Error struct {
	Status int
	Reason string // one sentence without its full stop
}

func (e *Error) Error() string { return e.Reason }

func bad(reason string) error { return &Error{Status: 400, Reason: reason} }

// Limits bound a head. All are positive.
type Limits struct {
	Line   int // bytes of the first line
	Head   int // bytes of the whole head
	Fields int // number of header fields
}

// DefaultLimits are what public servers commonly allow.
func DefaultLimits() Limits { return Limits{Line: 8 << 10, Head: 64 << 10, Fields: 128} }
