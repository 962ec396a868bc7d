package http1

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// parse reads one request from the front of b, as a server does.
func parse(b []byte) (*Request, int, error) {
	end, _, err := HeadEnd(b, 0)
	if err != nil {
		return nil, 0, err
	}
	if end == 0 {
		return nil, 0, io.ErrUnexpectedEOF
	}
	r := &Request{}
	return r, end, r.Parse(b[:end], DefaultLimits())
}

func TestRefusedRequests(t *testing.T) {
	for name, raw := range map[string]string{
		"length and encoding":      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"two lengths":              "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
		"two equal lengths":        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
		"list of lengths":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
		"signed length":            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
		"hexadecimal length":       "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n",
		"empty length":             "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
		"huge length":              "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"chunked twice":            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
		"chunked in two fields":    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
		"gzip, chunked":            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
		"identity":                 "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
		"quoted chunked":           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n",
		"chunked with VT":          "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
		"chunked in 1.0":           "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
		"bare CR":                  "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
		"bare LF":                  "GET / HTTP/1.1\nHost: a\n\n",
		"one bare LF":              "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
		"folded":                   "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
		"space before colon":       "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
		"no colon":                 "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
		"empty name":               "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
		"NUL in value":             "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
		"NUL in name":              "GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n",
		"no host":                  "GET / HTTP/1.1\r\nX: a\r\n\r\n",
		"two hosts":                "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
		"empty host":               "GET / HTTP/1.1\r\nHost:\r\n\r\n",
		"host with path":           "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
		"host with user":           "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
		"host with space":          "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
		"host with bad port":       "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
		"empty line first":         "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"no version":               "GET /\r\nHost: a\r\n\r\n",
		"two spaces":               "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
		"tab for space":            "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"space in target":          "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
		"trailing space":           "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
		"bad method":               "G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
		"HTTP/2.0":                 "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
		"lower-case version":       "GET / http/1.1\r\nHost: a\r\n\r\n",
		"CONNECT":                  "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
		"other authority":          "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"relative target":          "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
		"fragment":                 "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
		"dot segment":              "GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n",
		"encoded dot segment":      "GET /a/%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n",
		"dots and encoded slash":   "GET /a/..%2fb HTTP/1.1\r\nHost: a\r\n\r\n",
		"backslash":                "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n",
		"encoded NUL":              "GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n",
		"bad encoding":             "GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n",
		"unknown expectation":      "POST / HTTP/1.1\r\nHost: a\r\nExpect: more\r\nContent-Length: 1\r\n\r\n",
		"obs-text in target":       "GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
		"a long Connection":        "GET / HTTP/1.1\r\nHost: a\r\nConnection: " + strings.Repeat("a,", 32) + "\r\nConnection: b\r\n\r\n",
		"asterisk without OPTIONS": "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		r, _, err := parse([]byte(raw))
		var e *Error
		if !errors.As(err, &e) || e.Status < 400 {
			t.Errorf("%s: %v, %+v; want an Error", name, err, r)
		}
	}
}

func TestAcceptedRequests(t *testing.T) {
	for raw, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: A.Example.:80\r\n\r\n":                                              "GET a.example / 0",
		"GET /%41%2f%c3%a9?x=%zz HTTP/1.1\r\nHost: a\r\n\r\n":                                        "GET a /A%2F%C3%A9?x=%zz 0",
		"GET http://a?x HTTP/1.1\r\nHost: a\r\n\r\n":                                                 "GET a /?x 0",
		"GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n":                                                 "GET a /b 0",
		"OPTIONS * HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n":                                             "OPTIONS ::1 * 0",
		"PUT /a/...//.b HTTP/1.1\r\nHost:\ta \r\nContent-Length: 12\r\n\r\n":                         "PUT a /a/...//.b 12",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n":      "POST a / -1 close",
		"GET / HTTP/1.0\r\nHost: a\r\n\r\n":                                                          "GET a / 0 close",
		"GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n":                                "GET a / 0",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n": "GET a / 0 upgrade",
	} {
		r, _, err := parse([]byte(raw))
		if err != nil {
			t.Errorf("%q: %v", raw, err)
			continue
		}
		got := []string{string(r.Method), string(r.Name), string(r.Path) + string(r.Query), lengthText(r.Length)}
		if r.Close {
			got = append(got, "close")
		}
		if r.Upgrade != nil {
			got = append(got, "upgrade")
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%q: %s, want %s", raw, s, want)
		}
	}
}

func lengthText(n int64) string {
	if n == Chunked {
		return "-1"
	}
	s := string(AppendLength(nil, n))
	return strings.TrimSpace(strings.TrimPrefix(s, "Content-Length: "))
}

