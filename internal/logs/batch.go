package logs

import (
	"time"
	"unicode/utf8"
)

// MaxText is the longest text of a line, in bytes. Longer ones are the
// writer's caller to split.
const MaxText = 16 << 10

// Batch gathers encoded lines, so that many reach the disk by one write. The
// zero value is ready; one batch may serve many writers in turn.
type Batch struct {
	buf  []byte
	ends []int // where each line ends in buf
}

// Add appends a line. text is data: whatever it holds, the result is one line
// of JSON, invalid UTF-8 replaced by U+FFFD.
func (b *Batch) Add(at time.Time, instance, stream string, text []byte) {
	b.buf = append(b.buf, `{"at":"`...)
	b.buf = at.UTC().AppendFormat(b.buf, time.RFC3339Nano)
	b.buf = append(b.buf, `","instance":`...)
	b.buf = appendString(b.buf, []byte(instance))
	b.buf = append(b.buf, `,"stream":`...)
	b.buf = appendString(b.buf, []byte(stream))
	b.buf = append(b.buf, `,"text":`...)
	b.buf = appendString(b.buf, text)
	b.buf = append(b.buf, "}\n"...)
	b.ends = append(b.ends, len(b.buf))
}

// Len counts the lines.
func (b *Batch) Len() int { return len(b.ends) }

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() { b.buf, b.ends = b.buf[:0], b.ends[:0] }

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string (RFC 8259, section 7).
func appendString(dst, s []byte) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
				i++
				continue
			}
			dst = append(dst, s[from:i]...)
			dst = appendEscape(dst, c)
			i++
			from = i
			continue
		}
		r, size := utf8.DecodeRune(s[i:])
		if r == utf8.RuneError && size == 1 {
			dst = append(dst, s[from:i]...)
			dst = append(dst, "\uFFFD"...)
			from = i + 1
		}
		i += size
	}
	return append(append(dst, s[from:]...), '"')
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\t':
		return append(dst, `\t`...)
	case '\r':
		return append(dst, `\r`...)
	case '\n':
		return append(dst, `\n`...)
	default:
		return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
	}
}
