package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kilnproject/kiln"
)

// The connections over TCP that are open at once, all and of one address. One
// takes some 40 KiB.
const (
	remoteTotal = 512
	remoteEach  = 128
)

// Certificates gives the certificate of the moment. It is called for each
// handshake.
type Certificates interface {
	Certificate() (*tls.Certificate, error)
}

// Remote serves the API over TCP by TLS, on listeners that can change while it
// serves.
type Remote struct {
	handler http.Handler
	grace   time.Duration
	log     *slog.Logger
	crowd   *crowd
	certs   atomic.Pointer[Certificates]

	mu      sync.Mutex
	open    map[string]*entrance
	changed chan struct{}
}

// entrance is one listener.
type entrance struct {
	net.Listener
	started bool
	end     context.CancelFunc // nil before it serves
}

// NewRemote serves nothing until Run, and then what Move opened.
func NewRemote(handler http.Handler, grace time.Duration, log *slog.Logger) *Remote {
	return &Remote{
		handler: handler, grace: grace, log: log, crowd: newCrowd(remoteTotal, remoteEach),
		open: map[string]*entrance{}, changed: make(chan struct{}, 1),
	}
}

// Move is a change of listeners that can still be given up.
type Move struct {
	remote  *Remote
	opened  map[string]net.Listener
	gone    []string
	certs   Certificates
	reclose bool // some that go were closed for those that come
}

// Prepare opens the listeners that are wanted and not there. All of them are
// open when there is no error, and none that was not before when there is.
// Moves are made one after the other.
func (r *Remote) Prepare(ctx context.Context, addresses []string, certs Certificates) (*Move, error) {
	m := &Move{remote: r, opened: map[string]net.Listener{}, certs: certs}
	r.mu.Lock()
	defer r.mu.Unlock()
	for address := range r.open {
		if !slices.Contains(addresses, address) {
			m.gone = append(m.gone, address)
		}
	}
	for _, address := range addresses {
		if r.open[address] != nil || m.opened[address] != nil {
			continue
		}
		l, err := m.listen(ctx, address)
		if err != nil {
			m.dropLocked(ctx)
			return nil, err
		}
		m.opened[address] = l
	}
	return m, nil
}

// listen opens one. What is in its way may be a listener that goes, on another
// address of the same port; r.mu is held.
func (m *Move) listen(ctx context.Context, address string) (net.Listener, error) {
	l, err := listenTCP(ctx, address)
	if !errors.Is(err, syscall.EADDRINUSE) || len(m.gone) == 0 || m.reclose {
		return l, err
	}
	m.reclose = true
	for _, gone := range m.gone {
		_ = m.remote.open[gone].Close()
	}
	return listenTCP(ctx, address)
}

func listenTCP(ctx context.Context, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		_, port, _ := net.SplitHostPort(address)
		return nil, kiln.Errorf(kiln.CodeConflict, "see `ss -lntp 'sport = :"+port+"'`; stop what holds it, or choose another port",
			"the API cannot listen on %s: %w", address, err)
	default:
		return nil, kiln.Errorf(kiln.CodeFailed, "api.listen names addresses of this machine", "the API cannot listen on %s: %w", address, err)
	}
}

// Take makes the change: those that came serve, those that went take no more
// connections and end once their requests are answered.
func (m *Move) Take() {
	r := m.remote
	r.certs.Store(&m.certs)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, address := range m.gone {
		e := r.open[address]
		delete(r.open, address)
		if e.end != nil {
			e.end()
		}
		_ = e.Close()
	}
	for address, l := range m.opened {
		r.open[address] = &entrance{Listener: l}
	}
	r.poke()
}

// Drop gives the change up.
func (m *Move) Drop(ctx context.Context) {
	m.remote.mu.Lock()
	defer m.remote.mu.Unlock()
	m.dropLocked(ctx)
}

func (m *Move) dropLocked(ctx context.Context) {
	for _, l := range m.opened {
		_ = l.Close()
	}
	if !m.reclose {
		return
	}
	r := m.remote
	for _, address := range m.gone {
		if r.open[address].end != nil {
			r.open[address].end()
		}
		delete(r.open, address)
		l, err := listenTCP(ctx, address)
		if err != nil {
			r.log.ErrorContext(ctx, "the API's listener could not be opened again", "address", address, "error", err)
			continue
		}
		r.open[address] = &entrance{Listener: l}
	}
	r.poke()
}

func (r *Remote) poke() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Addresses are those that are listened on, sorted.
func (r *Remote) Addresses() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.open))
}

// Run serves until ctx ends, and returns once everything has ended.
func (r *Remote) Run(ctx context.Context) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		r.mu.Lock()
		for address, e := range r.open {
			if !e.started {
				e.started = true
				within, end := context.WithCancel(ctx)
				e.end = end
				serving.Go(func() { r.serve(within, address, e) })
			}
		}
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		}
	}
}

// serve answers on one listener until ctx ends.
func (r *Remote) serve(ctx context.Context, address string, e *entrance) {
	defer e.end()
	r.log.InfoContext(ctx, "the API is served", "address", address)
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return (*r.certs.Load()).Certificate() },
	}
	listener := tls.NewListener(door{e.Listener, r.crowd}, config)
	err := serveDoor(ctx, listener, r.handler, r.grace, r.log)
	if err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
		r.log.ErrorContext(ctx, "the API is not served any more", "address", address, "error", err)
	}
}
