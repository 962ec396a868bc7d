package scan

import (
	"archive/zip"
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
)

// TestMain is also the worker that the tests start: it inventories the files
// of its request.
func TestMain(m *testing.M) {
	if len(os.Args) != 2 || os.Args[1] != Task {
		os.Exit(m.Run())
	}
	err := confine.Serve(context.Background(), func(ctx context.Context, request json.RawMessage, _ []*os.File) (any, error) {
		var files map[string][]byte
		if err := json.Unmarshal(request, &files); err != nil {
			return nil, err
		}
		return Inspect(ctx, Image{Root: tree(files), Layer: layerOf, Mark: func(_ context.Context, asked json.RawMessage) (any, error) {
			return map[string]any{"asked": asked, "files": len(files)}, nil
		}}, json.RawMessage(`{"image":"sha256:0","marks":{"x":1}}`))
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// worker is this test's executable as a worker.
func worker(t testing.TB) confine.Program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return confine.Program{Path: self}
}

func tree(files map[string][]byte) fs.FS {
	m := fstest.MapFS{}
	for name, content := range files {
		m[name] = &fstest.MapFile{Data: content, Mode: 0o755}
	}
	return m
}

// layerOf is a layer for every first folder.
func layerOf(path string) kiln.Digest {
	first, _, _ := bytes.Cut([]byte(path[1:]), []byte("/"))
	return kiln.Digest("layer of " + string(first))
}

const debian = `PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION_CODENAME=bookworm
ID=debian
`

const dpkgStatus = `Package: libssl3
Status: install ok installed
Architecture: amd64
Source: openssl
Version: 3.0.9-1
Description: Secure Sockets Layer

Package: openssh-server
Status: deinstall ok config-files
Architecture: amd64
Version: 1:9.2p1-2
Description: gone

Package: hello
Status: install ok installed
Architecture: amd64
Source: hello (2.10-3)
Version: 2.10-3+b1
Description: example
`

// files are an image with something of every kind.
func files(t testing.TB) map[string][]byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./testdata/program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"etc/os-release":                             []byte(debian),
		"var/lib/dpkg/status":                        []byte(dpkgStatus),
		"app/program":                                program,
		"app/again/program":                          program,
		"app/node_modules/left-pad/package.json":     []byte(`{"name":"left-pad","version":"1.3.0","license":"WTFPL"}`),
		"app/node_modules/@scope/thing/package.json": []byte(`{"name":"@scope/thing","version":"2.0.0"}`),
		"usr/lib/python3/dist-packages/Some_Thing-1.0.dist-info/METADATA": []byte("Metadata-Version: 2.1\nName: Some_Thing\nVersion: 1.0\nLicense: MIT\n"),
		"app/lib/thing.jar": jar(t),
	}
}

func jar(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create("META-INF/maven/org.example/thing/pom.properties")
	if err == nil {
		_, err = w.Write([]byte("groupId=org.example\nartifactId=thing\nversion=4.5.6\n"))
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const rocky = `PRETTY_NAME="Rocky Linux 9.3 (Blue Onyx)"
NAME="Rocky Linux"
VERSION_ID="9.3"
ID="rocky"
`

// header is a package's header in an RPM database.
func header(t testing.TB, name string, epoch uint32) []byte {
	t.Helper()
	var index, values []byte
	add := func(tag, kind uint32, value []byte) {
		for _, n := range []uint32{tag, kind, uint32(len(values)), 1} {
			index = binary.BigEndian.AppendUint32(index, n)
		}
		values = append(values, value...)
	}
	add(tagEpoch, typeInt32, binary.BigEndian.AppendUint32(nil, epoch))
	for tag, value := range map[uint32]string{tagName: name, tagVersion: "1.2", tagRelease: "3.el9", tagLicense: "MIT", tagArch: "x86_64", tagSourceRPM: "src-1.2-3.el9.src.rpm"} {
		add(tag, typeString, append([]byte(value), 0))
	}
	h := binary.BigEndian.AppendUint32(nil, uint32(len(index)/16))
	h = binary.BigEndian.AppendUint32(h, uint32(len(values)))
	return append(append(h, index...), values...)
}

func rpmSQLite(t testing.TB, headers ...[]byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rpmdb.sqlite")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)"); err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		if _, err := db.ExecContext(t.Context(), "INSERT INTO Packages (blob) VALUES (?)", h); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func rpmNDB(headers ...[]byte) []byte {
	little := func(n ...uint32) (b []byte) {
		for _, one := range n {
			b = binary.LittleEndian.AppendUint32(b, one)
		}
		return b
	}
	b := append([]byte("RpmP"), little(0, 1, 1, uint32(len(headers)+1), 0, 0, 0)...)
	var blobs []byte
	for n := range 4096/16 - 2 {
		b = append(b, "Slot"...)
		if n >= len(headers) {
			b = append(b, little(0, 0, 0)...)
			continue
		}
		b = append(b, little(uint32(n+1), uint32(4096+len(blobs))/16, 1)...)
		blobs = append(append(append(blobs, "BlbS"...), little(uint32(n+1), 0, uint32(len(headers[n])))...), headers[n]...)
		for len(blobs)%16 != 0 {
			blobs = append(blobs, 0)
		}
	}
	return append(b, blobs...)
}
