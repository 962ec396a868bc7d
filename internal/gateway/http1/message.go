package http1

import "bytes"

// Chunked and UntilClose are lengths of a body that no number tells.
const (
	Chunked    int64 = -1
	UntilClose int64 = -2
)

// maxNamed bounds the fields that Connection names: each is compared with all.
const maxNamed = 32

// framing is what requests and responses share.
type framing struct {
	Minor  byte // of the version: 0 or 1
	Fields []Field
	// Length is the body's: a number, Chunked, or for a response UntilClose.
	Length int64
	// HasLength says that Content-Length was there.
	HasLength bool
	// Close says that the connection ends with this message.
	Close bool
	// Upgrade is the protocol offered or taken, nil for none.
	Upgrade []byte

	keepAlive, upgrading bool
}

func (f *framing) reset() {
	fields := f.Fields[:0]
	*f = framing{Fields: fields}
}

// frame looks at the fields that say where the body ends and what becomes of
// the connection.
func (f *framing) frame() error {
	chunked, named := false, 0
	for i := range f.Fields {
		field := &f.Fields[i]
		switch field.Kind {
		case ContentLength:
			if err := f.contentLength(field.Value); err != nil {
				return err
			}
		case TransferEncoding:
			if chunked || !EqualFold(field.Value, "chunked") {
				return bad("Transfer-Encoding is not exactly chunked")
			}
			chunked = true
		case Connection:
			if named += f.connection(field.Value); named > maxNamed {
				return bad("Connection names too many fields")
			}
		case Upgrade:
			if f.Upgrade == nil && IsToken(field.Value) {
				f.Upgrade = field.Value
			} else {
				f.Upgrade = []byte{}
			}
		default:
		}
	}
	if named > 0 {
		f.dropNamed()
	}
	return f.settle(chunked)
}

func (f *framing) contentLength(value []byte) error {
	n, err := parseLength(value)
	if err != nil {
		return err
	}
	if f.HasLength {
		return bad("there is more than one Content-Length")
	}
	f.HasLength, f.Length = true, n
	return nil
}

func (f *framing) settle(chunked bool) error {
	if chunked {
		if f.HasLength {
			return bad("there are both Content-Length and Transfer-Encoding")
		}
		if f.Minor == 0 {
			return bad("HTTP/1.0 has no Transfer-Encoding")
		}
		f.Length = Chunked
	}
	if f.Minor == 0 && !f.keepAlive {
		f.Close = true
	}
	if !f.upgrading || f.Minor == 0 || len(f.Upgrade) == 0 {
		f.Upgrade = nil
	}
	return nil
}

// connection reads a Connection field and returns how many others it names.
func (f *framing) connection(value []byte) (named int) {
	for len(value) > 0 {
		one, rest, _ := bytes.Cut(value, []byte{','})
		switch one = trim(one); {
		case len(one) == 0:
		case EqualFold(one, "close"):
			f.Close = true
		case EqualFold(one, "keep-alive"):
			f.keepAlive = true
		case EqualFold(one, "upgrade"):
			f.upgrading = true
		default:
			named++
		}
		value = rest
	}
	return named
}

// dropNamed marks the fields that Connection names (RFC 9110, section 7.6.1).
func (f *framing) dropNamed() {
	for i := range f.Fields {
		if f.Fields[i].Kind != Connection {
			continue
		}
		elements(f.Fields[i].Value, func(name []byte) {
			for j := range f.Fields {
				if k := f.Fields[j].Kind; (k == Other || k > Hop) && bytes.EqualFold(f.Fields[j].Name, name) {
					f.Fields[j].Kind = Hop
				}
			}
		})
	}
}

// parseLength reads 1*DIGIT that fits an int64.
func parseLength(b []byte) (int64, error) {
	if len(b) == 0 || len(b) > 18 {
		return 0, bad("Content-Length is not a number")
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, bad("Content-Length is not a number")
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}

// parseVersion reads "HTTP/1.0" or "HTTP/1.1".
func parseVersion(b []byte) (minor byte, err error) {
	if len(b) != 8 || string(b[:7]) != "HTTP/1." || b[7] != '0' && b[7] != '1' {
		return 0, &Error{Status: 505, Reason: "the version is neither HTTP/1.0 nor HTTP/1.1"}
	}
	return b[7] - '0', nil
}
