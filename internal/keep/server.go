package keep

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

const (
	// maxClients is how many connections are served at once.
	maxClients = 256
	// clientLimit bounds a client's sending and receiving of one message.
	clientLimit = 10 * time.Second
)

// serve answers clients until ctx ends.
func (k *keeper) serve(ctx context.Context, socket *net.UnixListener) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	defer stop()
	var clients sync.WaitGroup
	defer clients.Wait()
	slots := make(chan struct{}, maxClients)
	for {
		slots <- struct{}{}
		conn, err := socket.AcceptUnix()
		if err != nil {
			<-slots
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			k.log.Error("client was not accepted", "error", err)
			pause(ctx, 100*time.Millisecond) // out of files, most likely
			continue
		}
		clients.Go(func() {
			defer func() { <-slots }()
			k.client(ctx, conn)
		})
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// client serves one connection. The call's context ends when the client goes.
func (k *keeper) client(ctx context.Context, conn *net.UnixConn) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(clientLimit))
	in := bufio.NewReaderSize(conn, 4<<10)
	var req request // read before anything is refused, so that the refusal arrives
	if err := readLine(in, maxRequest, &req); err != nil {
		k.reply(conn, response{Error: kiln.Errorf(kiln.CodeInvalid, "", "read the request: %w", err)})
		return
	}
	if err := allowed(conn); err != nil {
		k.log.Warn("client was refused", "error", err)
		k.reply(conn, response{Error: toError(err)})
		return
	}
	if req.Version != protocol {
		k.reply(conn, response{Error: kiln.Errorf(kiln.CodeRefused, "use the same version of all of Kiln's programs",
			"the keeper speaks version %d of its protocol, the client %d", protocol, req.Version)})
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var reading sync.WaitGroup
	reading.Go(func() {
		_, _ = in.ReadByte() // a client sends nothing more: this is its end
		cancel()
	})
	k.answer(ctx, conn, req)
	_ = conn.Close()
	reading.Wait()
}

// allowed checks who is at the other end: root, or the keeper's own user.
func allowed(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, cerr); err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return kiln.Errorf(kiln.CodeRefused, "", "user %d may not use the keeper", cred.Uid)
	}
	return nil
}

func (k *keeper) reply(conn *net.UnixConn, r response) bool {
	r.Version = protocol
	_ = conn.SetWriteDeadline(time.Now().Add(clientLimit))
	return writeLine(conn, r) == nil
}

// answer does what a request asks for.
func (k *keeper) answer(ctx context.Context, conn *net.UnixConn, req request) {
	var r response
	switch req.Method {
	case methodPing:
		r.Info = k.info()
	case methodStart:
		if req.Process == nil {
			r.Error = kiln.Errorf(kiln.CodeInvalid, "", "start: no process")
			break
		}
		k.calls.RLock()
		status, err := k.start(ctx, *req.Process)
		k.calls.RUnlock()
		r.Process, r.Error = &status, toError(err)
	case methodList:
		r.Processes = k.list()
	case methodWatch:
		k.stream(ctx, conn)
		return
	case methodForget:
		k.calls.RLock()
		r.Error = toError(k.forget(req.ID))
		k.calls.RUnlock()
	case methodListen:
		k.calls.RLock()
		r.Error = toError(k.listen(ctx, req.Listeners))
		k.calls.RUnlock()
	case methodStop:
		r.Error = toError(k.mayStop(req.Force))
		k.reply(conn, r)
		if r.Error == nil {
			k.stop(errStopped)
		}
		return
	case methodReplace:
		r.Error = toError(k.replace(req.Program))
	default:
		r.Error = kiln.Errorf(kiln.CodeInvalid, "", "the keeper knows no method %q", req.Method)
	}
	k.reply(conn, r)
}

func (k *keeper) info() *Info {
	listeners, running := k.gateway.state()
	i := &Info{
		Protocol: protocol, Version: k.opt.Version, PID: os.Getpid(), StartedAt: k.startedAt.UTC(),
		Living: k.living(), Listeners: listeners, GatewayStarts: k.gateway.count(),
	}
	if running != nil {
		i.GatewayPID = running.PID
	}
	return i
}

// listen makes the names the whole set that is listened on.
func (k *keeper) listen(ctx context.Context, names []string) error {
	k.listening.Lock()
	defer k.listening.Unlock()
	err := k.gateway.listen(ctx, names, true)
	held, _ := k.gateway.state()
	k.journal.append(record{Listeners: &held})
	return err
}

func (k *keeper) living() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, p := range k.processes {
		if p.exit == nil {
			n++
		}
	}
	return n
}

func (k *keeper) mayStop(force bool) error {
	if n := k.living(); n > 0 && !force {
		return kiln.Errorf(kiln.CodeConflict, "end them first", "the keeper holds %d instances", n)
	}
	return nil
}

// subscriber is a client that watches. It is told of what changed since it
// was told last, however slow it is: what waits is one entry an instance.
type subscriber struct {
	changed map[string]bool // guarded by keeper.mu
	wake    chan struct{}
}

// notify tells subscribers that an instance changed.
func (k *keeper) notify(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for s := range k.subscribers {
		s.changed[id] = true
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// subscribe begins with all that is known.
func (k *keeper) subscribe() *subscriber {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &subscriber{changed: map[string]bool{}, wake: make(chan struct{}, 1)}
	for id := range k.processes {
		s.changed[id] = true
	}
	s.wake <- struct{}{}
	k.subscribers[s] = true
	return s
}

// changes takes what waits for a subscriber.
func (k *keeper) changes(s *subscriber) []kiln.ProcessStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []kiln.ProcessStatus
	for id := range s.changed {
		if p := k.processes[id]; p != nil && (p.pid != 0 || p.exit != nil) {
			out = append(out, p.status())
		}
	}
	clear(s.changed)
	return out
}

// stream sends an instance's status whenever it changed, all at first.
func (k *keeper) stream(ctx context.Context, conn *net.UnixConn) {
	s := k.subscribe()
	defer func() {
		k.mu.Lock()
		delete(k.subscribers, s)
		k.mu.Unlock()
	}()
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		if !k.reply(conn, response{Processes: k.changes(s)}) {
			return
		}
	}
}
