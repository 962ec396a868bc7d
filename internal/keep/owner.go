package keep

import (
	"io/fs"
	"os"
	"syscall"
)

// giveFolder makes a folder a user's. What the folder's owner had in it until
// now becomes the user's first, so that a gateway whose user has changed finds
// its table and its certificates, also when this is cut short and done again.
// What belongs to others stays theirs, and so do files with a second name: that
// may be outside.
func giveFolder(dir string, uid, gid int) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	former := ownerOf(info)
	if former == uid {
		return os.Lchown(dir, uid, gid)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := entry.Info()
		if err != nil || ownerOf(info) != former || !entry.IsDir() && links(info) > 1 {
			return err
		}
		return root.Lchown(name, uid, gid)
	})
	if err != nil {
		return err
	}
	return os.Lchown(dir, uid, gid)
}

func ownerOf(info fs.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}

func links(info fs.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(stat.Nlink) //nolint:unconvert // its type differs between architectures
	}
	return 1
}
