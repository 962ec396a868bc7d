package keep

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln/internal/handoff"
)

// A gateway's start takes longer than its clients should notice: a process is
// made another user's and becomes a program that takes from itself what it does
// not need. So one is started ahead and waits for its turn. It has neither
// listeners nor the last table until then, and ends when its keeper does.

// child is a gateway's process, and how it is told of its turn and of sockets.
type child struct {
	pid    int
	ended  chan struct{} // closed at its end
	status unix.WaitStatus
	conn   *net.UnixConn
	turn   *os.File
}

// AwaitTurn is the gateway's part: it returns once the keeper that started this
// process says that it is the gateway now. It fails with io.EOF when the keeper
// is gone, or needs it no more.
func AwaitTurn(in io.Reader) error {
	_, err := io.ReadFull(in, make([]byte, 1))
	return err
}

// start starts a gateway that waits for its turn.
func (g *gateway) start() (*child, error) {
	conn, theirs, err := handoff.Pair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	waiting, turn, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the gateway: %w", err), conn.Close())
	}
	defer func() { _ = waiting.Close() }()
	pid, ended, err := g.spawn(waiting, theirs)
	if err != nil {
		return nil, errors.Join(err, conn.Close(), turn.Close())
	}
	c := &child{pid: pid, ended: make(chan struct{}), conn: conn, turn: turn}
	began := time.Now()
	g.watching.Go(func() {
		c.status = <-ended
		close(c.ended)
		if time.Since(began) > quickDeath {
			g.nudge() // one that was to spare is missed
		}
	})
	return c, nil
}

// next is the gateway whose turn it is: the spare one, where it lives.
func (g *gateway) next() (*child, error) {
	g.spawning.Lock()
	defer g.spawning.Unlock()
	c := g.takeSpare()
	if c == nil {
		var err error
		if c, err = g.start(); err != nil {
			return nil, err
		}
	}
	// What has ended since reads nothing, and is found by its end.
	_, _ = c.turn.Write([]byte{1})
	_ = c.turn.Close()
	g.began(c.pid)
	return c, nil
}

// takeSpare is the spare gateway; nil where there is none that lives.
func (g *gateway) takeSpare() *child {
	g.mu.Lock()
	c := g.spare
	g.spare = nil
	g.mu.Unlock()
	if c == nil {
		return nil
	}
	select {
	case <-c.ended:
		g.log.Warn("spare gateway ended", "pid", c.pid, "status", describe(c.status))
		_ = errors.Join(c.turn.Close(), c.conn.Close())
		return nil
	default:
		return c
	}
}

// prepare starts the spare gateway where there is none that lives.
func (g *gateway) prepare() {
	g.spawning.Lock()
	defer g.spawning.Unlock()
	c := g.takeSpare()
	if c == nil {
		var err error
		if c, err = g.start(); err != nil {
			g.log.Warn("no spare gateway", "error", err)
			return
		}
	}
	g.mu.Lock()
	g.spare = c
	g.mu.Unlock()
}

// dismiss ends the spare gateway.
func (g *gateway) dismiss() {
	c := g.takeSpare()
	if c == nil {
		return
	}
	_ = errors.Join(c.turn.Close(), c.conn.Close())
	g.end(c, unix.SIGKILL)
}
