package keep

import (
	"bytes"
	"time"
	"unicode/utf8"

	"github.com/kilnproject/kiln/internal/logs"
)

// split adds the whole lines of data, after what the stream began, to the
// batch, and keeps the rest. Lines longer than logs.MaxText become several.
func (s *stream) split(b *logs.Batch, data []byte, at time.Time) {
	for len(data) > 0 {
		line, rest, whole := bytes.Cut(data, []byte{'\n'})
		data = rest
		if len(s.part) > 0 {
			s.part = append(s.part, line...)
			line = s.part
		}
		for len(line) > logs.MaxText {
			n := cut(line)
			b.Add(at, s.out.instance, s.name, line[:n])
			line = line[n:]
		}
		if whole {
			b.Add(at, s.out.instance, s.name, bytes.TrimSuffix(line, []byte{'\r'}))
			s.part = nil
		} else {
			s.part = bytes.Clone(line) // of its own size: data is the pump's buffer
		}
	}
}

// cut is where a long line is divided: not within a character.
func cut(line []byte) int {
	n := logs.MaxText
	for i := 1; i < utf8.UTFMax && !utf8.RuneStart(line[n]); i++ {
		n--
	}
	if !utf8.RuneStart(line[n]) {
		return logs.MaxText // it is no UTF-8 anyway
	}
	return n
}

// captureSize is how much of the runtime's last words is kept.
const captureSize = 4 << 10

func (o *output) keep(data []byte) {
	if !o.captures {
		return
	}
	o.capture = append(o.capture, data[max(0, len(data)-captureSize):]...)
	if over := len(o.capture) - captureSize; over > 0 {
		o.capture = append(o.capture[:0], o.capture[over:]...)
	}
}
