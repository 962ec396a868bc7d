package main

import (
	"archive/zip"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/kilnproject/kiln/test/rig"
)

// debianRecords is how many records the database has that the example shop is
// judged with: of each source package that it has some, and of others.
const debianRecords = 20_000

// benchJudged takes what the gate adds to an up of the example shop whose
// images were all baked before, with a database of vulnerabilities, and where
// that has changed since.
func benchJudged(b *bench) {
	r := rig.New(b)
	if out, err := exec.Command("cp", "-R", "examples/shop/.", r.Work).CombinedOutput(); err != nil {
		b.Fatalf("copy the shop: %v %s", err, out)
	}
	up(r)
	var same, changed []float64
	for i := range 5 {
		importDebian(b, r, i)
		changed = append(changed, up(r).Phases["prove"].Seconds())
		for range 3 {
			same = append(same, up(r).Phases["prove"].Seconds())
		}
	}
	median, text := spread(same)
	b.judge(median < 0.1, "the shop's six images judged, all known, s", "< 0.1", "%s", text)
	_, text = spread(changed)
	b.note("the same with a database that has changed, s", "%s", text)
}

// importDebian gives the control plane another database each time.
func importDebian(b *bench, r *rig.Rig, round int) {
	path := filepath.Join(r.Work, "..", fmt.Sprintf("debian-%d.zip", round))
	var text bytes.Buffer
	z := zip.NewWriter(&text)
	here := []string{"glibc", "openssl", "zlib", "gcc-12", "nodejs", "python3.11", "redis", "ca-certificates", "libuv1", "icu"}
	for i := range debianRecords {
		name := fmt.Sprintf("package-%d", i/4)
		if i < 4*len(here) {
			name = here[i/4]
		}
		w, err := z.Create(fmt.Sprintf("CVE-2099-%05d.json", i))
		if err == nil {
			_, err = fmt.Fprintf(w, `{"schema_version":"1.6.0","id":"CVE-2099-%05d","modified":%q,"summary":"one",
"affected":[{"package":{"ecosystem":"Debian:12","name":%q},"ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"0"}]}]}]}`,
				i, time.Now().Add(-time.Hour).UTC().Format(time.RFC3339), name)
		}
		if err != nil {
			b.Fatalf("%v", err)
		}
	}
	if err := z.Close(); err != nil {
		b.Fatalf("%v", err)
	}
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		b.Fatalf("%v", err)
	}
	r.Kiln("db", "import", path, "--ecosystem", "Debian")
}
