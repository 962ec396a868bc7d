// Package handoff passes listening sockets from the keeper to the gateway over
// a Unix socket pair: one message a listener, with the socket attached
// (SCM_RIGHTS), each answered by the receiver. It knows nothing of what the
// listeners are for.
//
// A message is one packet of a SOCK_SEQPACKET pair:
//
//	byte 0..3   "KLNH"
//	byte 4      version, 1
//	byte 5      kind: 1 listener, 2 withdrawn, 3 answer
//	byte 6..7   length of the text, big endian
//	byte 8..15  the message's mark; an answer repeats it
//	byte 16..   text: the listener's name; of an answer, the refusal or nothing
//
// The sender waits for the answer before it goes on, so that whoever asked for
// a listener knows that the other process has it.
package handoff

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	magic      = "KLNH"
	version    = 1
	headerSize = 16
	// MaxName is the longest name of a listener, in bytes.
	MaxName = 512
	// Timeout bounds one message and its answer.
	Timeout = 5 * time.Second
)

type kind byte

const (
	kindListener  kind = 1
	kindWithdrawn kind = 2
	kindAnswer    kind = 3
)

type message struct {
	kind kind
	mark [8]byte
	text string
}

// RefusedError is a receiver's refusal of a listener.
type RefusedError struct {
	Name   string
	Reason string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("listener %s was refused: %s", e.Name, e.Reason)
}

// Pair makes the two ends. The child's end is for exec.Cmd.ExtraFiles; the
// caller closes it once the child has it.
func Pair() (parent *net.UnixConn, child *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	child = os.NewFile(uintptr(fds[1]), "handoff")
	mine := os.NewFile(uintptr(fds[0]), "handoff")
	parent, err = Conn(mine)
	if err != nil {
		_ = child.Close()
		return nil, nil, err
	}
	return parent, child, nil
}

// Conn makes a connection of an inherited end and closes f.
func Conn(f *os.File) (*net.UnixConn, error) {
	defer func() { _ = f.Close() }()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("take the listeners' socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("take the listeners' socket: it is a %T", c)
	}
	return u, nil
}

// Send passes a listener and waits until the receiver has answered. Without f
// the name is withdrawn: the receiver closes what it has under that name. f
// stays open and the caller's. A refusal is a *RefusedError; after any other
// error the connection is of no more use. Not for concurrent use.
func Send(conn *net.UnixConn, name string, f *os.File) error {
	m := message{kind: kindWithdrawn, text: name}
	if _, err := rand.Read(m.mark[:]); err != nil {
		return fmt.Errorf("pass listener %s: %w", name, err)
	}
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("pass listener %q: a name has 1 to %d bytes", name, MaxName)
	}
	if err := conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return fmt.Errorf("pass listener %s: %w", name, err)
	}
	defer func() { _ = conn.SetDeadline(time.Time{}) }()
	var err error
	if f != nil {
		m.kind = kindListener
		err = writeWithFile(conn, m, f)
	} else {
		err = write(conn, m, nil)
	}
	if err != nil {
		return fmt.Errorf("pass listener %s: %w", name, err)
	}
	return awaitAnswer(conn, name, m.mark)
}

func awaitAnswer(conn *net.UnixConn, name string, mark [8]byte) error {
	for {
		m, f, err := read(conn)
		if f != nil {
			_ = f.Close()
		}
		if err != nil {
			return fmt.Errorf("await the answer for listener %s: %w", name, err)
		}
		if m.kind != kindAnswer || m.mark != mark {
			continue // the late answer to a message that timed out
		}
		if m.text != "" {
			return &RefusedError{Name: name, Reason: m.text}
		}
		return nil
	}
}

// Receive waits for one message and answers it at once. f is nil when the name
// is withdrawn; otherwise the caller owns it, and it is close-on-exec. io.EOF
// means that the sender is gone. Not for concurrent use.
func Receive(conn *net.UnixConn) (name string, f *os.File, err error) {
	m, f, err := receive(conn)
	if err != nil {
		return "", nil, err
	}
	if err := answer(conn, m, nil); err != nil {
		if f != nil {
			_ = f.Close()
		}
		return "", nil, err
	}
	return m.text, f, nil
}

