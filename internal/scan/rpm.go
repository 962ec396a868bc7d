package scan

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/google/osv-scalibr/extractor"
	rpmmeta "github.com/google/osv-scalibr/extractor/filesystem/os/rpm/metadata"
	"github.com/package-url/packageurl-go"
	_ "modernc.org/sqlite" // the driver
	"modernc.org/sqlite/vfs"

	"github.com/kilnproject/kiln"
)

// The library that reads RPM's databases opens paths, which a worker cannot.
// The databases of today are read here: SQLite through the file system that is
// handed in, SUSE's by its two tables. What is in them are the headers of
// packages (rpm.org, "RPM V4 Package Format", header structure).

// Tags of a header.
const (
	tagName      = 1000
	tagVersion   = 1001
	tagRelease   = 1002
	tagEpoch     = 1003
	tagLicense   = 1014
	tagArch      = 1022
	tagSourceRPM = 1044
)

// Types of a tag's value.
const (
	typeInt32  = 4
	typeString = 6
)

const (
	maxHeader = 16 << 20 // bytes of one package's header
	maxTags   = 1 << 16
)

var errHeader = errors.New("a package's header is not sound")

// installedRPMs reads the RPM database of an image, if there is one.
func installedRPMs(ctx context.Context, root fs.FS) ([]*extractor.Package, error) {
	for _, dir := range []string{"usr/lib/sysimage/rpm/", "var/lib/rpm/", "usr/share/rpm/"} {
		for _, db := range []struct {
			name string
			read func(context.Context, fs.FS, string, func([]byte) error) error
		}{{"rpmdb.sqlite", readSQLite}, {"Packages.db", readNDB}, {"Packages", refuseBerkeley}} {
			info, err := fs.Stat(root, dir+db.name)
			if err != nil {
				continue
			}
			if !info.Mode().IsRegular() || info.Size() > maxDatabase {
				return nil, badRPM(dir+db.name, fmt.Errorf("it is not a file of at most %d bytes", maxDatabase))
			}
			all, err := rpmsIn(ctx, root, dir+db.name, db.read)
			if err != nil {
				return nil, badRPM(dir+db.name, err)
			}
			return all, nil
		}
	}
	return nil, nil
}

func badRPM(name string, err error) error {
	if k := (*kiln.Error)(nil); errors.As(err, &k) {
		return err
	}
	return kiln.Errorf(kiln.CodeInvalid, "bake the image again from a sound base", "the package database /%s of the image cannot be read: %w", name, err)
}

func rpmsIn(ctx context.Context, root fs.FS, name string, read func(context.Context, fs.FS, string, func([]byte) error) error) ([]*extractor.Package, error) {
	system := osRelease(root)
	var all []*extractor.Package
	err := read(ctx, root, name, func(header []byte) error {
		if len(all) == maxPackages {
			return kiln.Errorf(kiln.CodeInvalid, "split the image", "the image has more than %d packages", maxPackages)
		}
		h, err := parseHeader(header)
		if err != nil {
			return err
		}
		if h.name == "gpg-pubkey" { // a key, not software
			return nil
		}
		all = append(all, &extractor.Package{
			Name: h.name, Version: h.version + "-" + h.release, PURLType: packageurl.TypeRPM, Location: extractor.LocationFromPath(name), Licenses: []string{h.license},
			Metadata: &rpmmeta.Metadata{
				PackageName: h.name, SourceRPM: h.source, Epoch: h.epoch, Architecture: h.arch,
				OSID: system["ID"], OSVersionID: system["VERSION_ID"], OSCPEName: system["CPE_NAME"], OSName: system["NAME"], OSPrettyName: system["PRETTY_NAME"],
			},
		})
		return nil
	})
	return all, err
}

// readSQLite reads rpmdb.sqlite without a path.
func readSQLite(ctx context.Context, root fs.FS, name string, each func([]byte) error) error {
	for _, journal := range []string{"-wal", "-journal"} {
		if info, err := fs.Stat(root, name+journal); err == nil && info.Size() > 0 {
			return kiln.Errorf(kiln.CodeInvalid, "let rpm end before the RUN does; rpm --rebuilddb brings it in order",
				"the RPM database of the image was not closed: /%s has changes that are not in it", name+journal)
		}
	}
	system, files, err := vfs.New(served{root})
	if err != nil {
		return err
	}
	defer func() { _ = files.Close() }() // nothing was written
	db, err := sql.Open("sqlite", "file:"+name+"?mode=ro&immutable=1&vfs="+system)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()                                                                              // nothing was written
	rows, err := db.QueryContext(ctx, "SELECT CASE WHEN length(blob) <= ? THEN blob END FROM Packages", maxHeader) // no header is not sound
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err tells
	for rows.Next() {
		var header []byte
		if err := rows.Scan(&header); err != nil {
			return err
		}
		if err := each(header); err != nil {
			return err
		}
	}
	return rows.Err()
}

