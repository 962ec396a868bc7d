package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// askH2 sends one request of the given pseudo-fields and returns the status.
func askH2(t *testing.T, address string, fields ...string) string {
	t.Helper()
	c := dial(t, address)
	fmt.Fprint(c, preface)
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	_ = f.WriteSettings()
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return err.Error()
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			return frame.PseudoValue("status")
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return "refused"
		}
	}
}

func TestHTTP2CannotSmuggleARequestLine(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.RequestURI != "//a%2Fb?c=d" {
			t.Errorf("the instance got %s %s", r.Method, r.RequestURI)
		}
	}))
	base := func(method, path, authority string) []string {
		return []string{":method", method, ":path", path, ":authority", authority, ":scheme", "http"}
	}
	if got := askH2(t, address, base("GET", "//a%2fb?c=d", "web.test")...); got != "200" {
		t.Errorf("a good request: %s", got)
	}
	for name, fields := range map[string][]string{
		"method":        base("GET /x HTTP/1.1\t", "/", "web.test"),
		"path":          base("GET", "/x HTTP/1.1", "web.test"),
		"authority":     base("GET", "/", "web.test/x"),
		"dots":          base("GET", "/a/../b", "web.test"),
		"connect":       {":method", "CONNECT", ":authority", "web.test:80"},
		"encoding":      append(base("POST", "/", "web.test"), "transfer-encoding", "chunked"),
		"line in value": append(base("GET", "/", "web.test"), "x-a", "b\r\nX-B: c"),
		"a wrong end":   append(base("POST", "/", "web.test"), "content-length", "5"),
	} {
		if got := askH2(t, address, fields...); got != "refused" && !strings.HasPrefix(got, "4") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(hello))
	c := dial(t, address)
	var raw strings.Builder
	for i := range 20 {
		fmt.Fprintf(&raw, "POST /%d HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", i)
		fmt.Fprintf(&raw, "GET /%d HTTP/1.1\r\nHost: web.test\r\n\r\n", i)
	}
	go func() { _, _ = io.WriteString(c, raw.String()) }()
	b := bufio.NewReader(c)
	for i := range 20 {
		for _, want := range []string{fmt.Sprintf("POST /%d hi", i), fmt.Sprintf("GET /%d ", i)} {
			if got := bodyOf(t, read(t, c, b, want)); got != want {
				t.Fatalf("%q, want %q", got, want)
			}
		}
	}
}

// tool skips the test when a program is missing.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed: apt-get install %s", name, map[string]string{"h2load": "nghttp2-client"}[name])
	}
	return path
}

func TestH2loadSeesNoFailure(t *testing.T) {
	h2load := tool(t, "h2load")
	r, plain, _ := secure(t)
	r.table.Public[0].Route.Host = "127.0.0.1"
	r.set()
	for _, args := range [][]string{{"-p", "h2c", "http://" + plain + "/"}, {"--h1", "http://" + plain + "/"}} {
		out, err := exec.CommandContext(t.Context(), h2load, append([]string{"-n", "2000", "-c", "8", "-m", "10"}, args...)...).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("2000 succeeded, 0 failed, 0 errored, 0 timeout")) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

func TestCurlSpeaksEveryProtocol(t *testing.T) {
	curl := tool(t, "curl")
	r, plain, secure := secure(t)
	r.table.Public[0].Route.TLS.Mode = "local"
	r.set()
	_, port, _ := strings.Cut(secure, ":")
	root := r.dir + "/gateway/ca/root.pem"
	common := []string{"-sS", "--max-time", "10", "--resolve", "web.localhost:" + port + ":127.0.0.1", "--cacert", root, "-w", " %{http_version} %{http_code}"}
	for want, args := range map[string][]string{
		"POST /x hi 1.1 200": {"--http1.1", "-d", "hi", "https://web.localhost:" + port + "/x"},
		"POST /x hi 2 200":   {"--http2", "-d", "hi", "https://web.localhost:" + port + "/x"},
		"GET /x  1.1 200":    {"-L", "-H", "Host: web.localhost", "--http1.1", "--resolve", "web.localhost:" + strings.Split(plain, ":")[1] + ":127.0.0.1", "http://web.localhost:" + strings.Split(plain, ":")[1] + "/x"},
	} {
		out, err := exec.CommandContext(t.Context(), curl, append(append([]string{}, common...), args...)...).CombinedOutput()
		if err != nil || string(out) != want {
			t.Errorf("%v: %v %q, want %q", args, err, out, want)
		}
	}
}
