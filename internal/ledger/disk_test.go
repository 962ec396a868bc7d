package ledger

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// operation is one thing that SQLite asked of the disk. Until the file was
// synced it may be lost, whole or by sectors, whatever came after it.
type operation struct {
	kind operationKind
	file string // its name below the folder
	at   int64  // of a write: where; of a truncation: to how many bytes
	data []byte
}

type operationKind int

const (
	created operationKind = iota
	wrote
	truncated
	synced
	deleted        // may be lost until a sync
	deletedForSure // with its folder synced
)

// disk records what SQLite asks of files through a VFS of its own, and does
// it.
type disk struct {
	mu  sync.Mutex
	ops []operation
}

func (d *disk) add(o operation) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ops = append(d.ops, o)
}

// length is how many operations were recorded.
func (d *disk) length() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ops)
}

// recording is the VFS that is registered with SQLite. There is one per
// process, and one disk that it records for.
var recording struct {
	sync.Mutex
	once  sync.Once
	disk  *disk
	base  *sqlite3.Tsqlite3_vfs
	above map[uintptr]uintptr // methods that record, by those of the system
	files map[uintptr]opened
}

// opened is an open file.
type opened struct {
	name  string
	below *sqlite3.Tsqlite3_io_methods
}

const recordingVFS = "kiln-recording"

// record makes the VFS record for a disk until the returned function is called.
func record(d *disk) (stop func()) {
	recording.Lock()
	defer recording.Unlock()
	recording.once.Do(registerVFS)
	if recording.disk != nil {
		panic("another disk is recorded")
	}
	recording.disk, recording.files = d, map[uintptr]opened{}
	return func() {
		recording.Lock()
		defer recording.Unlock()
		recording.disk = nil
	}
}

// registerVFS makes a copy of the system's VFS whose files record.
func registerVFS() {
	tls := libc.NewTLS()
	base := sqlite3.Xsqlite3_vfs_find(tls, 0)
	recording.base = (*sqlite3.Tsqlite3_vfs)(memory(base))
	size := unsafe.Sizeof(sqlite3.Tsqlite3_vfs{})
	own := libc.Xmalloc(tls, libc.Tsize_t(size))
	vfs := (*sqlite3.Tsqlite3_vfs)(memory(own))
	*vfs = *recording.base
	name, err := libc.CString(recordingVFS)
	if err != nil {
		panic(err)
	}
	vfs.FzName, vfs.FpNext = name, 0
	*(*func(*libc.TLS, uintptr, uintptr, uintptr, int32, uintptr) int32)(unsafe.Pointer(&vfs.FxOpen)) = openRecorded
	*(*func(*libc.TLS, uintptr, uintptr, int32) int32)(unsafe.Pointer(&vfs.FxDelete)) = deleteRecorded
	if rc := sqlite3.Xsqlite3_vfs_register(tls, own, 0); rc != sqlite3.SQLITE_OK {
		panic(fmt.Sprintf("register a VFS: %d", rc))
	}
}

// memory is an address of SQLite's, which no collector moves.
func memory(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }

// call is a function of C's by its address.
func call[F any](address *uintptr) F { return *(*F)(unsafe.Pointer(address)) }

func openRecorded(tls *libc.TLS, vfs, name, file uintptr, flags int32, out uintptr) int32 {
	path := ""
	fresh := false
	if name != 0 {
		path = libc.GoString(name)
		_, err := os.Stat(path)
		fresh = err != nil
	}
	rc := call[func(*libc.TLS, uintptr, uintptr, uintptr, int32, uintptr) int32](&recording.base.FxOpen)(tls, vfs, name, file, flags, out)
	if rc != sqlite3.SQLITE_OK || path == "" {
		return rc
	}
	recording.Lock()
	defer recording.Unlock()
	methods := (*uintptr)(memory(file)) // sqlite3_file begins with them
	recording.files[file] = opened{filepath.Base(path), (*sqlite3.Tsqlite3_io_methods)(memory(*methods))}
	*methods = recorded(tls, *methods)
	if fresh {
		recording.disk.add(operation{kind: created, file: filepath.Base(path)})
	}
	return rc
}

// recorded is a copy of methods that record. recording is locked.
func recorded(tls *libc.TLS, methods uintptr) uintptr {
	if own, ok := recording.above[methods]; ok {
		return own
	}
	own := libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(sqlite3.Tsqlite3_io_methods{})))
	above := (*sqlite3.Tsqlite3_io_methods)(memory(own))
	*above = *(*sqlite3.Tsqlite3_io_methods)(memory(methods))
	*(*func(*libc.TLS, uintptr, uintptr, int32, int64) int32)(unsafe.Pointer(&above.FxWrite)) = writeRecorded
	*(*func(*libc.TLS, uintptr, int64) int32)(unsafe.Pointer(&above.FxTruncate)) = truncateRecorded
	*(*func(*libc.TLS, uintptr, int32) int32)(unsafe.Pointer(&above.FxSync)) = syncRecorded
	if recording.above == nil {
		recording.above = map[uintptr]uintptr{}
	}
	recording.above[methods] = own
	return own
}

