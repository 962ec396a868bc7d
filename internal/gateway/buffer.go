package gateway

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

var (
	errBufferFull = errors.New("the buffer is full")
	errNoRoom     = errors.New("no memory is left for large requests")
)

const (
	// ample is what a buffer may have without asking the budget.
	ample = 16 << 10
	// maxRoom is what the buffers of all clients may have together beyond that:
	// large heads and bodies in the making.
	maxRoom = 128 << 20
)

// budget is memory that many share. Nil has no end.
type budget struct{ left atomic.Int64 }

func newBudget(bytes int64) *budget {
	b := &budget{}
	b.left.Store(bytes)
	return b
}

// change takes what a buffer needs to become another size, or gives it back;
// it says no when there is too little.
func (b *budget) change(from, to int) bool {
	n := int64(max(to, ample) - max(from, ample))
	if b == nil || n == 0 {
		return true
	}
	if b.left.Add(-n) < 0 && n > 0 {
		b.left.Add(n)
		return false
	}
	return true
}

// buffer holds what was read and not yet used: b[r:w]. What lies below floor is
// in use elsewhere and never moved.
type buffer struct {
	b           []byte
	floor, r, w int
	budget      *budget
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
	if b.w == 0 && len(b.b) > ample {
		b.budget.change(len(b.b), small)
		b.b = make([]byte, small)
	}
}

// free gives back what was taken of the budget; the buffer is used no more.
func (b *buffer) free() { b.budget.change(len(b.b), 0) }

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
	return b.grow(limit)
}

// grow doubles the buffer, up to limit bytes.
func (b *buffer) grow(limit int) error {
	if len(b.b) >= limit {
		return nil
	}
	size := min(max(2*len(b.b), 4096), limit)
	if !b.budget.change(len(b.b), size) {
		return errNoRoom
	}
	grown := make([]byte, size)
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

// pieces lends buffers of 32 KiB, for bodies on their way, and smaller ones for
// heads, which a request has all the time that it waits for its answer.
type pieces struct{ large, small sync.Pool }

const (
	pieceSize = 32 << 10
	smallSize = 4 << 10
)

func (p *pieces) get() *[]byte      { return borrow(&p.large, pieceSize) }
func (p *pieces) put(b *[]byte)     { giveBack(&p.large, b, 4*pieceSize) }
func (p *pieces) getHead() *[]byte  { return borrow(&p.small, smallSize) }
func (p *pieces) putHead(b *[]byte) { giveBack(&p.small, b, 4*smallSize) }

func borrow(p *sync.Pool, size int) *[]byte {
	if b, ok := p.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, size)
	return &b
}

func giveBack(p *sync.Pool, b *[]byte, limit int) {
	if cap(*b) > limit {
		return
	}
	*b = (*b)[:0]
	p.Put(b)
}
