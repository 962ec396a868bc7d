// Package scan says what software an image contains: its inventory, as Kiln
// keeps it and as CycloneDX and SPDX write it.
//
// An image comes from strangers. Its inventory is made by a process of its own,
// which has no privileges and nothing but the open files of the layers (Inspect,
// package confine): everything is read through an fs.FS, no path is opened, no
// temporary file written. Packages, the length of what they say of themselves,
// the sizes of databases and the time are bounded. What cannot be read of a
// distribution's package database is an error, never an empty inventory.
//
// The package never judges: what is known of a package is for others to say.
package scan

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	cpb "github.com/google/osv-scalibr/binary/proto/config_go_proto"
	"github.com/google/osv-scalibr/extractor"
	"github.com/google/osv-scalibr/extractor/filesystem"
	"github.com/google/osv-scalibr/extractor/filesystem/language/golang/gobinary"
	"github.com/google/osv-scalibr/extractor/filesystem/language/java/archive"
	"github.com/google/osv-scalibr/extractor/filesystem/language/javascript/packagejson"
	"github.com/google/osv-scalibr/extractor/filesystem/language/python/wheelegg"
	"github.com/google/osv-scalibr/extractor/filesystem/language/rust/cargoauditable"
	"github.com/google/osv-scalibr/extractor/filesystem/os/apk"
	"github.com/google/osv-scalibr/extractor/filesystem/os/dpkg"
	scalibrfs "github.com/google/osv-scalibr/fs"
	scalibrlog "github.com/google/osv-scalibr/log"
	"github.com/google/osv-scalibr/plugin"
	"github.com/google/osv-scalibr/stats"

	"github.com/kilnproject/kiln"
)

// Bounds of an inventory.
const (
	maxPackages  = 20_000
	maxText      = 512 // bytes of a name, a version, a licence; what is longer is no package's
	maxLocations = 20  // of one package, the first ones
	maxLicenses  = 20
	maxPath      = 4096
	maxInodes    = 2_000_000
	maxDatabase  = 256 << 20 // bytes of a distribution's package database
	maxProgram   = 4 << 30   // bytes of an executable, which is not read whole
	maxDocument  = 16 << 20  // bytes of a manifest of one package
	maxArchive   = 1 << 30   // bytes read of one Java archive and what is in it
	maxTime      = 5 * time.Minute
)

// extractors find packages, each by its own kind of file. Of npm only what is
// unpacked counts: a lock file beside it tells what was asked for.
func extractors() ([]filesystem.Extractor, error) {
	bounded := func(most int64) *cpb.PluginConfig { return &cpb.PluginConfig{MaxFileSizeBytes: most} }
	java := bounded(maxArchive)
	hash := false
	java.PluginSpecific = []*cpb.PluginSpecificConfig{{Config: &cpb.PluginSpecificConfig_JavaArchive{
		JavaArchive: &cpb.JavaArchiveConfig{MaxZipDepth: 8, MaxOpenedBytes: maxArchive, HashJars: &hash},
	}}}
	var all []filesystem.Extractor
	for _, e := range []struct {
		make   func(*cpb.PluginConfig) (filesystem.Extractor, error)
		config *cpb.PluginConfig
	}{
		{dpkg.New, bounded(maxDatabase)},
		{apk.New, bounded(maxDatabase)},
		{gobinary.New, bounded(maxProgram)},
		{cargoauditable.New, bounded(maxProgram)},
		{packagejson.New, bounded(maxDocument)},
		{wheelegg.New, bounded(maxArchive)},
		{archive.New, java},
	} {
		one, err := e.make(e.config)
		if err != nil {
			return nil, fmt.Errorf("inventory: %w", err)
		}
		all = append(all, one)
	}
	return all, nil
}

// databases are where distributions keep what is installed, and who reads it.
func databases() map[string]string {
	return map[string]string{"var/lib/dpkg/status": dpkg.Name, "lib/apk/db/installed": apk.Name, "usr/lib/apk/db/installed": apk.Name}
}

// Inventory is the software of an image's root file system. layer tells which
// layer a path of it came with. The file system must serve many readers at once.
func Inventory(ctx context.Context, root fs.FS, layer func(path string) kiln.Digest) (inventory kiln.Inventory, err error) {
	scalibrlog.SetLogger(quiet{})
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	defer func() { // what parses the formats of the world has defects
		if p := recover(); p != nil {
			err = kiln.Errorf(kiln.CodeFailed, "remove the file that cannot be read from the image", "the inventory of the image: %v", p)
		}
	}()
	if err := checkDatabases(root); err != nil {
		return kiln.Inventory{}, err
	}
	found, err := extract(ctx, root)
	if err != nil {
		return kiln.Inventory{}, err
	}
	inventory = kiln.Inventory{System: osRelease(root)["PRETTY_NAME"]}
	inventory.Packages, err = collect(found, layer)
	return inventory, err
}

