package http1

import "bytes"

// Request is the head of a request, in the buffer it was parsed from. A zero
// value is ready for Parse and may be used again and again.
type Request struct {
	framing
	Method []byte
	// Target is what the request line says, also when it is refused.
	Target []byte
	// Path is in normal form: it begins with a slash, or is "*" for OPTIONS.
	// What it is matched by is what is forwarded.
	Path  []byte
	Query []byte // with its question mark, or empty
	// Host is the Host field as given; Name is its host part in lower case,
	// without port, brackets and final dot.
	Host, Name []byte
	// Expect says that the client waits for 100 Continue.
	Expect bool

	scratch []byte // where a path or name that had to be rewritten lives
}

// Parse parses head, which HeadEnd found the end of.
func (r *Request) Parse(head []byte, limits Limits) error {
	r.reset()
	r.Method, r.Target, r.Path, r.Query, r.Host, r.Name, r.Expect = nil, nil, nil, nil, nil, nil, false
	r.scratch = r.scratch[:0]
	first, rest := line(head)
	if len(first) > limits.Line {
		return &Error{Status: 414, Reason: "the request line is too long"}
	}
	err := r.parseLine(first)
	if err != nil {
		return err
	}
	if r.Fields, err = parseFields(rest, r.Fields, limits.Fields); err != nil {
		return err
	}
	if err := r.frame(); err != nil {
		return err
	}
	if err := r.ends(); err != nil {
		return err
	}
	return r.parseTarget(r.Target)
}

func (r *Request) parseLine(first []byte) (err error) {
	i := 0
	for i < len(first) && tokenTable[first[i]] {
		i++
	}
	if i == 0 || i > 32 || i == len(first) || first[i] != ' ' {
		return bad("the request line does not begin with a method and a space")
	}
	r.Method = first[:i]
	rest := first[i+1:]
	j := bytes.IndexByte(rest, ' ')
	if j <= 0 {
		return bad("the request line has no target and version")
	}
	r.Target = rest[:j]
	r.Minor, err = parseVersion(rest[j+1:])
	return err
}

// ends checks the fields that only a request has.
func (r *Request) ends() error {
	hosts := 0
	for i := range r.Fields {
		switch f := &r.Fields[i]; f.Kind {
		case Host:
			hosts++
			r.Host = f.Value
		case Expect:
			if !EqualFold(f.Value, "100-continue") || r.Expect {
				return &Error{Status: 417, Reason: "the only expectation that is understood is 100-continue"}
			}
			r.Expect = true
		default:
		}
	}
	if hosts != 1 {
		return bad("there is not exactly one Host")
	}
	if r.Minor == 0 || r.Length == 0 {
		r.Expect = false
	}
	if r.Length != 0 {
		r.Upgrade = nil
	}
	var err error
	r.Name, err = r.parseHost(r.Host)
	return err
}

// parseTarget accepts origin-form, absolute-form that repeats Host, and "*".
func (r *Request) parseTarget(target []byte) error {
	switch string(r.Method) {
	case "CONNECT", "TRACE":
		return &Error{Status: 405, Reason: "the method is not served here"}
	case "OPTIONS":
		if string(target) == "*" {
			r.Path = target
			return nil
		}
	}
	if target[0] != '/' {
		var err error
		if target, err = r.absolute(target); err != nil {
			return err
		}
	}
	if err := CheckTarget(target); err != nil {
		return err
	}
	path := target
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		path, r.Query = target[:i], target[i:]
	}
	var err error
	r.Path, r.scratch, err = NormalPath(path, r.scratch)
	return err
}

// absolute takes "http://authority" off a target when the authority is Host's.
func (r *Request) absolute(target []byte) ([]byte, error) {
	i := bytes.Index(target, []byte("://"))
	if i < 0 || !EqualFold(target[:i], "http") && !EqualFold(target[:i], "https") {
		return nil, bad("the target is neither a path nor a URL")
	}
	rest := target[i+3:]
	end := bytes.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	if !bytes.EqualFold(rest[:end], r.Host) {
		return nil, bad("the target's authority is not Host's")
	}
	if rest = rest[end:]; len(rest) == 0 || rest[0] != '/' {
		r.scratch = append(append(r.scratch, '/'), rest...)
		rest = r.scratch
		r.scratch = r.scratch[len(r.scratch):]
	}
	return rest, nil
}

// parseHost checks host and optional port, and returns the host's name.
func (r *Request) parseHost(host []byte) ([]byte, error) {
	name, err := HostName(host)
	if err != nil {
		return nil, err
	}
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			start := len(r.scratch)
			r.scratch = append(r.scratch, name...)
			lower := r.scratch[start:]
			for ; i < len(lower); i++ {
				if c := lower[i]; c >= 'A' && c <= 'Z' {
					lower[i] = c + 'a' - 'A'
				}
			}
			r.scratch = r.scratch[len(r.scratch):]
			return lower, nil
		}
	}
	return name, nil
}
