package http1

import "strconv"

// AppendField appends "name: value" and a line end.
func AppendField(dst, name, value []byte) []byte {
	dst = append(dst, name...)
	dst = append(dst, ':', ' ')
	dst = append(dst, value...)
	return append(dst, '\r', '\n')
}

// AppendText is AppendField for strings.
func AppendText(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	dst = append(dst, ':', ' ')
	dst = append(dst, value...)
	return append(dst, '\r', '\n')
}

// AppendLength appends a body's framing: Content-Length or
// Transfer-Encoding; nothing for UntilClose.
func AppendLength(dst []byte, length int64) []byte {
	switch {
	case length == Chunked:
		return append(dst, "Transfer-Encoding: chunked\r\n"...)
	case length < 0:
		return dst
	}
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, length, 10)
	return append(dst, '\r', '\n')
}

// AppendChunk appends data, which is not empty, as one chunk.
func AppendChunk(dst, data []byte) []byte {
	dst = strconv.AppendInt(dst, int64(len(data)), 16)
	dst = append(dst, '\r', '\n')
	dst = append(dst, data...)
	return append(dst, '\r', '\n')
}

// AppendLastChunk appends the end of a chunked body with its trailers.
func AppendLastChunk(dst []byte, trailer []Field) []byte {
	dst = append(dst, '0', '\r', '\n')
	for _, f := range trailer {
		dst = AppendField(dst, f.Name, f.Value)
	}
	return append(dst, '\r', '\n')
}