// extract runs all extractors over the file system.
func extract(ctx context.Context, root fs.FS) ([]*extractor.Package, error) {
	all, err := extractors()
	if err != nil {
		return nil, err
	}
	found, statuses, err := filesystem.Run(ctx, &filesystem.Config{
		Extractors: all, ScanRoots: []*scalibrfs.ScanRoot{{FS: served{root}}}, MaxInodes: maxInodes, Stats: stats.NoopCollector{},
	})
	if ctx.Err() != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "make the image smaller", "the inventory of the image took longer than %s: %w", maxTime, ctx.Err())
	}
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "make the image smaller, or look at the file that is named", "the inventory of the image: %w", err)
	}
	for _, s := range statuses {
		if err := unreadable(s); err != nil {
			return nil, err
		}
	}
	rpms, err := installedRPMs(ctx, root)
	return append(found.Packages, rpms...), err
}

// unreadable tells a package database that could not be read whole. Single
// archives and programs that are damaged are no software that anyone could run.
func unreadable(s *plugin.Status) error {
	if s.Status == nil || s.Status.Status == plugin.ScanStatusSucceeded || s.Name != dpkg.Name && s.Name != apk.Name {
		return nil
	}
	return kiln.Errorf(kiln.CodeInvalid, "bake the image again from a sound base", "the package database of the image cannot be read: %s", short(s.Status.String()))
}

// checkDatabases refuses what the extractors would skip without a word: they
// follow no symbolic links.
func checkDatabases(root fs.FS) error {
	read, hidden := map[string]bool{}, map[string]string{}
	for name, extractor := range databases() {
		info, err := fs.Stat(root, name)
		if err != nil {
			continue
		}
		if !info.Mode().IsRegular() || info.Size() > maxDatabase {
			return kiln.Errorf(kiln.CodeInvalid, "bake the image again from a sound base",
				"the package database /%s of the image is not a file of at most %d bytes", name, maxDatabase)
		}
		if linked(root, name) {
			hidden[extractor] = name
		} else {
			read[extractor] = true
		}
	}
	for extractor, name := range hidden {
		if !read[extractor] {
			return kiln.Errorf(kiln.CodeInvalid, "have it there as a file, in folders that are no links",
				"the package database /%s of the image is behind a symbolic link, where it is not read", name)
		}
	}
	return nil
}

// linked says whether a part of a path that is there is a symbolic link.
func linked(root fs.FS, name string) bool {
	for name != "." {
		parent := path.Dir(name)
		entries, err := fs.ReadDir(root, parent)
		if err != nil || slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == path.Base(name) && e.Type()&fs.ModeSymlink != 0 }) {
			return true
		}
		name = parent
	}
	return false
}

// collect turns what was found into packages, one for each package URL.
func collect(found []*extractor.Package, layer func(string) kiln.Digest) ([]kiln.Package, error) {
	byURL := map[string]*kiln.Package{}
	for _, f := range found {
		p, ok := packageOf(f)
		if !ok {
			continue
		}
		known := byURL[p.PURL]
		if known == nil {
			if len(byURL) == maxPackages {
				return nil, kiln.Errorf(kiln.CodeInvalid, "split the image", "the image has more than %d packages", maxPackages)
			}
			byURL[p.PURL] = &p
			continue
		}
		known.Locations = append(known.Locations, p.Locations...)
	}
	all := make([]kiln.Package, 0, len(byURL))
	for _, p := range byURL {
		slices.Sort(p.Locations)
		p.Locations = slices.Compact(p.Locations)
		p.Locations = p.Locations[:min(len(p.Locations), maxLocations)]
		if len(p.Locations) > 0 {
			p.Layer = layer(p.Locations[0])
		}
		all = append(all, *p)
	}
	slices.SortFunc(all, func(a, b kiln.Package) int { return strings.Compare(a.PURL, b.PURL) })
	return all, nil
}

// osRelease reads what a distribution says of itself (os-release(5)), nil
// where it says nothing.
func osRelease(root fs.FS) map[string]string {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		if info, err := fs.Stat(root, name); err != nil || info.Size() > maxPath {
			continue
		}
		b, err := fs.ReadFile(root, name)
		if err != nil {
			continue
		}
		said := map[string]string{}
		for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
			if key, value, ok := strings.Cut(s.Text(), "="); ok {
				said[key] = short(strings.Trim(value, `"'`))
			}
		}
		return said
	}
	return nil
}

// short bounds a text for people.
func short(text string) string {
	if len(text) > maxText {
		return strings.ToValidUTF8(text[:maxText], "") + "..."
	}
	return text
}

// served is a file system as the extractors want it.
type served struct{ root fs.FS }

func (s served) Open(name string) (fs.File, error)          { return s.root.Open(name) }
func (s served) ReadDir(name string) ([]fs.DirEntry, error) { return fs.ReadDir(s.root, name) }
func (s served) Stat(name string) (fs.FileInfo, error)      { return fs.Stat(s.root, name) }

// quiet is a log of the extractors that nobody reads.
type quiet struct{}

func (quiet) Errorf(string, ...any) {}
func (quiet) Error(...any)          {}
func (quiet) Warnf(string, ...any)  {}
func (quiet) Warn(...any)           {}
func (quiet) Infof(string, ...any)  {}
func (quiet) Info(...any)           {}
func (quiet) Debugf(string, ...any) {}
func (quiet) Debug(...any)          {}
