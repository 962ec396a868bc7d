package scan

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
)

func TestInventory(t *testing.T) {
	all := files(t)
	built, err := buildinfo.Read(bytes.NewReader(all["app/program"]))
	if err != nil || len(built.Deps) != 1 {
		t.Fatal(built, err)
	}
	mod := built.Deps[0].Version
	i, err := Inventory(t.Context(), tree(all), layerOf)
	if err != nil {
		t.Fatal(err)
	}
	if i.System != "Debian GNU/Linux 12 (bookworm)" {
		t.Error(i.System)
	}
	if !slices.IsSortedFunc(i.Packages, func(a, b kiln.Package) int { return strings.Compare(a.PURL, b.PURL) }) {
		t.Error("not sorted")
	}
	goVersion := strings.TrimPrefix(runtime.Version(), "go")
	want := []kiln.Package{
		{
			Name: "libssl3", Version: "3.0.9-1", PURL: "pkg:deb/debian/libssl3@3.0.9-1?arch=amd64&distro=debian-12", Ecosystem: "Debian:12",
			Source: "openssl", Locations: []string{"/var/lib/dpkg/status"}, Layer: "layer of var",
		},
		{
			Name: "hello", Version: "2.10-3+b1", PURL: "pkg:deb/debian/hello@2.10-3%2Bb1?arch=amd64&distro=debian-12", Ecosystem: "Debian:12",
			SourceVersion: "2.10-3", Locations: []string{"/var/lib/dpkg/status"}, Layer: "layer of var",
		},
		{
			Name: "stdlib", Version: goVersion, PURL: "pkg:golang/stdlib@" + goVersion, Ecosystem: "Go",
			Locations: []string{"/app/again/program", "/app/program"}, Layer: "layer of app",
		},
		{
			Name: "golang.org/x/mod", Version: mod, PURL: "pkg:golang/golang.org/x/mod@" + mod, Ecosystem: "Go",
			Locations: []string{"/app/again/program", "/app/program"}, Layer: "layer of app",
		},
		{
			Name: "left-pad", Version: "1.3.0", PURL: "pkg:npm/left-pad@1.3.0", Ecosystem: "npm",
			Locations: []string{"/app/node_modules/left-pad/package.json"}, Layer: "layer of app",
		},
		{
			Name: "@scope/thing", Version: "2.0.0", PURL: "pkg:npm/%40scope/thing@2.0.0", Ecosystem: "npm",
			Locations: []string{"/app/node_modules/@scope/thing/package.json"}, Layer: "layer of app",
		},
		{
			Name: "Some_Thing", Version: "1.0", PURL: "pkg:pypi/some-thing@1.0", Ecosystem: "PyPI",
			Locations: []string{"/usr/lib/python3/dist-packages/Some_Thing-1.0.dist-info/METADATA"}, Layer: "layer of usr",
		},
		{
			Name: "org.example:thing", Version: "4.5.6", PURL: "pkg:maven/org.example/thing@4.5.6", Ecosystem: "Maven",
			Locations: []string{"/app/lib/thing.jar"}, Layer: "layer of app",
		},
	}
	for _, w := range want {
		n := slices.IndexFunc(i.Packages, func(p kiln.Package) bool { return p.PURL == w.PURL })
		if n < 0 {
			t.Errorf("%s is not there", w.PURL)
			continue
		}
		if diff := cmp.Diff(w, i.Packages[n]); diff != "" {
			t.Error(diff)
		}
	}
	for _, p := range i.Packages {
		if p.Name == "openssh-server" {
			t.Error("what was removed is there")
		}
		if t.Failed() {
			t.Log(p)
		}
	}
}

// TestAWorkerMakesTheSameInventory: nothing of it opens a path.
func TestAWorkerMakesTheSameInventory(t *testing.T) {
	all := files(t)
	all["var/lib/rpm/rpmdb.sqlite"] = rpmSQLite(t, header(t, "bash", 0))
	here, err := Inventory(t.Context(), tree(all), layerOf)
	if err != nil {
		t.Fatal(err)
	}
	here.Image = "sha256:0"
	var there Answer
	if err := worker(t).Call(t.Context(), Task, all, &there); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(here, there.Inventory); diff != "" {
		t.Error(diff)
	}
	if want := fmt.Sprintf(`{"asked":{"x":1},"files":%d}`, len(all)); string(there.Marks) != want {
		t.Errorf("%s", there.Marks)
	}
	if !slices.ContainsFunc(here.Packages, func(p kiln.Package) bool { return p.Name == "bash" }) {
		t.Error("the RPM database was not read")
	}
}

