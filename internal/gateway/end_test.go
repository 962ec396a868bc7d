package gateway

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestWhatIsSentWhileAGatewayEndsIsAnswered sends a request on an idle
// connection after the gateway was told to end, as a client does that cannot
// know: it is answered, and told that it was the last.
func TestWhatIsSentWhileAGatewayEndsIsAnswered(t *testing.T) {
	r, address := simple(t, http.HandlerFunc(hello), func(o *Options) { o.Limits.Lull = time.Minute })
	used, idle := dialIdle(t, address), dialIdle(t, address)
	ended := make(chan error, 1)
	go func() { ended <- r.stop() }()
	closed(t, address)
	if response := askOn(t, used); response.StatusCode != 200 || !response.Close {
		t.Errorf("answered with %d, close %v", response.StatusCode, response.Close)
	}
	_ = idle.Close() // with nobody left it ends before the lull is over
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// TestIdleConnectionsAreClosedAfterTheLull ends a gateway with a client that
// never says anything more.
func TestIdleConnectionsAreClosedAfterTheLull(t *testing.T) {
	r, address := simple(t, http.HandlerFunc(hello), func(o *Options) {
		o.Limits.Lull, o.Limits.Stop = time.Millisecond, time.Hour
	})
	idle := dialIdle(t, address)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(idle).ReadByte(); err == nil {
		t.Error("the connection is still open")
	}
}

// dialIdle returns a connection that has had one answer.
func dialIdle(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if response := askOn(t, c); response.Close {
		t.Fatal("the connection cannot be used again")
	}
	return c
}

// askOn sends one request.
func askOn(t *testing.T, c net.Conn) *http.Response {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	return response
}

// closed waits until nothing listens on an address any more.
func closed(t *testing.T, address string) {
	t.Helper()
	for {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return
		}
		_ = c.Close()
	}
}
