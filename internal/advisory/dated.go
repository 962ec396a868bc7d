package advisory

import (
	"archive/zip"
	"errors"
	"io"
	"time"
)

// earliest is the year before which no record can be: a zip that does not say
// its times says less.
const earliest = 2010

// DatedBy is when a zip that somebody has was current: the time of the newest
// file in it, or now where it says none or one that is to come. Whether it is
// whole Import finds out.
func DatedBy(r io.ReaderAt, size int64, now time.Time) time.Time {
	z, err := zip.NewReader(r, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return now
	}
	var newest time.Time
	for _, f := range z.File {
		if f.Modified.After(newest) {
			newest = f.Modified
		}
	}
	if newest.Year() < earliest || newest.After(now) {
		return now
	}
	return newest.UTC()
}
