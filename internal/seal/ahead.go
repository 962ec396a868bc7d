package seal

import "io"

// ahead reads in a goroutine of its own, so that unpacking overlaps with what
// is done with the content. It is for one reader, who calls stop at the end.
type ahead struct {
	full  chan []byte // filled buffers
	empty chan []byte // used ones
	quit  chan struct{}
	done  chan struct{}

	now []byte // rest of the buffer being read
	buf []byte // that buffer, whole
	err error  // set before full is closed
}

// readAhead starts reading. Buffers of 256 KiB, four of them, go round.
func readAhead(r io.Reader) *ahead {
	a := &ahead{full: make(chan []byte, 4), empty: make(chan []byte, 4), quit: make(chan struct{}), done: make(chan struct{})}
	for range cap(a.empty) {
		a.empty <- make([]byte, 256<<10)
	}
	go a.run(r)
	return a
}

func (a *ahead) run(r io.Reader) {
	defer close(a.done)
	defer close(a.full)
	for {
		select {
		case <-a.quit:
			a.err = io.ErrClosedPipe
			return
		case buf := <-a.empty:
			n, err := fill(r, buf[:cap(buf)])
			if n > 0 {
				a.full <- buf[:n] // there are as many places as buffers
			}
			if err != nil {
				a.err = err
				return
			}
		}
	}
}

// fill reads until the buffer is full. Unlike io.ReadFull it returns the
// reader's own error.
func fill(r io.Reader, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		k, err := r.Read(buf[n:])
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	if len(a.now) == 0 {
		if a.buf != nil {
			a.empty <- a.buf
			a.buf = nil
		}
		buf, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.buf, a.now = buf, buf
	}
	n := copy(p, a.now)
	a.now = a.now[n:]
	return n, nil
}

// stop ends the reading and waits for it.
func (a *ahead) stop() {
	close(a.quit)
	<-a.done
}