func TestAlpine(t *testing.T) {
	i, err := Inventory(t.Context(), tree(map[string][]byte{
		"etc/os-release":       []byte("ID=alpine\nVERSION_ID=3.20.1\n"),
		"lib/apk/db/installed": []byte("P:busybox-binsh\nV:1.36.1-r15\nA:x86_64\nL:GPL-2.0-only\no:busybox\n\n"),
	}), layerOf)
	if err != nil {
		t.Fatal(err)
	}
	want := []kiln.Package{{
		Name: "busybox-binsh", Version: "1.36.1-r15", PURL: "pkg:apk/alpine/busybox-binsh@1.36.1-r15?arch=x86_64&distro=alpine-3.20.1", Ecosystem: "Alpine:v3.20",
		Source: "busybox", Locations: []string{"/lib/apk/db/installed"}, Layer: "layer of lib", Licenses: []string{"GPL-2.0-only"},
	}}
	if diff := cmp.Diff(want, i.Packages); diff != "" {
		t.Error(diff)
	}
}

func TestRPM(t *testing.T) {
	headers := [][]byte{header(t, "bash", 0), header(t, "openssl-libs", 1), header(t, "gpg-pubkey", 0)}
	for name, db := range map[string][]byte{"usr/lib/sysimage/rpm/rpmdb.sqlite": rpmSQLite(t, headers...), "usr/lib/sysimage/rpm/Packages.db": rpmNDB(headers...)} {
		i, err := Inventory(t.Context(), tree(map[string][]byte{"etc/os-release": []byte(rocky), name: db}), layerOf)
		if err != nil {
			t.Fatal(err)
		}
		want := []kiln.Package{
			{
				Name: "bash", Version: "1.2-3.el9", PURL: "pkg:rpm/rocky/bash@1.2-3.el9?arch=x86_64&distro=rocky-9.3&upstream=src-1.2-3.el9.src.rpm", Ecosystem: "Rocky Linux",
				Locations: []string{"/" + name}, Layer: "layer of usr", Licenses: []string{"MIT"},
			},
			{
				Name: "openssl-libs", Version: "1.2-3.el9", PURL: "pkg:rpm/rocky/openssl-libs@1.2-3.el9?arch=x86_64&distro=rocky-9.3&epoch=1&upstream=src-1.2-3.el9.src.rpm",
				Ecosystem: "Rocky Linux", SourceVersion: "1:1.2-3.el9", Locations: []string{"/" + name}, Layer: "layer of usr", Licenses: []string{"MIT"},
			},
		}
		if diff := cmp.Diff(want, i.Packages); diff != "" {
			t.Error(diff)
		}
	}
}

// TestADistributionWithoutAdvisories is said to be one: its packages are not
// without findings.
func TestADistributionWithoutAdvisories(t *testing.T) {
	for release, want := range map[string]string{
		"ID=fedora\nVERSION_ID=37\n": "fedora (rpm)", "ID=Go:1\n": "Go 1 (rpm)", "": "an unknown distribution (rpm)", "ID=" + strings.Repeat("x", 100) + "\n": "an unknown distribution (rpm)",
	} {
		i, err := Inventory(t.Context(), tree(map[string][]byte{"etc/os-release": []byte(release), "var/lib/rpm/rpmdb.sqlite": rpmSQLite(t, header(t, "bash", 0))}), layerOf)
		if err != nil || len(i.Packages) != 1 || i.Packages[0].Ecosystem != want {
			t.Errorf("%q: %+v %v", release, i.Packages, err)
		}
	}
}

// TestUsrIsMerged: /lib is a link, and the database is read where it is.
func TestUsrIsMerged(t *testing.T) {
	i, err := Inventory(t.Context(), fstest.MapFS{
		"usr/lib/apk/db/installed": {Data: []byte("P:x\nV:1\nA:x86_64\n\n"), Mode: 0o644}, "lib": {Data: []byte("usr/lib"), Mode: fs.ModeSymlink},
	}, layerOf)
	if err != nil || len(i.Packages) != 1 {
		t.Errorf("%+v %v", i, err)
	}
}

// broken is a file system whose files cannot be read.
type broken struct{ fs.FS }

