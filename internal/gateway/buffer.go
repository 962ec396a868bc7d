package gateway

import (
	"errors"
	"io"
	"sync"
)

var errBufferFull = errors.New("the buffer is full")

// buffer holds what was read and not yet used: b[r:w]. What lies below floor is
// in use elsewhere and never moved.
type buffer struct {
	b           []byte
	floor, r, w int
}

func (b *buffer) bytes() []byte { return b.b[b.r:b.w] }

func (b *buffer) skip(n int) {
	b.r += n
	if b.r == b.w {
		b.r, b.w = b.floor, b.floor
	}
}

// hold keeps what was used so far where it is, until release.
func (b *buffer) hold() { b.floor = b.r }

// release gives up what was held; small is the size to shrink to when empty.
func (b *buffer) release(small int) {
	b.floor = 0
	b.skip(0)
	if b.w == 0 && len(b.b) > 4*small {
		b.b = make([]byte, small)
	}
}

// room makes space behind w: moves b[r:w] down to the floor, or grows up to
// limit bytes. Slices of what lies below the floor stay valid.
func (b *buffer) room(limit int) error {
	if b.w < len(b.b) {
		return nil
	}
	if b.r > b.floor {
		b.w = b.floor + copy(b.b[b.floor:], b.b[b.r:b.w])
		b.r = b.floor
		return nil
	}
	if len(b.b) >= limit {
		return errBufferFull
	}
	grown := make([]byte, min(max(2*len(b.b), 4096), limit))
	copy(grown, b.b[:b.w])
	b.b = grown
	return nil
}

// fill reads once from r.
func (b *buffer) fill(r io.Reader, limit int) error {
	if err := b.room(limit); err != nil {
		return err
	}
	n, err := r.Read(b.b[b.w:])
	b.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// pieces lends buffers of 32 KiB.
type pieces struct{ pool sync.Pool }

const pieceSize = 32 << 10

func (p *pieces) get() *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, pieceSize)
	return &b
}

func (p *pieces) put(b *[]byte) {
	if cap(*b) > 4*pieceSize {
		return
	}
	*b = (*b)[:0]
	p.pool.Put(b)
}
