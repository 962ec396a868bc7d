// Package probe asks an instance whether it can take traffic: one check, or
// checks for ever with a back-off that begins at a millisecond. It decides
// nothing: it reports what it saw and leaves the consequences to its caller.
package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/kilnproject/kiln"
)

// What a probe that does not say gets.
const (
	DefaultInterval = 2 * time.Second
	DefaultTimeout  = time.Second
	DefaultFailures = 3
)

// maxHeader and maxBody bound what is read of an answer, in bytes. An
// instance is a stranger: it may answer without end.
const (
	maxHeader = 64 << 10
	maxBody   = 1 << 20
)

// Prober makes the checks. The zero value is ready for use, by any number of
// callers at once.
type Prober struct{}

// Check makes one check and returns nil when the instance is ready. The error
// is one clause for people: "GET /healthz: status 503". A probe that says
// neither HTTP nor TCP is a TCP check. It takes at most the probe's Timeout.
func Check(ctx context.Context, address netip.AddrPort, p kiln.Probe) error {
	return Prober{}.Check(ctx, address, p, kiln.ProtocolHTTP)
}

// Check is the function Check for a port that speaks protocol.
func (q Prober) Check(ctx context.Context, address netip.AddrPort, p kiln.Probe, protocol kiln.Protocol) error {
	ctx, cancel := context.WithTimeout(ctx, orDefault(p.Timeout, DefaultTimeout))
	defer cancel()
	if p.HTTP == "" {
		conn, err := dial(ctx, address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	status, _, err := get(ctx, address, p.HTTP, protocol, 0)
	if err != nil {
		return err
	}
	if status < 200 || status > 399 {
		return fmt.Errorf("GET %s: status %d", p.HTTP, status)
	}
	return nil
}

// Get makes one HTTP request and returns the status and at most 1 MiB of the
// body.
func (q Prober) Get(ctx context.Context, address netip.AddrPort, path string, protocol kiln.Protocol) (int, []byte, error) {
	return get(ctx, address, path, protocol, maxBody)
}

func get(ctx context.Context, address netip.AddrPort, path string, protocol kiln.Protocol, body int64) (int, []byte, error) {
	var (
		status int
		data   []byte
		err    error
	)
	if protocol == kiln.ProtocolH2C {
		status, data, err = getH2C(ctx, address, path, body)
	} else {
		status, data, err = getHTTP1(ctx, address, path, body)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("GET %s: %w", path, plain(ctx, err))
	}
	return status, data, nil
}

// getHTTP1 speaks HTTP/1.1 on a connection of its own, without the goroutines
// of net/http's transport: thousands of instances are probed at once.
func getHTTP1(ctx context.Context, address netip.AddrPort, path string, body int64) (int, []byte, error) {
	conn, err := dial(ctx, address)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return 0, nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req, err := request(ctx, address, path)
	if err != nil {
		return 0, nil, err
	}
	req.Close = true
	if err := req.Write(conn); err != nil {
		return 0, nil, err
	}
	limited := &io.LimitedReader{R: conn, N: maxHeader + body}
	resp, err := http.ReadResponse(bufio.NewReaderSize(limited, 1024), req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if body == 0 {
		return resp.StatusCode, nil, nil
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, body))
	return resp.StatusCode, data, err
}

func getH2C(ctx context.Context, address netip.AddrPort, path string, body int64) (int, []byte, error) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader}
	defer transport.CloseIdleConnections()
	req, err := request(ctx, address, path)
	if err != nil {
		return 0, nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, body))
	return resp.StatusCode, data, err
}

func request(ctx context.Context, address netip.AddrPort, path string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address.String()+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "kiln-probe")
	return req, nil
}

func dial(ctx context.Context, address netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	d.KeepAlive = -1
	conn, err := d.DialContext(ctx, "tcp", address.String())
	if err != nil {
		return nil, plain(ctx, err)
	}
	return conn, nil
}

// plain makes of a network error one clause without addresses and ports of
// ours, which differ each time and say nothing.
func plain(ctx context.Context, err error) error {
	var op *net.OpError
	// The connection may see the deadline a moment before the context does.
	late := errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(ctx.Err(), context.Canceled)
	switch {
	case late, errors.Is(err, context.DeadlineExceeded), errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("connection closed without an answer: %w", io.ErrUnexpectedEOF)
	case errors.As(err, &op):
		return fmt.Errorf("port %s: %w", port(op), op.Err)
	}
	return err
}

func port(op *net.OpError) string {
	if a, ok := op.Addr.(*net.TCPAddr); ok {
		return strconv.Itoa(a.Port)
	}
	return "?"
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}
