package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// GroupName is the group whose members may use the API. It is as powerful as
// root.
const GroupName = "kiln"

// Peer is the process at the other end of a connection, as the kernel knew it
// when it connected.
type Peer struct {
	UID    uint32
	GID    uint32
	PID    int32
	Groups []uint32 // supplementary
}

// Actor is the peer's name in the ledger: "user (uid)".
func (p Peer) Actor() string {
	uid := strconv.FormatUint(uint64(p.UID), 10)
	name := "unknown"
	if u, err := user.LookupId(uid); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("%s (%s)", name, uid)
}

// allowed says whether the peer may use the API: root, the user that the
// server itself runs as, and members of the group.
func (p Peer) allowed(group uint32, exists bool) bool {
	if p.UID == 0 || int64(p.UID) == int64(os.Geteuid()) {
		return true
	}
	return exists && (p.GID == group || slices.Contains(p.Groups, group))
}

type (
	peerKey   struct{}
	guestKey  struct{}
	remoteKey struct{}
)

// withPeer is http.Server's ConnContext: it notes who connected, or over TCP
// from where.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	g := guestOf(conn)
	if g == nil {
		return ctx
	}
	ctx = context.WithValue(ctx, guestKey{}, g)
	if at, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return context.WithValue(ctx, remoteKey{}, at.AddrPort().Addr().Unmap())
	}
	peer, err := peerOf(g.Conn)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

// remoteOf says from where a request came over TCP.
func remoteOf(ctx context.Context) (netip.Addr, bool) {
	from, ok := ctx.Value(remoteKey{}).(netip.Addr)
	return from, ok
}

// serves marks a request's connection as serving a known caller until leave is
// called.
func serves(ctx context.Context) (leave func()) {
	g, ok := ctx.Value(guestKey{}).(*guest)
	if !ok {
		return func() {}
	}
	g.serves.Add(1)
	return func() { g.serves.Add(-1) }
}

// authorize returns the actor, or the refusal.
func authorize(ctx context.Context) (string, error) {
	peer, ok := ctx.Value(peerKey{}).(Peer)
	if !ok {
		return "", kiln.Errorf(kiln.CodeRefused, "connect to the data directory's kiln.sock",
			"the caller's credentials are unknown")
	}
	group, exists := lookupGroup()
	if !peer.allowed(group, exists) {
		return "", kiln.Errorf(kiln.CodeRefused,
			"run it as root, or: groupadd --system "+GroupName+"; usermod -aG "+GroupName+" USER (that group is as powerful as root)",
			"%s may not use Kiln: only root and members of the group %s may", peer.Actor(), GroupName)
	}
	return peer.Actor(), nil
}

// lookupGroup finds the group's number. It is asked for at each request: the
// group may be made while the server runs.
func lookupGroup() (uint32, bool) {
	g, err := user.LookupGroup(GroupName)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(n), err == nil
}

func peerOf(conn net.Conn) (Peer, error) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return Peer{}, errors.New("not a Unix socket")
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var peer Peer
	var inner error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if inner == nil {
			peer = Peer{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}
			peer.Groups, inner = peerGroups(fd)
		}
	})
	return peer, errors.Join(err, inner)
}

// peerGroups asks for SO_PEERGROUPS (socket(7)), which x/sys has no call for.
// 65,536 groups is the kernel's NGROUPS_MAX.
func peerGroups(fd uintptr) ([]uint32, error) {
	buffer := make([]byte, 4*64)
	for {
		size := uint32(len(buffer))
		_, _, errno := syscall.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buffer[0])), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // the one way to call it
		if errno == unix.ERANGE && int(size) > len(buffer) && size <= 4*65536 {
			buffer = make([]byte, size)
			continue
		}
		if errno != 0 {
			return nil, os.NewSyscallError("getsockopt", errno)
		}
		groups := make([]uint32, 0, size/4)
		for b := buffer[:size]; len(b) >= 4; b = b[4:] {
			groups = append(groups, binary.NativeEndian.Uint32(b))
		}
		return groups, nil
	}
}
