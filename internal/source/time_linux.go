package source

import (
	"io/fs"
	"syscall"
)

// changeTime is the inode's, in seconds and nanoseconds; unlike the time of
// modification no program can set it.
func changeTime(info fs.FileInfo) [2]int64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return [2]int64{s.Ctim.Sec, s.Ctim.Nsec} // 32-bit machines
	}
	return [2]int64{}
}
