package http1

import "bytes"

// hostTable marks the bytes of a host name or IPv4 address.
var hostTable = makeTable("-._~") //nolint:gochecknoglobals // never written

// unreserved says what need not be percent-encoded (RFC 3986, section 2.3):
// the bytes of a host name.
func unreserved(c byte) bool { return hostTable[c] }

// HostName checks a Host field (RFC 9110, section 7.2) and returns the part
// that names the host, without port, brackets and final dot, as it is spelled.
func HostName(host []byte) ([]byte, error) {
	name, port, ok := splitHost(host)
	if !ok || len(name) == 0 || len(name) > 255 || !validPort(port) {
		return nil, bad("Host is malformed")
	}
	return name, nil
}

// splitHost parts the name from the port, which keeps its colon; ok says that
// the name has no byte that it may not have.
func splitHost(host []byte) (name, port []byte, ok bool) {
	if len(host) > 0 && host[0] == '[' {
		i := bytes.IndexByte(host, ']')
		if i < 2 {
			return nil, nil, false
		}
		name, port = host[1:i], host[i+1:]
		return name, port, isIPv6(name)
	}
	name = host
	if i := bytes.IndexByte(host, ':'); i >= 0 {
		name, port = host[:i], host[i:]
	}
	ok = all(name, &hostTable)
	if len(name) > 1 && name[len(name)-1] == '.' {
		name = name[:len(name)-1]
	}
	return name, port, ok
}

// isIPv6 looks at the bytes only.
func isIPv6(b []byte) bool {
	for _, c := range b {
		digit := c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
		if !digit && c != ':' && c != '.' {
			return false
		}
	}
	return true
}

// validPort accepts nothing, or a colon and at most five digits.
func validPort(port []byte) bool {
	if len(port) == 0 {
		return true
	}
	if port[0] != ':' || len(port) < 2 || len(port) > 6 {
		return false
	}
	for _, c := range port[1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// NormalPath returns a path in normal form: bytes that need no encoding are
// decoded, hexadecimal digits are upper case. It refuses what servers disagree
// about: dot segments, also encoded or behind an encoded slash, backslashes,
// encoded NULs and control characters. The result is a slice of path when
// nothing had to change, else of scratch, whose unused rest is returned.
func NormalPath(path, scratch []byte) (normal, rest []byte, err error) {
	if len(path) == 0 || path[0] != '/' {
		return nil, scratch, bad("the path does not begin with a slash")
	}
	changed, plain := false, true
	for i := 0; i < len(path); i++ {
		switch path[i] {
		case '%':
			v, ok := unhex(path, i)
			if !ok || v < 0x20 || v == 0x7f {
				return nil, scratch, bad("the path has a bad percent-encoding")
			}
			changed = changed || unreserved(v) || path[i+1] >= 'a' || path[i+2] >= 'a'
			plain = false
			i += 2
		case '\\':
			return nil, scratch, bad("the path has a backslash")
		case '.':
			plain = false
		}
	}
	if plain {
		return path, scratch, nil
	}
	if changed {
		start := len(scratch)
		scratch = appendNormal(scratch, path)
		path, scratch = scratch[start:], scratch[len(scratch):]
	}
	if hasDotSegment(path) {
		return nil, scratch, bad("the path has a dot segment")
	}
	return path, scratch, nil
}

func appendNormal(dst, path []byte) []byte {
	const digits = "0123456789ABCDEF"
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			dst = append(dst, path[i])
			continue
		}
		v, _ := unhex(path, i)
		if unreserved(v) {
			dst = append(dst, v)
		} else {
			dst = append(dst, '%', digits[v>>4], digits[v&15])
		}
		i += 2
	}
	return dst
}

// hasDotSegment looks for "." and ".." between slashes, backslashes and their
// encodings.
func hasDotSegment(path []byte) bool {
	dots, other := 0, false
	for i := 0; i <= len(path); i++ {
		end := i == len(path) || path[i] == '/'
		if !end && path[i] == '%' && (string(path[i:i+3]) == "%2F" || string(path[i:i+3]) == "%5C") {
			end = true
			i += 2
		}
		switch {
		case end:
			if !other && (dots == 1 || dots == 2) {
				return true
			}
			dots, other = 0, false
		case path[i] == '.':
			dots++
		default:
			other = true
		}
	}
	return false
}

// unhex reads the percent-encoding at path[i].
func unhex(path []byte, i int) (byte, bool) {
	if i+2 >= len(path) {
		return 0, false
	}
	hi, lo := hexValue(path[i+1]), hexValue(path[i+2])
	return hi<<4 | lo&15, hi < 16 && lo < 16
}

// hexValue returns 255 for what is no digit.
func hexValue(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// CheckTarget refuses bytes that a target must encode: spaces, control
// characters, what is not ASCII, and "#".
func CheckTarget(target []byte) error {
	for _, c := range target {
		if c <= 0x20 || c >= 0x7f || c == '#' {
			return bad("the target has a character that must be encoded")
		}
	}
	return nil
}