// Serve receives until the connection is closed, by either side, and answers
// each message only after take has returned, with its error as the refusal. It
// returns the error that ended it, io.EOF when the sender is gone. take owns f,
// which is nil for a withdrawn name.
func Serve(conn *net.UnixConn, take func(name string, f *os.File) error) error {
	for {
		m, f, err := receive(conn)
		if err != nil {
			return err
		}
		if err := answer(conn, m, take(m.text, f)); err != nil {
			return err
		}
	}
}

func receive(conn *net.UnixConn) (message, *os.File, error) {
	m, f, err := read(conn)
	if err != nil {
		return message{}, nil, err
	}
	if (m.kind == kindListener) != (f != nil) || m.kind == kindAnswer || m.text == "" {
		if f != nil {
			_ = f.Close()
		}
		return message{}, nil, fmt.Errorf("listener message of kind %d for %q does not hold what it must", m.kind, m.text)
	}
	return m, f, nil
}

func answer(conn *net.UnixConn, m message, refusal error) error {
	a := message{kind: kindAnswer, mark: m.mark}
	if refusal != nil {
		a.text = refusal.Error()
		a.text = a.text[:min(len(a.text), MaxName)]
	}
	if err := write(conn, a, nil); err != nil {
		return fmt.Errorf("answer for listener %s: %w", m.text, err)
	}
	return nil
}

func writeWithFile(conn *net.UnixConn, m message, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var werr error
	err = raw.Control(func(fd uintptr) { werr = write(conn, m, unix.UnixRights(int(fd))) })
	return errors.Join(err, werr)
}

func write(conn *net.UnixConn, m message, oob []byte) error {
	b := make([]byte, headerSize, headerSize+len(m.text))
	copy(b, magic)
	b[4], b[5] = version, byte(m.kind)
	binary.BigEndian.PutUint16(b[6:], uint16(len(m.text))) // at most MaxName
	copy(b[8:], m.mark[:])
	b = append(b, m.text...)
	n, _, err := conn.WriteMsgUnix(b, oob, nil)
	if err == nil && n != len(b) {
		err = fmt.Errorf("wrote %d of %d bytes", n, len(b))
	}
	return err
}

func read(conn *net.UnixConn) (message, *os.File, error) {
	b := make([]byte, headerSize+MaxName+1)
	oob := make([]byte, unix.CmsgSpace(4*4)) // room to see, and close, more than the one that is right
	n, oobn, flags, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return message{}, nil, err
	}
	files, ferr := filesOf(oob[:oobn])
	m, merr := parse(b[:n])
	switch {
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("listener message is too long")
	case len(files) > 1:
		err = fmt.Errorf("listener message holds %d files", len(files))
	default:
		err = errors.Join(ferr, merr)
	}
	if err != nil {
		for _, f := range files {
			_ = f.Close()
		}
		return message{}, nil, err
	}
	if len(files) == 1 {
		return m, files[0], nil
	}
	return m, nil, nil
}

func filesOf(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read what is attached: %w", err)
	}
	var files []*os.File
	for i := range controls {
		fds, err := unix.ParseUnixRights(&controls[i])
		if err != nil {
			continue // credentials and the like
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "listener"))
		}
	}
	return files, nil
}

func parse(b []byte) (message, error) {
	if len(b) < headerSize || string(b[:4]) != magic {
		return message{}, errors.New("not a listener message")
	}
	if b[4] != version {
		return message{}, fmt.Errorf("listener message of version %d; this program speaks %d", b[4], version)
	}
	k := kind(b[5])
	if k < kindListener || k > kindAnswer {
		return message{}, fmt.Errorf("listener message of unknown kind %d", k)
	}
	if int(binary.BigEndian.Uint16(b[6:])) != len(b)-headerSize || len(b) > headerSize+MaxName {
		return message{}, errors.New("listener message of wrong length")
	}
	m := message{kind: k, text: string(b[headerSize:])}
	copy(m.mark[:], b[8:])
	return m, nil
}