func TestFieldsNamedByConnectionAreDropped(t *testing.T) {
	r, _, err := parse([]byte("GET / HTTP/1.1\r\nHost: a\r\nX-Secret: 1\r\nX-Kept: 2\r\nConnection: x-secret, close\r\nX_Forwarded_For: 1\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Kind{"Host": Host, "X-Secret": Hop, "X-Kept": Other, "Connection": Connection, "X_Forwarded_For": Forwarded}
	for _, f := range r.Fields {
		if want[string(f.Name)] != f.Kind {
			t.Errorf("%s is of kind %d, want %d", f.Name, f.Kind, want[string(f.Name)])
		}
	}
}

func TestRefusedResponses(t *testing.T) {
	for name, raw := range map[string]string{
		"no version":           "200 OK\r\n\r\n",
		"two digits":           "HTTP/1.1 20 OK\r\n\r\n",
		"status 600":           "HTTP/1.1 600 No\r\n\r\n",
		"control in reason":    "HTTP/1.1 200 O\x01K\r\n\r\n",
		"length and encoding":  "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"204 with a length":    "HTTP/1.1 204 OK\r\nContent-Length: 1\r\n\r\n",
		"101 chunked":          "HTTP/1.1 101 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"gzip":                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
		"line without a colon": "HTTP/1.1 200 OK\r\nhello\r\n\r\n",
	} {
		end, _, err := HeadEnd([]byte(raw), 0)
		if err != nil || end == 0 {
			t.Fatalf("%s: %v", name, err)
		}
		var r Response
		if err := r.Parse([]byte(raw)[:end], DefaultLimits(), false); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestParsingDoesNotAllocate(t *testing.T) {
	head := []byte("GET /path/to?q=1 HTTP/1.1\r\nHost: example.com\r\nUser-Agent: test/1\r\nAccept: */*\r\nX-Request-Id: abcdefgh\r\nConnection: keep-alive\r\n\r\n")
	var r Request
	limits := DefaultLimits()
	if n := testing.AllocsPerRun(100, func() {
		if err := r.Parse(head, limits); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a request, want none", n)
	}
}

// decode takes a chunked body apart, given byte by byte or at once.
func decode(raw []byte, step int) (body []byte, trailer string, rest int, err error) {
	var d Decoder
	d.Reset(Chunked)
	r, w := 0, 0
	for !d.Done() {
		data, used, err := d.Next(raw[r:w])
		if err != nil {
			return body, "", 0, err
		}
		body = append(body, data...)
		for _, f := range d.Trailer {
			trailer += string(f.Name) + "=" + string(f.Value) + ";"
		}
		r += used
		if len(data) == 0 && !d.Done() {
			if w == len(raw) {
				return body, "", 0, io.ErrUnexpectedEOF
			}
			w = min(w+step, len(raw))
		}
	}
	return body, trailer, len(raw) - r, nil
}

func TestChunkedBodies(t *testing.T) {
	for raw, want := range map[string]string{
		"0\r\n\r\n":                              "",
		"5\r\nhello\r\n0\r\n\r\n":                "hello",
		"5;a=b\r\nhello\r\n0\r\n\r\n":            "hello",
		"00A\r\n0123456789\r\n0\r\nX: y\r\n\r\n": "0123456789",
	} {
		for _, step := range []int{1, 3, 1000} {
			got, _, rest, err := decode([]byte(raw), step)
			if err != nil || string(got) != want || rest != 0 {
				t.Errorf("%q by %d: %q, %d left, %v", raw, step, got, rest, err)
			}
		}
	}
	for _, raw := range []string{
		"5\nhello\r\n0\r\n\r\n", "g\r\n", "-1\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "5 \r\nhello\r\n0\r\n\r\n", " 5\r\nhello\r\n0\r\n\r\n",
		"5\r\nhelloX\r\n0\r\n\r\n", "5\r\nhello\n0\r\n\r\n", "1000000000000000\r\n", "\r\n", "5;\x00\r\nhello\r\n", "5;a\rb\r\nhello\r\n0\r\n\r\n",
		"0\r\nX : y\r\n\r\n", "0\r\n\n", "0\r\nX: y\n\r\n", "5;" + strings.Repeat("a", 1000) + "\r\nhello\r\n0\r\n\r\n",
		"0\r\nX: " + strings.Repeat("a", 10000) + "\r\n\r\n",
	} {
		if _, _, _, err := decode([]byte(raw), 1000); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%.40q: %v, want it refused", raw, err)
		}
	}
	if _, trailer, _, err := decode([]byte("0\r\nGrpc-Status: 0\r\nContent-Length: 5\r\nHost: b\r\n\r\n"), 1000); err != nil || trailer != "Grpc-Status=0;" {
		t.Errorf("trailers %q, %v", trailer, err)
	}
}

// FuzzRequest demands that whatever is accepted here is understood alike by
// net/http's reader: the same method, host, target, body length and end.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /x?y HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\n\r\nhelloGET",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\nGET",
		"GET http://a/b HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\nX: y\r\n\r\n",
		"OPTIONS * HTTP/1.0\r\nHost: a\r\n\r\n", "GET //a/..%2f HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		ours, end, err := parse(raw)
		if err != nil {
			return
		}
		b := bufio.NewReader(bytes.NewReader(raw))
		theirs, err := http.ReadRequest(b)
		if err != nil {
			t.Fatalf("net/http refuses what is accepted: %v", err)
		}
		if theirs.Method != string(ours.Method) || theirs.ContentLength != ours.Length {
			t.Fatalf("%s %d, net/http: %s %d", ours.Method, ours.Length, theirs.Method, theirs.ContentLength)
		}
		if !strings.EqualFold(theirs.Host, string(ours.Host)) {
			t.Fatalf("host %q, net/http: %q", ours.Host, theirs.Host)
		}
		if p, err := url.PathUnescape(string(ours.Path)); string(ours.Path) != "*" && (err != nil || p != cmp.Or(theirs.URL.Path, "/")) {
			t.Fatalf("path %q, net/http: %q", ours.Path, theirs.URL.Path)
		}
		if chunked := len(theirs.TransferEncoding) > 0; chunked != (ours.Length == Chunked) {
			t.Fatalf("chunked: %v, net/http: %v", ours.Length == Chunked, chunked)
		}
		compareBodies(t, ours.Length, raw[end:], theirs, b)
	})
}

// compareBodies checks that both end the body at the same byte.
func compareBodies(t *testing.T, length int64, raw []byte, theirs *http.Request, b *bufio.Reader) {
	body, err := io.ReadAll(theirs.Body)
	if length != Chunked {
		if int64(len(raw)) >= length && (err != nil || int64(len(body)) != length) {
			t.Fatalf("a body of %d, net/http: %d, %v", length, len(body), err)
		}
		return
	}
	ours, _, rest, derr := decode(raw, 7)
	if derr != nil {
		return
	}
	left, _ := io.ReadAll(b)
	if err != nil || !bytes.Equal(ours, body) || rest != len(left) {
		t.Fatalf("a body of %d with %d left, net/http: %d with %d left, %v", len(ours), rest, len(body), len(left), err)
	}
}

// FuzzResponse demands the same of answers.
func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), false)
	f.Add([]byte("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), false)
	f.Add([]byte("HTTP/1.0 304 Not Modified\r\nContent-Length: 2\r\n\r\n"), true)
	f.Fuzz(func(t *testing.T, raw []byte, head bool) {
		end, _, err := HeadEnd(raw, 0)
		if err != nil || end == 0 {
			return
		}
		var ours Response
		if ours.Parse(raw[:end], DefaultLimits(), head) != nil {
			return
		}
		method := http.MethodGet
		if head {
			method = http.MethodHead
		}
		theirs, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("net/http refuses what is accepted: %v", err)
		}
		defer func() { _ = theirs.Body.Close() }()
		if theirs.StatusCode != ours.Status {
			t.Fatalf("status %d, net/http: %d", ours.Status, theirs.StatusCode)
		}
		if ours.Length > 0 && theirs.ContentLength != ours.Length {
			t.Fatalf("a body of %d, net/http: %d", ours.Length, theirs.ContentLength)
		}
		if chunked := len(theirs.TransferEncoding) > 0; ours.Length == Chunked != chunked && ours.Length != 0 {
			t.Fatalf("chunked: %v, net/http: %v", ours.Length == Chunked, chunked)
		}
	})
}

