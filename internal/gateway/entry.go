package gateway

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// entry is one line of the access log in the making. Its slices belong to the
// request's buffers.
type entry struct {
	start                     int64 // gateway time
	client                    netip.Addr
	method, path, query, host []byte
	agent, referer            []byte
	minor                     byte
	h2, tcp                   bool
	tls                       bool
	id                        []byte // the request's
	environment, route        string
	instance                  *instance
	status                    int
	in, out                   int64 // bytes of bodies
	tries                     int
	note                      string // why it failed
}

func (e *entry) begin(now int64, client netip.Addr) {
	*e = entry{start: now, client: client, id: e.id[:0], tls: e.tls}
}

// wellFormedID accepts what is safe in a log and a header.
func wellFormedID(id []byte) bool {
	if len(id) < 8 || len(id) > 128 {
		return false
	}
	for _, c := range id {
		ok := c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c == '-' || c == '_' || c == '.' || c == ':'
		if !ok {
			return false
		}
	}
	return true
}

// appendID appends a new request ID: 32 hex digits. It is unique, not secret.
func appendID(dst []byte) []byte {
	const digits = "0123456789abcdef"
	for range 2 {
		v := rand.Uint64() //nolint:gosec // see above
		for range 16 {
			dst = append(dst, digits[v&15])
			v >>= 4
		}
	}
	return dst
}

// appendJSON appends the entry as a line of JSON.
func (e *entry) appendJSON(dst, at []byte, took time.Duration) []byte {
	dst = append(dst, `{"at":"`...)
	dst = append(dst, at...)
	dst = append(dst, `","client":"`...)
	dst = e.client.AppendTo(dst)
	dst = append(dst, `","id":"`...)
	dst = append(dst, e.id...)
	dst = append(dst, '"')
	dst = appendMember(dst, "method", e.method)
	dst = appendMember(dst, "host", e.host)
	dst = append(dst, `,"path":"`...)
	dst = appendEscaped(dst, e.path)
	dst = appendEscaped(dst, e.query)
	dst = append(dst, `","protocol":"`...)
	dst = append(dst, e.protocol()...)
	dst = append(dst, `","status":`...)
	dst = strconv.AppendInt(dst, int64(e.status), 10)
	dst = append(dst, `,"in":`...)
	dst = strconv.AppendInt(dst, e.in, 10)
	dst = append(dst, `,"out":`...)
	dst = strconv.AppendInt(dst, e.out, 10)
	dst = append(dst, `,"us":`...)
	dst = strconv.AppendInt(dst, took.Microseconds(), 10)
	dst = appendText(dst, "environment", e.environment)
	dst = appendText(dst, "route", e.route)
	if e.instance != nil {
		dst = appendText(dst, "instance", e.instance.id)
	}
	if e.tries > 1 {
		dst = append(dst, `,"tries":`...)
		dst = strconv.AppendInt(dst, int64(e.tries), 10)
	}
	if len(e.agent) > 0 {
		dst = appendMember(dst, "agent", e.agent)
	}
	if len(e.referer) > 0 {
		dst = appendMember(dst, "referer", e.referer)
	}
	if e.note != "" {
		dst = appendMember(dst, "note", []byte(e.note))
	}
	return append(dst, '}', '\n')
}

func (e *entry) protocol() string {
	switch {
	case e.method == nil: // it could not be understood
		return ""
	case e.tcp:
		return "TCP"
	case e.h2:
		return "HTTP/2"
	case e.minor == 0:
		return "HTTP/1.0"
	}
	return "HTTP/1.1"
}

func appendMember(dst []byte, name string, value []byte) []byte {
	dst = append(dst, ',', '"')
	dst = append(dst, name...)
	dst = append(dst, '"', ':', '"')
	dst = appendEscaped(dst, value)
	return append(dst, '"')
}

// appendText is for names of ours, which are ASCII.
func appendText(dst []byte, name, value string) []byte {
	if value == "" {
		return dst
	}
	dst = append(dst, ',', '"')
	dst = append(dst, name...)
	dst = append(dst, '"', ':', '"')
	for i := range len(value) {
		dst = appendByte(dst, value[i])
	}
	return append(dst, '"')
}

// maxLogged bounds one value of a log line, in bytes.
const maxLogged = 2048

// appendEscaped appends a JSON string's inside; invalid UTF-8 is escaped byte
// by byte.
func appendEscaped(dst, value []byte) []byte {
	value = value[:min(len(value), maxLogged)]
	for i := 0; i < len(value); {
		if value[i] < utf8.RuneSelf {
			dst = appendByte(dst, value[i])
			i++
			continue
		}
		r, n := utf8.DecodeRune(value[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			dst = append(dst, `\ufffd`...)
		case unicode.IsPrint(r):
			dst = append(dst, value[i:i+n]...)
		default: // a terminal might obey it
			dst = utf16Escape(dst, r)
		}
		i += n
	}
	return dst
}

// utf16Escape appends a character as JSON escapes it.
func utf16Escape(dst []byte, r rune) []byte {
	if r > 0xffff {
		a, b := utf16.EncodeRune(r)
		return fmt.Appendf(dst, `\u%04x\u%04x`, a, b)
	}
	return fmt.Appendf(dst, `\u%04x`, r)
}

func appendByte(dst []byte, c byte) []byte {
	const digits = "0123456789abcdef"
	switch {
	case c == '"' || c == '\\':
		return append(dst, '\\', c)
	case c < 0x20 || c == 0x7f:
		return append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
	}
	return append(dst, c)
}
