package http1

import "bytes"

// Field is a header or trailer field; Name and Value are slices of the buffer
// that was parsed.
type Field struct {
	Name, Value []byte
	Kind        Kind
}

// Kind says what a proxy has to know of a field.
type Kind uint8

// The kinds of a field. Other is forwarded as it is.
const (
	Other Kind = iota
	Host
	ContentLength
	TransferEncoding
	Connection
	Upgrade
	Expect
	Hop       // hop by hop, or named by Connection: never forwarded
	Forwarded // what a client claims of proxies before it
	RequestID
	Date
	Trailer
	UserAgent
	Referer
)

// tokenTable marks the bytes of a token (RFC 9110, section 5.6.2).
var tokenTable = makeTable("!#$%&'*+-.^_`|~") //nolint:gochecknoglobals // never written

// valueTable marks the bytes of a field value: visible, obs-text, space, tab.
var valueTable = makeValueTable() //nolint:gochecknoglobals // never written

// makeTable marks letters, digits and extra.
func makeTable(extra string) (t [256]bool) {
	for c := range 128 {
		t[c] = c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
	}
	for _, c := range []byte(extra) {
		t[c] = true
	}
	return t
}

func makeValueTable() (t [256]bool) {
	for c := range t {
		t[c] = c >= 0x20 && c != 0x7f || c == '\t'
	}
	return t
}

// IsToken reports whether b is a token of at least one byte.
func IsToken(b []byte) bool {
	return len(b) > 0 && all(b, &tokenTable)
}

// all reports whether each byte of b is marked.
func all(b []byte, table *[256]bool) bool {
	for _, c := range b {
		if !table[c] {
			return false
		}
	}
	return true
}

// EqualFold compares ASCII without regard to case; lower must be lower case.
func EqualFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// equalLoose is EqualFold with '_' taken for '-': some upstreams do not tell
// them apart (CGI's variables), so neither may a claim that is stripped. It
// compares the beginning of b, which must be as long as lower or longer.
func equalLoose(b []byte, lower string) bool {
	for i, c := range b[:len(lower)] {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		} else if c == '_' {
			c = '-'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// KindOf classifies a field by its name.
func KindOf(name []byte) Kind {
	switch len(name) {
	case 2:
		return pick(name, "te", Hop)
	case 4:
		return pick(name, "host", Host) + pick(name, "date", Date)
	case 5:
		return pick(name, "proxy", Hop)
	case 6:
		return pick(name, "expect", Expect)
	case 7:
		return pick(name, "upgrade", Upgrade) + pick(name, "trailer", Trailer) + pick(name, "referer", Referer)
	case 9:
		if equalLoose(name, "x-real-ip") {
			return Forwarded
		}
		return pick(name, "forwarded", Forwarded)
	case 10:
		return pick(name, "connection", Connection) + pick(name, "keep-alive", Hop) + pick(name, "user-agent", UserAgent)
	case 14:
		return pick(name, "content-length", ContentLength) + pick(name, "http2-settings", Hop) + prefixed(name)
	case 12:
		if equalLoose(name, "x-request-id") {
			return RequestID
		}
	case 17:
		return pick(name, "transfer-encoding", TransferEncoding) + prefixed(name)
	case 16:
		return pick(name, "proxy-connection", Hop) + prefixed(name)
	case 18:
		return pick(name, "proxy-authenticate", Hop) + prefixed(name)
	case 19:
		return pick(name, "proxy-authorization", Hop) + prefixed(name)
	}
	return prefixed(name)
}

func pick(name []byte, want string, k Kind) Kind {
	if EqualFold(name, want) {
		return k
	}
	return Other
}

// prefixed finds the X-Forwarded family.
func prefixed(name []byte) Kind {
	const family = "x-forwarded-"
	if len(name) > len(family) && (name[0]|0x20) == 'x' && equalLoose(name, family) {
		return Forwarded
	}
	return Other
}

// HeadEnd looks for the end of a head in b, from where an earlier call left
// off. It returns the head's length, or 0 and where to go on when more is
// needed. A line feed without a carriage return is an error.
func HeadEnd(b []byte, from int) (end, next int, err error) {
	for {
		i := bytes.IndexByte(b[from:], '\n')
		if i < 0 {
			return 0, len(b), nil
		}
		i += from
		if i == 0 || b[i-1] != '\r' {
			return 0, 0, bad("a line ends without a carriage return")
		}
		if i == 1 {
			return 0, 0, bad("the message begins with an empty line")
		}
		if i >= 3 && b[i-2] == '\n' {
			return i + 1, i + 1, nil
		}
		from = i + 1
	}
}

// line cuts the first line off b, which has only whole lines.
func line(b []byte) (one, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	return b[:i-1], b[i+1:]
}

// parseFields parses the lines of b, which ends with an empty one, onto
// fields.
func parseFields(b []byte, fields []Field, limit int) ([]Field, error) {
	for {
		var one []byte
		one, b = line(b)
		if len(one) == 0 {
			return fields, nil
		}
		if len(fields) == limit {
			return fields, &Error{Status: 431, Reason: "too many header fields"}
		}
		f, err := parseField(one)
		if err != nil {
			return fields, err
		}
		fields = append(fields, f)
	}
}

func parseField(one []byte) (Field, error) {
	i := 0
	for i < len(one) && tokenTable[one[i]] {
		i++
	}
	if i == 0 || i == len(one) || one[i] != ':' {
		if one[0] == ' ' || one[0] == '\t' {
			return Field{}, bad("a header field is folded over two lines")
		}
		return Field{}, bad("a header field's name is not a token followed by a colon")
	}
	value := trim(one[i+1:])
	if !all(value, &valueTable) {
		return Field{}, bad("a header field's value has a control character")
	}
	return Field{Name: one[:i], Value: value, Kind: KindOf(one[:i])}, nil
}

// trim removes optional white space (RFC 9110, section 5.6.3) from both ends.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// elements calls f for each element of a comma-separated list that is not
// empty.
func elements(list []byte, f func([]byte)) {
	for len(list) > 0 {
		one, rest, _ := bytes.Cut(list, []byte{','})
		if one = trim(one); len(one) > 0 {
			f(one)
		}
		list = rest
	}
}
