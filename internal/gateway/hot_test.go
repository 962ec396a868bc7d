package gateway

import (
	"net"
	"runtime"
	"testing"

	"github.com/kilnproject/kiln"
)

// TestSmallRequestsDoNotAllocate guards the hot path.
func TestSmallRequestsDoNotAllocate(t *testing.T) {
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")
	up := serveTCP(t, "127.0.0.1:0", func(c net.Conn) {
		b := make([]byte, 4096)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("web.test", kiln.ProtocolHTTP, portNumber(t, up), "127.0.0.1")
	r.set()
	c := dial(t, address)
	request, b := []byte("GET /small HTTP/1.1\r\nHost: web.test\r\nUser-Agent: test\r\n\r\n"), make([]byte, 4096)
	round := func() {
		if _, err := c.Write(request); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		round()
	}
	const rounds = 2000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		round()
	}
	runtime.ReadMemStats(&after)
	if per := float64(after.Mallocs-before.Mallocs) / rounds; per > 0.9 {
		t.Errorf("%.2f allocations a request, client and instance included", per)
	}
}
