package cli

import (
	"io/fs"
	"os"
	"syscall"
)

// keepOwner gives a new file the owner of what it stands for, so that a
// kiln.lock that root writes belongs to whom the folder belongs. Who is not
// root owns what he writes.
func keepOwner(f *os.File, like fs.FileInfo) {
	if stat, ok := like.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(stat.Uid), int(stat.Gid))
	}
}
