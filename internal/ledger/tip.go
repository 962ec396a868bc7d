package ledger

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

var unixReadOnly error = unix.EROFS //nolint:gochecknoglobals // a constant

// tipFile holds, beside the ledger, the end of the chain that was acknowledged
// last. A write-ahead log that lost its end, or an older ledger in the place
// of this one, is a sound ledger by itself; only this tells that it lacks
// something. It is not synced: what a power cut leaves of it is at most as new
// as the ledger.
type tipFile struct{ f *os.File }

// openTip compares what is there with what was acknowledged.
func (l *Ledger) openTip(ctx context.Context) error {
	f, err := os.OpenFile(l.path+".tip", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	l.told = &tipFile{f}
	acknowledged, ok := l.told.read()
	if ok && acknowledged.seq > l.tip.seq {
		l.found(kiln.LedgerFault{
			Record:  fmt.Sprintf("events %d to %d", l.tip.seq+1, acknowledged.seq),
			Problem: "they were acknowledged and are missing at the end",
		})
		return nil
	}
	var hash []byte
	err = l.files().read.QueryRowContext(ctx, "SELECT hash FROM events WHERE seq = ?", acknowledged.seq).Scan(&hash)
	switch {
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return err
	case ok && err == nil && !bytes.Equal(hash, acknowledged.hash[:]):
		l.found(kiln.LedgerFault{Record: fmt.Sprintf("event %d", acknowledged.seq), Problem: "it is not the one that was acknowledged"})
		return nil
	}
	l.told.write(l.tip)
	return nil
}

// read returns what is in the file; false when that is not whole.
func (t *tipFile) read() (tip, bool) {
	var out tip
	b := make([]byte, 256)
	n, err := t.f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return out, false
	}
	line, _, _ := bytes.Cut(b[:n], []byte("\n"))
	body, sum, ok := bytes.Cut(line, []byte(" "))
	if !ok || string(sum) != checksum(body) {
		return out, false
	}
	var hash []byte
	if _, err := fmt.Sscanf(string(body), "%d:%x", &out.seq, &hash); err != nil || len(hash) != len(out.hash) {
		return out, false
	}
	copy(out.hash[:], hash)
	return out, true
}

func checksum(b []byte) string { return fmt.Sprintf("%08x", crc32.ChecksumIEEE(b)) }

// write notes the tip. When it cannot, the file stays behind, which says less
// and nothing wrong.
func (t *tipFile) write(to tip) {
	body := fmt.Sprintf("%020d:%x", to.seq, to.hash) // always as long
	_, _ = t.f.WriteAt([]byte(body+" "+checksum([]byte(body))+"\n"), 0)
}

func (t *tipFile) close() error { return t.f.Close() }