// FuzzDecoder demands that a body is taken apart alike however it arrives, and
// that what is appended is what is decoded.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\n\r\n"), 3)
	f.Add([]byte("5;x\r\nhello\r\n0\r\nA: b\r\n\r\nGET"), 1)
	f.Fuzz(func(t *testing.T, raw []byte, step int) {
		step = max(1, step&1023)
		a, at, arest, aerr := decode(raw, len(raw)+1)
		b, bt, brest, berr := decode(raw, step)
		if (aerr == nil) != (berr == nil) || aerr == nil && (!bytes.Equal(a, b) || at != bt || arest != brest) {
			t.Fatalf("at once: %q %q %d %v; by %d: %q %q %d %v", a, at, arest, aerr, step, b, bt, brest, berr)
		}
		if aerr != nil || len(a) == 0 {
			return
		}
		again, _, rest, err := decode(AppendLastChunk(AppendChunk(nil, a), nil), step)
		if err != nil || rest != 0 || !bytes.Equal(again, a) {
			t.Fatalf("written and read again: %q, %v", again, err)
		}
	})
}

// FuzzNormalPath demands that the normal form is one: normalising it changes
// nothing, and it has no dot segments.
func FuzzNormalPath(f *testing.F) {
	f.Add("/a/%2e%2f/b")
	f.Add("/..%5c")
	f.Fuzz(func(t *testing.T, s string) {
		p, _, err := NormalPath([]byte(s), nil)
		if err != nil {
			return
		}
		again, _, err := NormalPath(p, nil)
		if err != nil || !bytes.Equal(p, again) {
			t.Fatalf("%q became %q, then %q, %v", s, p, again, err)
		}
		for segment := range strings.SplitSeq(strings.NewReplacer("%2F", "/", "%5C", "/").Replace(string(p)), "/") {
			if segment == "." || segment == ".." {
				t.Fatalf("%q kept a dot segment: %q", s, p)
			}
		}
	})
}
