package logs

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/kilnproject/kiln"
)

// maxEncoded is more than any line that a Writer writes: its text escaped
// sixfold, and the rest.
const maxEncoded = 6*MaxText + 4<<10

// cursor reads an instance's lines in order, from file to file, up to its end,
// and goes on where it stopped once it has another.
type cursor struct {
	dir  string
	file *os.File
	info os.FileInfo // of file
	buf  *bufio.Reader
	pos  int64  // how much of file was taken from buf
	end  *end   // nil for none: up to what is written last
	part []byte // the beginning of a line whose end is not written yet
	long bool   // part is too long to be a line and is skipped to its end
	head kiln.LogLine
	has  bool // head is set
}

// end is where a cursor stops, so that whoever reads faster than an instance
// writes is not needed to come to an end.
type end struct {
	info os.FileInfo
	size int64
}

// bound makes the cursor stop at what is written now, unless it has an end.
func (c *cursor) bound() error {
	if c.end != nil {
		return nil
	}
	all, err := segments(c.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(all) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := os.Stat(all[len(all)-1].path)
	if errors.Is(err, fs.ErrNotExist) { // between a rename and the new current
		return nil
	}
	if err == nil {
		c.end = &end{info: info, size: info.Size()}
	}
	return err
}

// atEnd says whether all up to the end was read.
func (c *cursor) atEnd() bool {
	return c.end != nil && c.file != nil && os.SameFile(c.info, c.end.info) && c.pos >= c.end.size
}

// fill sets head to the next line. Without one it returns io.EOF; more may be
// there later.
func (c *cursor) fill() error {
	for !c.has {
		raw, err := c.readLine()
		if err != nil {
			return err
		}
		var l kiln.LogLine
		if json.Unmarshal(raw, &l) == nil && !l.At.IsZero() {
			c.head, c.has = l, true
		}
	}
	return nil
}

func (c *cursor) take() kiln.LogLine {
	c.has = false
	return c.head
}

func (c *cursor) readLine() ([]byte, error) {
	for {
		if c.file == nil {
			if err := c.openFirst(); err != nil {
				return nil, err
			}
		}
		if c.atEnd() {
			return nil, io.EOF
		}
		ended, err := c.readPart()
		if err != nil {
			return nil, err
		}
		if !ended {
			continue
		}
		if line, whole := c.finish(); whole {
			return line, nil
		}
	}
}

// readPart reads on in the line, into the next file where one ends. It tells
// whether the line has ended.
func (c *cursor) readPart() (ended bool, err error) {
	chunk, err := c.buf.ReadSlice('\n')
	c.pos += int64(len(chunk))
	if !c.long {
		c.part = append(c.part, chunk...)
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, bufio.ErrBufferFull):
		if len(c.part) > maxEncoded {
			c.part, c.long = c.part[:0], true
		}
		return false, nil
	case errors.Is(err, io.EOF):
		return false, c.advance()
	default:
		return false, err
	}
}

// finish takes the line that was read; one that was too long is not whole.
func (c *cursor) finish() (line []byte, whole bool) {
	line, whole = bytes.TrimSuffix(c.part, []byte("\n")), !c.long
	c.part, c.long = c.part[:0], false
	return line, whole
}

// openFirst starts with the oldest file.
func (c *cursor) openFirst() error {
	all, err := segments(c.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(all) == 0 {
		return io.EOF
	}
	if err != nil {
		return err
	}
	return c.openListed(all[0])
}

// openListed opens a file of a list; io.EOF when it was rotated away since, so
// that the next try sees the new names.
func (c *cursor) openListed(s segment) error {
	err := c.open(s.path, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return io.EOF
	}
	return err
}

func (c *cursor) open(path string, offset int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && offset > 0 {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	c.close()
	c.file, c.info, c.pos, c.part, c.long = f, info, offset, c.part[:0], false
	if c.buf == nil {
		c.buf = bufio.NewReaderSize(f, 16<<10)
	} else {
		c.buf.Reset(f)
	}
	return nil
}

// advance goes to the file after this one, or says io.EOF when this is the
// current one. It is called at the end of the file.
func (c *cursor) advance() error {
	all, err := segments(c.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(all) == 0 {
		return io.EOF
	}
	if err != nil {
		return err
	}
	if c.end != nil && !c.end.among(all) {
		return io.EOF // it was rotated away: what is there now was written since
	}
	for i, s := range all {
		info, err := os.Stat(s.path)
		if err != nil || !os.SameFile(info, c.info) {
			continue
		}
		if s.number == 0 || c.grown() {
			return c.truncated(info)
		}
		if i+1 == len(all) {
			return io.EOF // between the rename and the new current
		}
		return c.openListed(all[i+1])
	}
	return c.openListed(all[0]) // it was removed meanwhile
}

func (e *end) among(all []segment) bool {
	return slices.ContainsFunc(all, func(s segment) bool {
		info, err := os.Stat(s.path)
		return err == nil && os.SameFile(info, e.info)
	})
}

// grown says whether the file got more since its end was read, as it may
// before it is renamed.
func (c *cursor) grown() bool {
	at, err := c.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return false
	}
	info, err := c.file.Stat()
	return err == nil && info.Size() > at
}

// truncated starts the file again when it became shorter than what was read.
func (c *cursor) truncated(info os.FileInfo) error {
	at, err := c.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if info.Size() < at {
		if _, err := c.file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		c.buf.Reset(c.file)
		c.pos, c.part, c.long = 0, c.part[:0], false
	}
	if c.grown() {
		return nil
	}
	return io.EOF
}

func (c *cursor) close() {
	if c.file != nil {
		_ = c.file.Close()
		c.file = nil
	}
}
