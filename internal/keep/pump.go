package keep

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln/internal/logs"
)

// pump reads all log pipes, and waits for adopted processes, on one goroutine
// with one buffer: an idle instance costs a few hundred bytes.
type pump struct {
	log      *slog.Logger
	epoll    int
	wake     int // an eventfd
	buf      []byte
	batch    logs.Batch
	handlers map[int]func() // by file; only the goroutine uses it

	mu     sync.Mutex
	todo   []func() // to be run by the goroutine
	closed bool
	done   chan struct{}
}

// readSize is how much is read of one pipe before the next one's turn.
const readSize = 64 << 10

func newPump(log *slog.Logger) (*pump, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("read log pipes: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epoll)
		return nil, fmt.Errorf("read log pipes: %w", err)
	}
	p := &pump{
		log: log, epoll: epoll, wake: wake, buf: make([]byte, readSize),
		handlers: map[int]func(){}, done: make(chan struct{}),
	}
	p.handlers[wake] = func() { _, _ = unix.Read(wake, p.buf[:8]) }
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)}); err != nil {
		_, _ = unix.Close(epoll), unix.Close(wake)
		return nil, fmt.Errorf("read log pipes: %w", err)
	}
	go p.run()
	return p, nil
}

func (p *pump) run() {
	defer close(p.done)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(p.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			p.log.Error("log pipes cannot be read", "error", err)
			return
		}
		for _, e := range events[:max(n, 0)] {
			if handle := p.handlers[int(e.Fd)]; handle != nil {
				handle()
			}
		}
		if p.work() {
			return
		}
	}
}

// work does what was asked for, and says whether to end.
func (p *pump) work() bool {
	p.mu.Lock()
	todo, closed := p.todo, p.closed
	p.todo = nil
	p.mu.Unlock()
	for _, do := range todo {
		do()
	}
	return closed
}

// do runs f on the pump's goroutine and waits for it. After close it does
// nothing.
func (p *pump) do(f func()) {
	done := make(chan struct{})
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.todo = append(p.todo, func() { f(); close(done) })
	p.mu.Unlock()
	p.kick()
	select {
	case <-done:
	case <-p.done:
	}
}

func (p *pump) kick() { _, _ = unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

func (p *pump) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.kick()
	<-p.done
	_, _ = unix.Close(p.epoll), unix.Close(p.wake)
}

// watch calls handle whenever the file is readable or at its end. On the
// pump's goroutine only.
func (p *pump) watch(fd int, handle func()) {
	p.handlers[fd] = handle
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		p.log.Error("a file cannot be watched", "error", err)
	}
}

// unwatch ends watch and leaves the file open. On the pump's goroutine only.
func (p *pump) unwatch(fd int) {
	delete(p.handlers, fd)
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
		p.log.Error("a file is still watched", "error", err)
	}
}

// release closes a file that was watched. On the pump's goroutine only.
func (p *pump) release(fd int) {
	delete(p.handlers, fd)
	_ = unix.Close(fd)
}

// output is an instance's two streams and its log. All of it is the pump's.
type output struct {
	instance string
	writer   *logs.Writer
	streams  []*stream
	told     uint64 // lost lines that the keeper's log knows of
	// capture keeps the end of what the runtime says while it starts.
	capture  []byte
	captures bool
}

// stream is one pipe of an instance.
type stream struct {
	out  *output
	name string
	fd   int    // -1 once closed
	part []byte // the beginning of a line, nil mostly
}

// open begins to read an instance's pipes, by stream name, after the lines that
// were begun already.
func (p *pump) open(out *output, pipes map[string]int, parts map[string][]byte) {
	p.do(func() {
		for name, fd := range pipes {
			s := &stream{out: out, name: name, fd: fd, part: parts[name]}
			out.streams = append(out.streams, s)
			p.watch(fd, func() { p.read(s) })
		}
	})
}

// drain reads what an ended instance left in its pipes. Something of it that
// lives on may hold them; they stay open then.
func (p *pump) drain(out *output) {
	p.do(func() {
		for _, s := range out.streams {
			for range 64 { // at most 4 MiB: one who floods must not hold it up
				if s.fd < 0 || !p.read(s) {
					break
				}
			}
		}
	})
}

// shut closes what is still open of an instance's output.
func (p *pump) shut(out *output) {
	p.do(func() {
		for _, s := range out.streams {
			p.end(s)
		}
		_ = out.writer.Close()
	})
}

// captured ends the capture and returns it.
func (p *pump) captured(out *output) string {
	var text string
	p.do(func() {
		text = string(out.capture)
		out.capture, out.captures = nil, false
	})
	return text
}

// read takes one piece of a stream, and says whether there was any.
func (p *pump) read(s *stream) bool {
	n, err := unix.Read(s.fd, p.buf)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return false
	case err != nil || n == 0:
		p.end(s)
		return false
	}
	s.out.keep(p.buf[:n])
	p.batch.Reset()
	s.split(&p.batch, p.buf[:n], time.Now())
	p.write(s.out)
	return true
}

// end closes a stream, with the line that was begun.
func (p *pump) end(s *stream) {
	if s.fd < 0 {
		return
	}
	p.release(s.fd)
	s.fd = -1
	if len(s.part) > 0 {
		p.batch.Reset()
		p.batch.Add(time.Now(), s.out.instance, s.name, s.part)
		s.part = nil
		p.write(s.out)
	}
	for _, other := range s.out.streams {
		if other.fd >= 0 {
			return
		}
	}
	_ = s.out.writer.Close()
}

func (p *pump) write(out *output) {
	if p.batch.Len() == 0 {
		return
	}
	out.writer.Write(&p.batch)
	lost := out.writer.Lost()
	if lost > 0 && out.told == 0 {
		p.log.Error("log lines are lost", "instance", out.instance, "error", out.writer.Cause())
	}
	out.told = lost
}