// of is an open file and its disk.
func of(file uintptr) (opened, *disk) {
	recording.Lock()
	defer recording.Unlock()
	return recording.files[file], recording.disk
}

func deleteRecorded(tls *libc.TLS, vfs, name uintptr, syncFolder int32) int32 {
	rc := call[func(*libc.TLS, uintptr, uintptr, int32) int32](&recording.base.FxDelete)(tls, vfs, name, syncFolder)
	if rc == sqlite3.SQLITE_OK {
		kind := deleted
		if syncFolder != 0 {
			kind = deletedForSure
		}
		recording.Lock()
		defer recording.Unlock()
		recording.disk.add(operation{kind: kind, file: filepath.Base(libc.GoString(name))})
	}
	return rc
}

func writeRecorded(tls *libc.TLS, file, buffer uintptr, n int32, at int64) int32 {
	f, d := of(file)
	data := slices.Clone(unsafe.Slice((*byte)(memory(buffer)), n))
	rc := call[func(*libc.TLS, uintptr, uintptr, int32, int64) int32](&f.below.FxWrite)(tls, file, buffer, n, at)
	if rc == sqlite3.SQLITE_OK {
		d.add(operation{kind: wrote, file: f.name, at: at, data: data})
	}
	return rc
}

func truncateRecorded(tls *libc.TLS, file uintptr, size int64) int32 {
	f, d := of(file)
	rc := call[func(*libc.TLS, uintptr, int64) int32](&f.below.FxTruncate)(tls, file, size)
	if rc == sqlite3.SQLITE_OK {
		d.add(operation{kind: truncated, file: f.name, at: size})
	}
	return rc
}

func syncRecorded(tls *libc.TLS, file uintptr, flags int32) int32 {
	f, d := of(file)
	rc := call[func(*libc.TLS, uintptr, int32) int32](&f.below.FxSync)(tls, file, flags)
	if rc == sqlite3.SQLITE_OK {
		d.add(operation{kind: synced, file: f.name})
	}
	return rc
}

// sector is what a disk writes whole or not at all.
const sector = 512

// platter is a disk of which the power may go at any operation.
type platter struct {
	files map[string]*content
}

// content is one file: what is on the disk for sure, and what was asked for
// since.
type content struct {
	there   bool // its name is on the disk for sure
	sure    []byte
	pending []operation
	// gone is a file of the same name whose deletion is not on the disk for
	// sure.
	gone *content
	// leaving means that it was deleted, and that may be lost.
	leaving bool
}

// do takes one operation.
func (p *platter) do(o operation) {
	c := p.files[o.file]
	switch o.kind {
	case created:
		p.files[o.file] = &content{gone: c}
	case deletedForSure:
		delete(p.files, o.file)
	case deleted:
		if c != nil {
			c.leaving = true
		}
	case synced:
		if c == nil {
			return
		}
		c.sure = applied(c.sure, c.pending, func() bool { return true })
		c.pending, c.there, c.gone = nil, true, nil
	case wrote, truncated:
		if c == nil { // it was there before the recording
			c = &content{there: true}
			p.files[o.file] = c
		}
		c.pending = append(c.pending, o)
	}
}

// applied does operations on a copy of a file, of a write those sectors and of
// the truncations those that are kept.
func applied(file []byte, ops []operation, kept func() bool) []byte {
	out := slices.Clone(file)
	for _, o := range ops {
		if o.kind == truncated {
			if kept() {
				out = resized(out, o.at)
			}
			continue
		}
		for begin := o.at; begin < o.at+int64(len(o.data)); {
			end := min((begin/sector+1)*sector, o.at+int64(len(o.data)))
			if kept() {
				out = resized(out, max(int64(len(out)), end))
				copy(out[begin:end], o.data[begin-o.at:end-o.at])
			}
			begin = end
		}
	}
	return out
}

func resized(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

// cut writes what is left after the power went, into a folder. Of what was not
// synced it keeps, by chance, none, all, or some.
func (p *platter) cut(dir string, chance *rand.Rand) error {
	share := []float64{0, 1, 0.5, 0.1, 0.9}[chance.IntN(5)]
	kept := func() bool { return chance.Float64() < share }
	for name, c := range p.files {
		for c != nil && (c.leaving && kept() || !c.there && !kept()) {
			c = c.gone
		}
		if c == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), applied(c.sure, c.pending, kept), 0o600); err != nil {
			return err
		}
	}
	return nil
}
