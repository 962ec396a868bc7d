// Package strip makes an image's layer of a Debian root as mmdebstrap leaves
// it. It reads what packages wrote, so a process without privileges does it.
package strip

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Task names this work as a worker's task.
const Task = "strip"

// Work does a Task in the process of a worker: the request is a Filter, and the
// first file is copied to the second.
func Work(_ context.Context, request json.RawMessage, files []*os.File) (any, error) {
	var f Filter
	if err := json.Unmarshal(request, &f); err != nil {
		return nil, fmt.Errorf("read the task: %w", err)
	}
	if len(files) != 2 {
		return nil, errors.New("the task has not the files that it needs")
	}
	return nil, f.Copy(files[1], files[0])
}

// Filter says what the layer has: nothing of this machine or of this day, no
// devices, and for the runtime variant no package tools, set-id bits or
// capabilities of files.
type Filter struct {
	Epoch   int64             `json:"epoch"`    // latest time of a file, in Unix seconds
	KeepApt bool              `json:"keep_apt"` // not the runtime variant
	Extra   map[string]string `json:"extra"`    // files to add, by path
}

func (f Filter) epoch() time.Time { return time.Unix(f.Epoch, 0).UTC() }

const setID = 0o6000

// Copy filters a tar stream.
func (f Filter) Copy(out io.Writer, in io.Reader) error {
	w := tar.NewWriter(out)
	r := tar.NewReader(in)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the installed packages: %w", err)
		}
		name := path.Clean("/" + h.Name)[1:]
		if f.leaveOut(name, h.Typeflag) {
			continue
		}
		if err := f.entry(w, h, name, r); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.Extra)) {
		content := f.Extra[name]
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: f.epoch(), Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // padding after the end
		return fmt.Errorf("read the installed packages: %w", err)
	}
	return w.Close()
}

func (f Filter) entry(w *tar.Writer, h *tar.Header, name string, content io.Reader) error {
	out := &tar.Header{
		Typeflag: h.Typeflag,
		Name:     name,
		Linkname: h.Linkname,
		Size:     h.Size,
		Mode:     h.Mode & 0o7777,
		Uid:      h.Uid,
		Gid:      h.Gid,
		ModTime:  h.ModTime,
		Format:   tar.FormatPAX,
	}
	if out.ModTime.After(f.epoch()) {
		out.ModTime = f.epoch()
	}
	out.ModTime = out.ModTime.Truncate(time.Second)
	if h.Typeflag == tar.TypeDir {
		out.Name = strings.TrimPrefix(name+"/", "/")
		if name == "" {
			out.Name = "./"
		}
	}
	if h.Typeflag == tar.TypeLink {
		out.Linkname = path.Clean("/" + h.Linkname)[1:]
	}
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr.") && (f.KeepApt || key != "SCHILY.xattr.security.capability") {
			if out.PAXRecords == nil {
				out.PAXRecords = map[string]string{}
			}
			out.PAXRecords[key] = value
		}
	}
	if !f.KeepApt && h.Typeflag != tar.TypeDir {
		out.Mode &^= setID
	}
	if err := w.WriteHeader(out); err != nil {
		return err
	}
	_, err := io.Copy(w, content)
	return err
}

// leaveOut says whether an entry is not part of an image.
func (f Filter) leaveOut(name string, kind byte) bool {
	if kind == tar.TypeChar || kind == tar.TypeBlock || kind == tar.TypeFifo {
		return true
	}
	if name == "" || !fs.ValidPath(name) {
		return name != ""
	}
	for _, dir := range []string{
		"dev", "proc", "sys", "run", "tmp", "var/tmp",
		"var/cache/apt", "var/cache/debconf", "var/cache/ldconfig", "var/lib/apt/lists", "var/log",
	} {
		if strings.HasPrefix(name, dir+"/") {
			return kind != tar.TypeDir || !strings.HasPrefix(name, "var/log/")
		}
	}
	if slices.Contains([]string{
		"etc/hostname", "etc/resolv.conf", "etc/machine-id", "var/lib/dbus/machine-id", "etc/.pwd.lock",
		"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-",
		"etc/dpkg/dpkg.cfg.d/99mmdebstrap", "etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/sources.list",
		"var/lib/dpkg/status-old", "var/lib/dpkg/available", "var/lib/dpkg/lock", "var/lib/dpkg/lock-frontend",
	}, name) {
		return true
	}
	if strings.HasPrefix(name, "etc/apt/sources.list.d/") {
		return true
	}
	return !f.KeepApt && packageTool(name)
}

// packageTool says whether a file only serves to change what is installed.
// The list of what is installed stays, for inventories.
func packageTool(name string) bool {
	for _, dir := range []string{"etc/apt", "usr/lib/apt", "var/lib/apt", "etc/dpkg", "usr/share/debconf", "var/lib/dpkg/updates", "var/lib/dpkg/parts", "var/lib/dpkg/triggers"} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	if rest, ok := strings.CutPrefix(name, "var/lib/dpkg/info/"); ok {
		// Lists of files and their sums, not the scripts.
		return !strings.HasSuffix(rest, ".list") && !strings.HasSuffix(rest, ".md5sums")
	}
	dir, base := path.Split(name)
	if dir != "usr/bin/" && dir != "usr/sbin/" && dir != "bin/" && dir != "sbin/" {
		return false
	}
	return base == "dpkg" || strings.HasPrefix(base, "dpkg-") || strings.HasPrefix(base, "apt-") || base == "apt" || base == "dselect"
}