// readNDB reads Packages.db: pages of slots, each of which tells where a
// header is (rpm, lib/backend/ndb/rpmpkg.c).
func readNDB(ctx context.Context, root fs.FS, name string, each func([]byte) error) error {
	const block, page = 16, 4096
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	r, ok := f.(io.ReaderAt)
	if !ok {
		return errors.ErrUnsupported
	}
	head := make([]byte, 2*block)
	if _, err := r.ReadAt(head, 0); err != nil {
		return err
	}
	pages := binary.LittleEndian.Uint32(head[12:])
	if string(head[:4]) != "RpmP" || binary.LittleEndian.Uint32(head[4:]) != 0 || pages == 0 || pages > 2048 {
		return errors.New("its head is not that of a database")
	}
	slots := make([]byte, int(pages)*page-len(head))
	if _, err := r.ReadAt(slots, int64(len(head))); err != nil {
		return err
	}
	for ; len(slots) > 0; slots = slots[block:] {
		if string(slots[:4]) != "Slot" {
			return errors.New("a slot is damaged")
		}
		number, at := binary.LittleEndian.Uint32(slots[4:]), binary.LittleEndian.Uint32(slots[8:])
		if number == 0 {
			continue
		}
		header, err := blobAt(r, int64(at)*block, number)
		if err == nil {
			err = errors.Join(ctx.Err(), each(header))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// blobAt reads the header of a package of Packages.db.
func blobAt(r io.ReaderAt, at int64, number uint32) ([]byte, error) {
	head := make([]byte, 16)
	if _, err := r.ReadAt(head, at); err != nil {
		return nil, err
	}
	length := binary.LittleEndian.Uint32(head[12:])
	if string(head[:4]) != "BlbS" || binary.LittleEndian.Uint32(head[4:]) != number || length > maxHeader {
		return nil, errHeader
	}
	header := make([]byte, length)
	_, err := r.ReadAt(header, at+int64(len(head)))
	return header, err
}

// refuseBerkeley says of the old form that nothing can be said.
func refuseBerkeley(context.Context, fs.FS, string, func([]byte) error) error {
	return kiln.Errorf(kiln.CodeRefused, "use a base whose RPM database is SQLite, as all distributions make since 2021",
		"the RPM database of the image is of the old Berkeley form, which cannot be inventoried")
}

// rpmHeader is what a header says of a package.
type rpmHeader struct {
	name, version, release, license, arch, source string
	epoch                                         int
}

// parseHeader reads the index of a header, and the values it needs.
func parseHeader(b []byte) (rpmHeader, error) {
	var h rpmHeader
	if len(b) < 8 {
		return h, errHeader
	}
	tags, size := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if tags > maxTags || size > maxHeader || len(b) < 8+16*int(tags)+int(size) {
		return h, errHeader
	}
	values := b[8+16*tags:][:size]
	for index := b[8 : 8+16*tags]; len(index) > 0; index = index[16:] {
		if err := h.take(binary.BigEndian.Uint32(index), binary.BigEndian.Uint32(index[4:]), binary.BigEndian.Uint32(index[8:]), values); err != nil {
			return h, err
		}
	}
	if h.name == "" || h.version == "" {
		return h, errHeader
	}
	return h, nil
}

// take keeps a tag's value if it is one of those that are needed.
func (h *rpmHeader) take(tag, kind, at uint32, values []byte) error {
	text := map[uint32]*string{tagName: &h.name, tagVersion: &h.version, tagRelease: &h.release, tagLicense: &h.license, tagArch: &h.arch, tagSourceRPM: &h.source}[tag]
	switch {
	case text != nil && kind == typeString:
		if int(at) >= len(values) {
			return errHeader
		}
		end := bytes.IndexByte(values[at:], 0)
		if end < 0 {
			return errHeader
		}
		*text = string(values[at:][:end])
	case tag == tagEpoch && kind == typeInt32:
		if int(at)+4 > len(values) {
			return errHeader
		}
		h.epoch = int(binary.BigEndian.Uint32(values[at:]))
	}
	return nil
}
