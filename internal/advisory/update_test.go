package advisory

import (
	"archive/zip"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// export is a server of zips.
type export struct {
	zips  map[string][]byte // by path
	asked []string          // path and tag
	fail  string            // the path that is not served
}

func (e *export) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.asked = append(e.asked, r.URL.Path+" "+r.Header.Get("If-None-Match"))
	b, ok := e.zips[r.URL.Path]
	switch {
	case r.URL.Path == e.fail:
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write(b[:min(len(b), 100)]) // and no more
	case !ok:
		http.NotFound(w, r)
	default:
		w.Header().Set("ETag", `"`+kiln.DigestOf(b).Short()+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

func content(t testing.TB, s Source) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(s.Zip, 0, s.Size))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestUpdate(t *testing.T) {
	now := day()
	db, err := Open(t.TempDir(), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	goZip := content(t, source(t, "Go", fixture(t, "Go")))
	e := &export{zips: map[string][]byte{"/Go/all.zip": goZip, "/PyPI/all.zip": content(t, source(t, "PyPI", fixture(t, "PyPI")))}}
	s := httptest.NewServer(e)
	t.Cleanup(s.Close)
	server := Server{URL: s.URL}
	if err := db.Update(t.Context(), server, []string{"Go", "PyPI"}); err != nil {
		t.Fatal(err)
	}
	first := db.Status()
	if len(first.Ecosystems) != 2 || first.Ecosystems[0].From != s.URL+"/Go/all.zip" || !first.Dated.Equal(now) {
		t.Errorf("%+v", first)
	}

	// What has not changed is as good as new.
	now = now.Add(24 * time.Hour)
	e.asked = nil
	if err := db.Update(t.Context(), server, nil); err != nil {
		t.Fatal(err)
	}
	second := db.Status()
	if second.Digest != first.Digest || !second.Dated.Equal(now) || len(e.asked) != 2 || !strings.HasSuffix(e.asked[0], kiln.DigestOf(goZip).Short()+`"`) {
		t.Errorf("%+v %q", second, e.asked)
	}

	// One that fails fails all.
	now = now.Add(24 * time.Hour)
	records := fixture(t, "Go")
	delete(records, "GO-2099-0005.json")
	e.zips["/Go/all.zip"], e.fail = content(t, source(t, "Go", records)), "/PyPI/all.zip"
	err = db.Update(t.Context(), server, []string{"Go", "PyPI", "npm"})
	isRefused(t, err, "PyPI")
	isRefused(t, db.Update(t.Context(), server, []string{"npm"}), "/npm/all.zip")
	isRefused(t, db.Update(t.Context(), server, []string{"../x"}), "no ecosystem")
	if third := db.Status(); third.Version != second.Version || !third.Dated.Equal(second.Dated) {
		t.Errorf("%+v", third)
	}
	e.fail = ""
	if err := db.Update(t.Context(), server, nil); err != nil || db.Status().Digest == first.Digest || db.Status().Ecosystems[0].Records != 6 {
		t.Errorf("%+v %v", db.Status(), err)
	}
}

// TestTheTagOfAnotherServer is not asked with.
func TestTheTagOfAnotherServer(t *testing.T) {
	db := empty(t)
	for range 2 {
		e := &export{zips: map[string][]byte{"/Go/all.zip": content(t, source(t, "Go", fixture(t, "Go")))}}
		s := httptest.NewServer(e)
		if err := db.Update(t.Context(), Server{URL: s.URL}, []string{"Go"}); err != nil || !slices.Equal(e.asked, []string{"/Go/all.zip "}) {
			t.Errorf("%q %v", e.asked, err)
		}
		s.Close()
	}
}

func TestNoRedirectOutOfTLS(t *testing.T) {
	plain := httptest.NewServer(&export{})
	t.Cleanup(plain.Close)
	tls := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	t.Cleanup(tls.Close)
	c := tls.Client()
	c.CheckRedirect = client().CheckRedirect
	isRefused(t, empty(t).Update(t.Context(), Server{URL: tls.URL, Client: c}, []string{"Go"}), "without TLS")
}

func TestAnAddressThatIsNone(t *testing.T) {
	for _, address := range []string{"file:///etc", "ftp://example.com", "example.com", "http://[", "https:"} {
		err := empty(t).Update(t.Context(), Server{URL: address}, []string{"Go"})
		isRefused(t, err, "no address")
		if !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// bundleOf is a bundle with the fixtures.
func bundleOf(t testing.TB, k *ecdsa.PrivateKey, ecosystems ...string) []byte {
	t.Helper()
	var sources []Source
	for _, e := range ecosystems {
		sources = append(sources, source(t, e, fixture(t, e)))
	}
	var b bytes.Buffer
	if err := WriteBundle(t.Context(), &b, sources, day(), k); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestABundleIsImported(t *testing.T) {
	k, db, direct := key(t), empty(t), filled(t, "Go", "Debian")
	b := bundleOf(t, k, "Go", "Debian")
	if err := db.ImportBundle(t.Context(), bytes.NewReader(b), int64(len(b)), &k.PublicKey); err != nil {
		t.Fatal(err)
	}
	s := db.Status()
	if s.Digest != direct.Status().Digest || !s.Dated.Equal(day()) || s.Ecosystems[1].From != fromBundle {
		t.Errorf("%+v", s)
	}
	if err := db.ImportBundle(t.Context(), bytes.NewReader(b), int64(len(b)), &k.PublicKey); err != nil {
		t.Errorf("the same once more: %v", err)
	}
	go1 := source(t, "Go", fixture(t, "Go"))
	isRefused(t, WriteBundle(t.Context(), io.Discard, []Source{go1, go1}, day(), k), "Go", "twice")
}

// change makes another bundle of the files of one.
func changed(t *testing.T, b []byte, change func(files map[string][]byte)) []byte {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if files[f.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	change(files)
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for name, content := range files {
		if err := add(w, name, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestABadBundleIsRefused(t *testing.T) {
	k, db := key(t), filled(t, "Go")
	before := db.Status()
	good := bundleOf(t, k, "Go", "Debian")
	signed := func(files map[string][]byte, old, text string) {
		files[bundleManifest] = bytes.Replace(files[bundleManifest], []byte(old), []byte(text), 1)
		sum := sha256.Sum256(files[bundleManifest])
		signature, err := ecdsa.SignASN1(rand.Reader, k, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		files[bundleSignature] = signature
	}
	other := content(t, source(t, "Debian", map[string]string{"X-1.json": strings.ReplaceAll(sound, "Go", "Debian")}))
	bad := content(t, source(t, "Debian", map[string]string{"X-1.json": "{}"}))
	for name, c := range map[string]struct {
		change func(files map[string][]byte)
		says   string
	}{
		"a byte of the manifest":      {func(f map[string][]byte) { f[bundleManifest][20] ^= 1 }, "signature"},
		"another file":                {func(f map[string][]byte) { f["2.zip"] = other }, "size"},
		"a byte of a file":            {func(f map[string][]byte) { f["2.zip"][100] ^= 1 }, "digest"},
		"no file":                     {func(f map[string][]byte) { delete(f, "2.zip") }, "not there"},
		"no manifest":                 {func(f map[string][]byte) { delete(f, bundleManifest) }, "no bundle.json"},
		"no signature":                {func(f map[string][]byte) { delete(f, bundleSignature) }, "no bundle.json.sig"},
		"an empty signature":          {func(f map[string][]byte) { f[bundleSignature] = nil }, "signature"},
		"one file more":               {func(f map[string][]byte) { f["3.zip"] = other }, "3.zip"},
		"a file in a folder":          {func(f map[string][]byte) { f["../x"] = other }, "in a folder"},
		"another count":               {func(f map[string][]byte) { signed(f, `"records": 4`, `"records": 5`) }, "manifest says 5"},
		"no date":                     {func(f map[string][]byte) { signed(f, day().Format(time.RFC3339), "0001-01-01T00:00:00Z") }, "no date"},
		"a date before what is there": {func(f map[string][]byte) { signed(f, day().Format(time.RFC3339), "2026-03-01T00:00:00Z") }, "already"},
		"another format":              {func(f map[string][]byte) { signed(f, `"format": 1`, `"format": 2`) }, "format"},
		"the manifest as a file":      {func(f map[string][]byte) { signed(f, `"2.zip"`, `"bundle.json"`) }, "not there"},
		"a record that is broken": {func(f map[string][]byte) {
			signed(f, string(kiln.DigestOf(f["2.zip"])), string(kiln.DigestOf(bad)))
			signed(f, `"records": 4`, `"records": 1`)
			signed(f, `"size": `+strconv.Itoa(len(f["2.zip"])), `"size": `+strconv.Itoa(len(bad)))
			f["2.zip"] = bad
		}, "X-1.json"},
	} {
		t.Run(name, func(t *testing.T) {
			b := changed(t, good, c.change)
			isRefused(t, db.ImportBundle(t.Context(), bytes.NewReader(b), int64(len(b)), &k.PublicKey), c.says)
		})
	}
	isRefused(t, db.ImportBundle(t.Context(), bytes.NewReader(good), int64(len(good)), &key(t).PublicKey), "signature")
	isRefused(t, db.ImportBundle(t.Context(), bytes.NewReader(good), int64(len(good)), nil), "P-256")
	isRefused(t, db.ImportBundle(t.Context(), bytes.NewReader(good[:50]), 50, &k.PublicKey), "cannot be read")
	inner := bytes.Index(good, []byte(bundleManifest)) - 30 // it ends with the zip of an ecosystem
	isRefused(t, db.ImportBundle(t.Context(), bytes.NewReader(good[:inner]), int64(inner), &k.PublicKey), "cut off")
	if after := db.Status(); after.Version != before.Version || after.Digest != before.Digest {
		t.Errorf("something was imported: %+v", after)
	}
}
