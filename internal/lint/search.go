package lint

import (
	"bytes"
	"errors"
	"io"
	"regexp"
)

const (
	// window is how much of a file is held at once, in bytes.
	window = 256 << 10
	// before is how much of what was searched stays, for what stands before a
	// match.
	before = 16
	// minText is the length of the part of a text that is looked for first.
	minText = 4
	// block is what the search looks at in one step, in bytes.
	block = 2
)

// searcher finds secrets in a stream, in one pass over all rules: the
// algorithm of Wu and Manber skips what no text can be at, and only where a
// text stands does a rule look closer.
type searcher struct {
	rules  []compiled
	files  []compiled
	skip   [1 << 16]uint8 // by two bytes: how far to go on; 0 is to look
	lists  [1 << 16]uint8 // by two bytes: 1 and the index of their texts
	texts  [][]text
	buffer []byte
}

// text is one of a rule's.
type text struct {
	bytes  []byte
	offset int // of the block in it
	rule   int
}

type compiled struct {
	secretRule
	form *regexp.Regexp
}

func newSearcher() *searcher {
	s := &searcher{buffer: make([]byte, window)}
	for i := range s.skip {
		s.skip[i] = minText - block + 1
	}
	for n, r := range secretRules() {
		s.rules = append(s.rules, compiled{r, regexp.MustCompile(`\A(?:` + r.form + `)`)})
		for _, t := range r.texts {
			s.enter(t, n)
		}
	}
	for _, r := range fileRules() {
		s.files = append(s.files, compiled{r, regexp.MustCompile(r.form)})
	}
	return s
}

// enter puts a text into the tables: minText of its bytes, those that end with
// its rarest block.
func (s *searcher) enter(t string, rule int) {
	from := 0
	for i := range len(t) - minText + 1 {
		if rarity(t[i+minText-block:i+minText]) > rarity(t[from+minText-block:from+minText]) {
			from = i
		}
	}
	for i := range minText - block + 1 {
		at := key(t[from+i], t[from+i+1])
		s.skip[at] = min(s.skip[at], uint8(minText-block-i))
	}
	last := from + minText - block
	at := key(t[last], t[last+1])
	if s.lists[at] == 0 {
		s.texts = append(s.texts, nil)
		s.lists[at] = uint8(len(s.texts))
	}
	list := &s.texts[s.lists[at]-1]
	*list = append(*list, text{bytes: []byte(t), offset: last, rule: rule})
}

func key(a, b byte) uint16 { return uint16(a) | uint16(b)<<8 }

// rarity estimates how rare a text is in programs and prose.
func rarity(s string) int {
	sum := 0
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c == ' ', c == '-', c == '=':
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z':
			sum += 2
		default:
			sum += 3
		}
	}
	return sum
}

// search reads a file to its end and says what secrets are in it, each kind
// once. It returns how many bytes it read.
func (s *searcher) search(r io.Reader, path string, found func(what string)) (int64, error) {
	done := make([]bool, len(s.rules))
	have, start, total := 0, 0, int64(0)
	for {
		n, err := io.ReadFull(r, s.buffer[have:])
		total += int64(n)
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return total, err
		}
		if total == int64(have+n) { // the first time
			s.named(s.buffer[:have+n], path, found)
		}
		have += n
		limit := have
		if !last {
			limit -= maxMatch
		}
		s.scan(s.buffer[:have], start, limit, done, found)
		if last {
			return total, nil
		}
		have = copy(s.buffer, s.buffer[limit-before:have])
		start = before
	}
}

// named asks the rules for files of a name.
func (s *searcher) named(b []byte, path string, found func(what string)) {
	for i := range s.files {
		r := &s.files[i]
		if !r.only(path) {
			continue
		}
		for _, m := range r.form.FindAllSubmatch(b, maxFindings) {
			if secretive(m[1], 0) {
				found(r.what)
				break
			}
		}
	}
}

// scan finds the matches that begin from start up to limit. What done marks is
// not looked for any more.
func (s *searcher) scan(b []byte, start, limit int, done []bool, found func(what string)) {
	for i := start + minText - block; i+1 < len(b); {
		at := key(b[i], b[i+1])
		if n := s.skip[at]; n > 0 {
			i += int(n)
			continue
		}
		for _, t := range s.texts[s.lists[at]-1] {
			from := i - t.offset
			if done[t.rule] || from < start || from >= limit || !bytes.HasPrefix(b[from:], t.bytes) {
				continue
			}
			if r := &s.rules[t.rule]; r.matches(b, from) {
				done[t.rule] = true
				found(r.what)
			}
		}
		i++
	}
}

// matches says whether a secret begins at a place where one of the rule's
// texts stands.
func (r *compiled) matches(b []byte, from int) bool {
	if r.word && inWord(b[:from]) {
		return false
	}
	m := r.form.FindSubmatch(b[from:min(len(b), from+maxMatch)])
	if m == nil {
		return false
	}
	secret := m[len(m)-1]
	return secretive(secret, r.least) && (r.check == nil || r.check(secret))
}

// inWord says whether a text ends within a word. What follows an escaped line
// end is not within one.
func inWord(b []byte) bool {
	if len(b) == 0 {
		return false
	}
	c := b[len(b)-1]
	if len(b) > 1 && b[len(b)-2] == '\\' && (c == 'n' || c == 'r' || c == 't') {
		return false
	}
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '_'
}
