package fence

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/kilnproject/kiln"
)

// Transport carries ADD of http addresses. BuildKit fetches those on the
// host's network, so each connection is checked when its address is known,
// after the name was resolved and for each redirect.
func Transport(allow []netip.Prefix) http.RoundTripper {
	d := &net.Dialer{
		Timeout: 30 * time.Second,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			if denied(to.Addr(), allow) {
				return kiln.Errorf(kiln.CodeRefused, "Put the file into the context.", "ADD may not reach the private address %s", to.Addr())
			}
			return nil
		},
	}
	return &http.Transport{
		DialContext:           d.DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConns:          16,
		ForceAttemptHTTP2:     true,
	}
}
