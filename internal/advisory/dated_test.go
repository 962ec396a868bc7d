package advisory

import (
	"archive/zip"
	"bytes"
	"testing"
	"time"
)

func TestAnOldFileIsNotNew(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	old := now.Add(-100 * time.Hour)
	for name, c := range map[string]struct {
		times []time.Time
		want  time.Time
	}{
		"the newest file":    {[]time.Time{old.Add(-time.Hour), old, old.Add(-time.Minute)}, old},
		"no time":            {[]time.Time{{}, {}}, now},
		"a time to come":     {[]time.Time{old, now.Add(time.Hour)}, now},
		"of no file at all":  {nil, now},
		"one time of others": {[]time.Time{{}, old}, old},
	} {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		for i, at := range c.times {
			if _, err := z.CreateHeader(&zip.FileHeader{Name: string(rune('a'+i)) + ".json", Modified: at}); err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if got := DatedBy(bytes.NewReader(b.Bytes()), int64(b.Len()), now); !got.Equal(c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	if got := DatedBy(bytes.NewReader([]byte("no zip")), 6, now); !got.Equal(now) {
		t.Errorf("what is no zip is of %s", got)
	}
}
