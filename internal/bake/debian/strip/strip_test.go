package strip

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFilter(t *testing.T) {
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	now := time.Now()
	for _, h := range []*tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./dev/null", Typeflag: tar.TypeChar},
		{Name: "./etc/hostname", Typeflag: tar.TypeReg},
		{Name: "./usr/bin/su", Typeflag: tar.TypeReg, Mode: 0o4755, ModTime: now, Uname: "root"},
		{Name: "./usr/bin/ping", Typeflag: tar.TypeReg, Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "x", "SCHILY.xattr.user.a": "b"}},
		{Name: "./usr/bin/apt-get", Typeflag: tar.TypeReg},
		{Name: "./var/lib/dpkg/status", Typeflag: tar.TypeReg},
		{Name: "./var/lib/dpkg/info/x.postinst", Typeflag: tar.TypeReg},
		{Name: "./var/log/apt/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./var/log/apt/x.log", Typeflag: tar.TypeReg},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	epoch := time.Unix(946684800, 0)
	var out bytes.Buffer
	if err := (Filter{Epoch: epoch.Unix()}).Copy(&out, &in); err != nil {
		t.Fatal(err)
	}
	var names []string
	r := tar.NewReader(&out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.ModTime.After(epoch) || h.Uname != "" || h.Name == "usr/bin/su" && h.Mode != 0o755 {
			t.Errorf("%+v", h)
		}
		if _, ok := h.PAXRecords["SCHILY.xattr.security.capability"]; ok {
			t.Errorf("%s keeps its capability", h.Name)
		}
	}
	want := []string{"./", "usr/bin/su", "usr/bin/ping", "var/lib/dpkg/status", "var/log/apt/"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
}
