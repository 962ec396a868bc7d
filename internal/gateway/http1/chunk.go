package http1

import "bytes"

const (
	maxChunkLine = 512     // bytes of a chunk's size line with its extensions
	maxTrailer   = 8 << 10 // bytes of the trailer section
	maxTrailers  = 64      // fields of the trailer section
)

// Decoder takes a body apart. The zero value is an empty body.
type Decoder struct {
	kind  int64 // Chunked, UntilClose, or 0 for a known length
	left  int64 // of the body, or of the chunk
	state chunkState
	// Trailer are the fields after the last chunk that may be forwarded; they
	// are valid until the buffer that was given to Next is changed.
	Trailer []Field
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkData
	chunkEnd
	chunkTrailer
	chunkDone
)

// Reset prepares for a body of the given length: a number, Chunked or
// UntilClose.
func (d *Decoder) Reset(length int64) {
	*d = Decoder{Trailer: d.Trailer[:0]}
	if length < 0 {
		d.kind = length
	} else {
		d.left = length
	}
}

// Done says that the whole body was read.
func (d *Decoder) Done() bool {
	switch d.kind {
	case Chunked:
		return d.state == chunkDone
	case UntilClose:
		return false
	}
	return d.left == 0
}

// Left is how much of a body of known length is still to come, -1 for others.
func (d *Decoder) Left() int64 {
	if d.kind < 0 {
		return -1
	}
	return d.left
}

// Skip counts n bytes of a body of known length that were taken elsewhere.
func (d *Decoder) Skip(n int64) { d.left -= n }

// Next takes the next piece of the body from the front of b: data, a slice of
// b, and how many bytes of b are used up. When both are nothing and the body
// is not Done, more bytes are needed behind those of b; sizes and trailers
// are bounded, so that a buffer of 16 KiB always suffices.
func (d *Decoder) Next(b []byte) (data []byte, used int, err error) {
	switch d.kind {
	case UntilClose:
		return b, len(b), nil
	case Chunked:
		return d.nextChunk(b)
	}
	n := int(min(int64(len(b)), d.left))
	d.left -= int64(n)
	return b[:n], n, nil
}

func (d *Decoder) nextChunk(b []byte) (data []byte, used int, err error) {
	for {
		rest := b[used:]
		n := 0
		switch d.state {
		case chunkSize:
			n, err = d.size(rest)
		case chunkData:
			n = int(min(int64(len(rest)), d.left))
			if d.left -= int64(n); d.left == 0 {
				d.state = chunkEnd
			}
			if n > 0 {
				return rest[:n], used + n, nil
			}
		case chunkEnd:
			n, err = d.end(rest)
		case chunkTrailer:
			n, err = d.trailer(rest)
		case chunkDone:
		}
		if err != nil || n == 0 {
			return nil, used, err
		}
		used += n
	}
}

// size reads "1*HEXDIG [ chunk-ext ] CRLF" (RFC 9112, section 7.1).
// Extensions are checked and dropped.
func (d *Decoder) size(b []byte) (int, error) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		if len(b) > maxChunkLine {
			return 0, bad("a chunk's size line is too long")
		}
		return 0, nil
	}
	if i > maxChunkLine || i < 2 || b[i-1] != '\r' {
		return 0, bad("a chunk's size is malformed")
	}
	one, n := b[:i-1], 0
	var size int64
	for n < len(one) && hexValue(one[n]) < 16 {
		size = size<<4 | int64(hexValue(one[n]))
		n++
	}
	if n == 0 || n > 15 {
		return 0, bad("a chunk's size is malformed")
	}
	if n < len(one) && one[n] != ';' {
		return 0, bad("a chunk's size is malformed")
	}
	if !all(one[n:], &valueTable) {
		return 0, bad("a chunk's extension has a control character")
	}
	d.left, d.state = size, chunkData
	if size == 0 {
		d.state = chunkTrailer
	}
	return i + 1, nil
}

func (d *Decoder) end(b []byte) (int, error) {
	if len(b) > 0 && b[0] != '\r' || len(b) > 1 && b[1] != '\n' {
		return 0, bad("a chunk does not end where its size says")
	}
	if len(b) < 2 {
		return 0, nil
	}
	d.state = chunkSize
	return 2, nil
}

// trailer waits for the whole trailer section and keeps the fields that say
// nothing about framing, routing or the connection.
func (d *Decoder) trailer(b []byte) (int, error) {
	if len(b) >= 2 && b[0] == '\r' && b[1] == '\n' {
		d.state = chunkDone
		return 2, nil
	}
	if len(b) > 0 && b[0] == '\n' {
		return 0, bad("a line ends without a carriage return")
	}
	if len(b) < 2 {
		return 0, nil
	}
	end, _, err := HeadEnd(b, 0)
	if err != nil {
		return 0, err
	}
	if end == 0 || end > maxTrailer {
		if len(b) > maxTrailer {
			return 0, bad("the trailers are too long")
		}
		return 0, nil
	}
	fields, err := parseFields(b[:end], d.Trailer[:0], maxTrailers)
	if err != nil {
		return 0, err
	}
	kept := fields[:0]
	for _, f := range fields {
		if f.Kind == Other {
			kept = append(kept, f)
		}
	}
	d.Trailer, d.state = kept, chunkDone
	return end, nil
}
