package http1

// Response is the head of a response, in the buffer it was parsed from. A zero
// value is ready for Parse and may be used again and again.
type Response struct {
	framing
	Status int
	Reason []byte // may be empty
}

// Parse parses head, which HeadEnd found the end of; toHead says that it
// answers a HEAD request. Length is 0 for answers that have no body.
func (r *Response) Parse(head []byte, limits Limits, toHead bool) error {
	r.reset()
	r.Status, r.Reason = 0, nil
	first, rest := line(head)
	if len(first) > limits.Line {
		return bad("the status line is too long")
	}
	if err := r.parseLine(first); err != nil {
		return err
	}
	var err error
	if r.Fields, err = parseFields(rest, r.Fields, limits.Fields); err != nil {
		return err
	}
	if err := r.frame(); err != nil {
		return err
	}
	bodiless := r.Status < 200 || r.Status == 204
	switch {
	case bodiless && r.Length == Chunked:
		return bad("an answer without a body has a Transfer-Encoding")
	case bodiless && r.Length > 0:
		return bad("an answer without a body has a Content-Length")
	case bodiless || r.Status == 304 || toHead:
		r.Length = 0
	case r.Length != Chunked && !r.HasLength:
		r.Length, r.Close = UntilClose, true
	}
	if r.Status != 101 {
		r.Upgrade = nil
	}
	return nil
}

func (r *Response) parseLine(first []byte) error {
	if len(first) < 12 || first[8] != ' ' {
		return bad("the status line is malformed")
	}
	var err error
	if r.Minor, err = parseVersion(first[:8]); err != nil {
		return err
	}
	for _, c := range first[9:12] {
		if c < '0' || c > '9' {
			return bad("the status is not three digits")
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 || r.Status > 599 {
		return bad("the status is not between 100 and 599")
	}
	if len(first) > 12 {
		if first[12] != ' ' {
			return bad("the status line is malformed")
		}
		r.Reason = first[13:]
	}
	if !all(r.Reason, &valueTable) {
		return bad("the reason has a control character")
	}
	return nil
}

// LengthText is the value of Content-Length, or nil: an answer to HEAD and 304
// have one that is not their Length.
func (r *Response) LengthText() []byte {
	for i := range r.Fields {
		if r.Fields[i].Kind == ContentLength {
			return r.Fields[i].Value
		}
	}
	return nil
}
