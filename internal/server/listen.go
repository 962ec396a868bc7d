package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnproject/kiln"
)

// SocketName is the API's socket in a data directory.
const SocketName = "kiln.sock"

// longestSocket is sun_path's size less its final NUL (unix(7)).
const longestSocket = 107

// Listen opens the socket, for root and the group alone. A socket that a dead
// server left is replaced; the caller holds the data directory's lock, so that
// there is no living one.
func Listen(path string) (net.Listener, error) {
	if len(path) > longestSocket {
		return nil, kiln.Errorf(kiln.CodeInvalid, "choose a shorter path with --data",
			"%s is too long for a socket: %d characters, at most %d", path, len(path), longestSocket)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// Bound under a name that nobody waits for and renamed once its owner and
	// mode are right, so that it is never open to more than it should be.
	temp := filepath.Join(filepath.Dir(path), ".ks")
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	if err := publish(temp, path); err != nil {
		_ = listener.Close()
		return nil, err
	}
	return &socket{UnixListener: listener, path: path}, nil
}

func publish(temp, path string) error {
	if err := os.Chmod(temp, 0o600); err != nil {
		return err
	}
	if group, exists := lookupGroup(); exists && os.Geteuid() == 0 {
		if err := os.Chown(temp, 0, int(group)); err != nil {
			return err
		}
	}
	if err := os.Chmod(temp, 0o660); err != nil { //nolint:gosec // the group is the point
		return err
	}
	return os.Rename(temp, path)
}

// socket removes its path when it is closed.
type socket struct {
	*net.UnixListener
	path string
}

func (s *socket) Close() error {
	_ = os.Remove(s.path)
	return s.UnixListener.Close()
}

// The connections of the Unix socket that are open at once.
const socketTotal = 1024

// Serve answers on a Unix socket until ctx ends, then takes no more requests
// and gives those that run until the grace has passed; after it they are cut.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler, grace time.Duration, log *slog.Logger) error {
	return serveDoor(ctx, door{listener, newCrowd(socketTotal, socketTotal)}, handler, grace, log)
}

func serveDoor(ctx context.Context, listener net.Listener, handler http.Handler, grace time.Duration, log *slog.Logger) error {
	// Requests are not children of ctx: what runs when the end comes may
	// finish within the grace.
	base, cut := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), closingKey{}, ctx))
	defer cut()
	var protocols http.Protocols
	protocols.SetHTTP1(true) // a connection is one request: what hangs can be counted
	server := &http.Server{
		Handler:           handler,
		Protocols:         &protocols,
		ReadHeaderTimeout: 10 * time.Second, // of the TLS handshake, too
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       withPeer,
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		if ctx.Err() == nil {
			return err
		}
		ended <- err // the listener was closed first; requests end as with any end
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(base, grace)
	defer cancel()
	err := server.Shutdown(closing)
	if errors.Is(err, context.DeadlineExceeded) {
		cut()
		err = server.Close()
	}
	<-ended
	return err
}

type closingKey struct{}

// untilClosing is for requests that follow something: they end as soon as the
// server is asked to.
func untilClosing(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	closing, ok := ctx.Value(closingKey{}).(context.Context)
	if !ok {
		return ctx, cancel
	}
	stop := context.AfterFunc(closing, cancel)
	return ctx, func() { stop(); cancel() }
}