func (b broken) Open(name string) (fs.File, error) {
	if strings.Contains(name, "node_modules/") && strings.HasSuffix(name, ".json") {
		panic("a defect")
	}
	return b.FS.Open(name)
}

func TestHostileImages(t *testing.T) {
	many := bytes.Buffer{}
	for n := range maxPackages + 1 {
		fmt.Fprintf(&many, "Package: p%d\nStatus: install ok installed\nVersion: 1\n\n", n)
	}
	huge := fstest.MapFS{"var/lib/dpkg/status": {Data: make([]byte, 10)}}
	for name, c := range map[string]struct {
		root fs.FS
		says string
	}{
		"too many packages":               {tree(map[string][]byte{"var/lib/dpkg/status": many.Bytes()}), "more than 20000 packages"},
		"a folder as database":            {tree(map[string][]byte{"var/lib/dpkg/status/x": nil}), "is not a file"},
		"a database that is no text":      {huge, "cannot be read"},
		"a defect of an extractor":        {broken{tree(map[string][]byte{"app/node_modules/x/package.json": []byte("{}")})}, "a defect"},
		"an RPM database of the old form": {tree(map[string][]byte{"var/lib/rpm/Packages": []byte("x")}), "Berkeley"},
		"an RPM database that is none":    {tree(map[string][]byte{"var/lib/rpm/rpmdb.sqlite": []byte("not SQLite at all, but long enough for a head of one hundred bytes, which it would have otherwise")}), "cannot be read"},
		"an RPM header that is cut":       {tree(map[string][]byte{"var/lib/rpm/rpmdb.sqlite": rpmSQLite(t, header(t, "bash", 0)[:60])}), "not sound"},
		"slots that are none":             {tree(map[string][]byte{"var/lib/rpm/Packages.db": bytes.Replace(rpmNDB(), []byte("Slot"), []byte("slot"), 1)}), "a slot is damaged"},
		"an RPM database that is open":    {tree(map[string][]byte{"var/lib/rpm/rpmdb.sqlite": rpmSQLite(t, header(t, "bash", 0)), "var/lib/rpm/rpmdb.sqlite-wal": []byte("x")}), "was not closed"},
		"an RPM header that is too long":  {tree(map[string][]byte{"var/lib/rpm/rpmdb.sqlite": rpmSQLite(t, header(t, "bash", 0), make([]byte, maxHeader+1))}), "not sound"},
		"a database that is a link":       {fstest.MapFS{"x": {Data: []byte("P:x\nV:1\n\n")}, "lib/apk/db/installed": {Data: []byte("../../../x"), Mode: fs.ModeSymlink}}, "behind a symbolic link"},
		"a database in a linked folder":   {fstest.MapFS{"x/status": {Data: []byte("Package: x\nStatus: install ok installed\nVersion: 1\n\n")}, "var/lib/dpkg": {Data: []byte("../../x"), Mode: fs.ModeSymlink}}, "behind a symbolic link"},
		"a blob that is elsewhere":        {tree(map[string][]byte{"var/lib/rpm/Packages.db": rpmNDB(header(t, "bash", 0))[:4100]}), "cannot be read"},
	} {
		_, err := Inventory(t.Context(), c.root, layerOf)
		if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Hint == "" || !strings.Contains(k.Message, c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWhatAPackageSaysOfItselfIsBounded: a name is not for a terminal to obey.
func TestWhatAPackageSaysOfItselfIsBounded(t *testing.T) {
	i, err := Inventory(t.Context(), tree(map[string][]byte{
		"a/node_modules/a/package.json": []byte(`{"name":"\u001b[2Jx","version":"1.0.0"}`),
		"a/node_modules/b/package.json": []byte(`{"name":"` + strings.Repeat("x", maxText+1) + `","version":"1.0.0"}`),
		"a/node_modules/c/package.json": []byte(`{"name":"fine","version":"1.0.0"}`),
	}), layerOf)
	if err != nil || len(i.Packages) != 1 || i.Packages[0].Name != "fine" {
		t.Errorf("%+v %v", i, err)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(header(f, "bash", 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseHeader(b); err == nil && h.name == "" {
			t.Error("without a name")
		}
	})
}

func TestARequestThatIsNone(t *testing.T) {
	if _, err := Inspect(t.Context(), Image{}, json.RawMessage(`[]`)); err == nil {
		t.Error("no error")
	}
}
