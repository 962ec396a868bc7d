package keep

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// pipesDir is the folder of the instances' pipes, below "run".
const pipesDir = "pipes"

// pipe is what an instance writes one of its streams to. It has a name, so
// that another keeper can go on reading, and the instance has it open for
// reading too, so that it gets no SIGPIPE while no keeper reads.
type pipe struct {
	read  int      // the keeper's end, non-blocking
	write *os.File // the instance's
	path  string   // empty when it has no name
}

// pipeMode lets an instance's own users open /dev/stdout again; nobody else
// can reach the folder.
const pipeMode = 0o622

// makePipe makes a pipe; one without a name where the disk has no room for it.
func makePipe(path string) (*pipe, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make a log pipe: %w", err)
	}
	err := unix.Mkfifo(path, 0o600)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return anonymousPipe()
	}
	if err == nil {
		err = os.Chmod(path, pipeMode) // whatever the umask
	}
	if err != nil {
		return nil, fmt.Errorf("make a log pipe: %w", err)
	}
	write, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a log pipe: %w", err)
	}
	read, err := openPipe(path)
	if err != nil {
		_ = unix.Close(write)
		return nil, err
	}
	return &pipe{read: read, write: os.NewFile(uintptr(write), "log pipe"), path: path}, nil
}

// openPipe opens the reading end of a pipe that is there.
func openPipe(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a log pipe: %w", err)
	}
	return fd, nil
}

func anonymousPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make a log pipe: %w", err)
	}
	err := errors.Join(unix.SetNonblock(fds[0], true), unix.Fchmod(fds[1], pipeMode))
	if err != nil {
		_, _ = unix.Close(fds[0]), unix.Close(fds[1])
		return nil, fmt.Errorf("make a log pipe: %w", err)
	}
	return &pipe{read: fds[0], write: os.NewFile(uintptr(fds[1]), "log pipe")}, nil
}

// pipePath is where a stream's pipe is.
func pipePath(dataDir, id, stream string) string {
	return filepath.Join(dataDir, "run", pipesDir, id+"."+stream)
}
