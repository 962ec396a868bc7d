package seal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// errDamaged is a sealed file that is not what its record says.
var errDamaged = errors.New("its content is not what was sealed")

const mountFlags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV

// mounted is a root and what it was when it was mounted.
type mounted struct {
	root Root
	is   identity
}

// identity tells a mount and the file beneath it from every other. An edit of
// the file, also one that restores its modification time, changes its ctime.
type identity struct {
	Boot  string `json:"boot"`  // the kernel's boot_id
	Mount uint64 `json:"mount"` // the mount's id, unique since boot on kernel 6.8 and later
	Dev   uint64 `json:"dev"`   // device number of the mounted file system
	File  struct {
		Dev   uint64 `json:"dev"`
		Inode uint64 `json:"inode"`
		Size  int64  `json:"size"`
		Ctime int64  `json:"ctime"` // nanoseconds since 1970
	} `json:"file"`
	Protection Protection `json:"protection"`
}

// live returns a root that this Sealer mounted or adopted, if it is still the
// same mount of the same unchanged file. It costs a few microseconds.
func (s *Sealer) live(key Key) (Root, bool) {
	s.mu.Lock()
	m, ok := s.roots[key]
	s.mu.Unlock()
	if !ok {
		return Root{}, false
	}
	now, err := s.identify(key)
	now.Protection = m.is.Protection
	return m.root, err == nil && now == m.is
}

// mount adopts the mount of a key when it is the recorded one, and makes it
// otherwise. It returns errDamaged when the file is not as recorded. A file
// that was just sealed has no digest in its record: it gets it here, so that
// it is hashed once, protected already and by the open file that is mounted.
func (s *Sealer) mount(ctx context.Context, key Key, r record) (Root, error) {
	if is, ok := s.adopt(key); ok && r.Seal != "" {
		return s.remember(key, r, is), nil
	}
	if err := s.unmount(key); err != nil {
		return Root{}, err
	}
	f, err := os.Open(s.imagePath(key))
	if err != nil {
		return Root{}, errors.Join(errDamaged, err)
	}
	defer func() { _ = f.Close() }()
	protection := protect(f)
	if protection == ProtectionNone {
		s.opt.Log.WarnContext(ctx, "file system cannot make the sealed image immutable", "file", f.Name())
	}
	if r, err = s.verify(ctx, key, r, f); err != nil {
		return Root{}, err
	}
	if err := mountFile(f, s.mountDir(key)); err != nil {
		return Root{}, err
	}
	is, err := s.identify(key)
	is.Protection = protection
	if err == nil {
		err = s.saveIdentity(key, is)
	}
	if err != nil {
		return Root{}, errors.Join(fmt.Errorf("mount seal: %w", err), s.unmount(key))
	}
	return s.remember(key, r, is), nil
}

// verify hashes a sealed file and compares, or records, its digest.
func (s *Sealer) verify(ctx context.Context, key Key, r record, f *os.File) (record, error) {
	digest, size, err := hashFile(ctx, f)
	switch {
	case err != nil:
		return r, fmt.Errorf("verify seal: %w", err)
	case r.Seal == "":
		r.Seal, r.Size = digest, size
		s.opt.Log.InfoContext(ctx, "image is sealed", "image", string(r.Image), "seal", string(digest), "bytes", size)
		return r, s.save(ctx, key, r)
	case digest != r.Seal || size != r.Size:
		return r, fmt.Errorf("%w: it has the digest %s", errDamaged, digest)
	default:
		return r, nil
	}
}

func (s *Sealer) remember(key Key, r record, is identity) Root {
	root := Root{
		Key: key, Dir: s.mountDir(key), Seal: r.Seal, Size: r.Size, Config: r.Config,
		Protection: is.Protection, Added: r.Added, Dropped: r.Dropped.First,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roots[key] = mounted{root, is}
	return root
}

// adopt recognizes the mount that an earlier Sealer made and verified.
func (s *Sealer) adopt(key Key) (identity, bool) {
	var then identity
	b, err := os.ReadFile(s.mountRecordPath(key))
	if err != nil || json.Unmarshal(b, &then) != nil {
		return identity{}, false
	}
	now, err := s.identify(key)
	now.Protection = then.Protection
	return now, err == nil && now == then
}

// identify looks at what is mounted for a key and at the file.
func (s *Sealer) identify(key Key) (identity, error) {
	is := identity{Boot: s.boot}
	at, err := mountAt(s.mountDir(key))
	if err != nil {
		return is, err
	}
	is.Mount, is.Dev = at.Mnt_id, unix.Mkdev(at.Dev_major, at.Dev_minor)
	var file unix.Stat_t
	if err := unix.Lstat(s.imagePath(key), &file); err != nil {
		return is, err
	}
	is.File.Dev, is.File.Inode, is.File.Size, is.File.Ctime = file.Dev, file.Ino, file.Size, file.Ctim.Nano()
	return is, nil
}

// mountAt looks at the seal that is mounted on a folder.
func mountAt(dir string) (unix.Statx_t, error) {
	var at unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_MNT_ID_UNIQUE, &at); err != nil {
		return at, err
	}
	if at.Mask&unix.STATX_MNT_ID_UNIQUE == 0 { // before kernel 6.8
		if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_MNT_ID, &at); err != nil {
			return at, err
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return at, err
	}
	if at.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 || fs.Type != unix.EROFS_SUPER_MAGIC_V1 {
		return at, fmt.Errorf("%s is not a mounted seal", dir)
	}
	return at, nil
}

func (s *Sealer) saveIdentity(key Key, is identity) error {
	b, err := json.Marshal(is)
	if err != nil {
		return err
	}
	return durable.Write(s.mountRecordPath(key), b, 0o600)
}

// mountFile mounts an EROFS file that is open, not whatever has its name now:
// straight from the file where the kernel can (6.12 and later, for most file
// systems beneath), else by a loop device.
func mountFile(f *os.File, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // in a folder of root's own; the image has modes of its own
		return fmt.Errorf("mount seal: %w", err)
	}
	err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), dir, "erofs", mountFlags, "")
	if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENODEV) {
		if loopErr := mountLoop(f, dir); loopErr != nil {
			return fmt.Errorf("mount seal: from the file: %w; by loop device: %w", err, loopErr)
		}
		return nil
	}
	switch {
	case errors.Is(err, unix.ENODEV):
		return kiln.Errorf(kiln.CodeUnavailable, "modprobe erofs", "mount seal: this kernel has no EROFS: %w", err)
	case errors.Is(err, unix.EPERM):
		return kiln.Errorf(kiln.CodeUnavailable, "run the daemon as root", "mount seal: %w", err)
	case err != nil:
		return fmt.Errorf("mount seal: %w", err)
	}
	return nil
}

// unmount removes every mount on a key's folder. Instances have mounts of
// their own and do not notice.
func (s *Sealer) unmount(key Key) error {
	s.mu.Lock()
	delete(s.roots, key)
	s.mu.Unlock()
	for {
		err := unix.Unmount(s.mountDir(key), unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(s.mountDir(key), unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil // not, or no longer, a mount
		case errors.Is(err, unix.EPERM) && os.Geteuid() != 0:
			return nil // who may not unmount cannot have mounted
		case err != nil:
			return fmt.Errorf("unmount seal: %w", err)
		}
	}
}
