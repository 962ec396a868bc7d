package debian

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kilnproject/kiln"
)

// work is a folder of one resolve or build. Programs see it as /mnt, in a
// mount namespace of their own, because the data directory's parents are
// closed to the users that they run as.
type work struct {
	dir     string
	arch    string
	keyring string
	base    int // first of 65,536 user and group ids
}

const mount = "/mnt"

// idBase begins the ids of sandboxes: the range that systemd's users and
// groups document leaves unused, above all containers.
const (
	idBase  = 0x7000_0000
	idCount = 0x1_0000
)

func (b *Builder) newWork(arch string) (*work, error) {
	if err := os.MkdirAll(b.opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the build's folder: %w", err)
	}
	dir, err := os.MkdirTemp(b.opts.Dir, "work-")
	if err != nil {
		return nil, fmt.Errorf("make the build's folder: %w", err)
	}
	tag, err := strconv.ParseUint(kiln.DigestOf([]byte(b.opts.Dir)).Hex()[:3], 16, 16)
	if err != nil {
		return nil, fmt.Errorf("choose ids: %w", err)
	}
	w := &work{dir: dir, arch: arch, keyring: *b.keyring.Load(), base: idBase + int(tag)*idCount}
	return w, os.Chmod(dir, 0o755) //nolint:gosec // what is not root in the sandbox passes through
}

func (w *work) remove() { _ = os.RemoveAll(w.dir) } // New removes what stays

// folder makes a folder that the sandbox's root owns.
func (w *work) folder(name string) error {
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // in a folder of root's own
		return err
	}
	return os.Lchown(path, w.base, w.base)
}

func (w *work) write(name, content string) error {
	return os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o644) //nolint:gosec // the sandbox reads it
}

// Scripts that run in a mount and process namespace of their own, as root of
// this machine, and become less at once. $1 is the work folder, the rest a
// command.
const (
	// plainScript runs the command as an unprivileged user with the host's
	// network.
	plainScript = `set -eu
mount --bind "$1" /mnt; base=$2; shift 2; cd /mnt
exec setpriv --reuid "$base" --regid "$base" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all -- "$@"`

	// bootstrapScript runs the command without a network, with a range of
	// ids for its user namespace that /etc/subuid need not have. The root
	// grows in memory where KILN_TMPFS is a size in bytes and not 0.
	bootstrapScript = `set -eu
mount --bind "$1" /mnt; base=$2; shift 2; cd /mnt
printf 'root:%s:65536\n' "$base" > /mnt/subid
mount --bind /mnt/subid /etc/subuid
mount --bind /mnt/subid /etc/subgid
if [ "$KILN_TMPFS" != 0 ]; then mount -t tmpfs -o "size=$KILN_TMPFS,mode=1777" tmpfs /mnt/tmp; fi
exec unshare --net -- "$@"`
)

// run runs a command under a script. Each line that it writes to standard
// error goes to line, and the last ones into the error's evidence.
func (w *work) run(ctx context.Context, script string, env []string, stdout io.Writer, line func(string), command ...string) error {
	args := append([]string{
		"--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--ipc", "--uts", "--",
		"sh", "-c", script, "kiln-debian", w.dir, strconv.Itoa(w.base),
	}, command...)
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C.UTF-8", "TZ=UTC", "HOME=/mnt", "DEBIAN_FRONTEND=noninteractive",
	}, env...)
	cmd.Dir = "/"
	cmd.Stdout = stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = 10 * time.Second
	said := &lines{emit: line}
	cmd.Stderr = said
	// The kernel sends the death signal when the starting thread ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	said.flush()
	if err != nil {
		return explain(ctx, command[0], err, said.tail)
	}
	return nil
}

const (
	tailLines = 20
	lineBytes = 4096
)

// lines cuts output into lines and keeps the last.
type lines struct {
	emit    func(string)
	partial []byte
	tail    []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.partial = append(l.partial, p...)
	for {
		line, rest, found := bytes.Cut(l.partial, []byte{'\n'})
		if !found {
			break
		}
		l.add(line)
		l.partial = rest
	}
	if len(l.partial) > lineBytes {
		l.flush()
	}
	return len(p), nil
}

func (l *lines) flush() {
	if len(l.partial) > 0 {
		l.add(l.partial)
		l.partial = nil
	}
}

func (l *lines) add(raw []byte) {
	text := strings.TrimRight(strings.ToValidUTF8(string(raw[:min(len(raw), lineBytes)]), "\uFFFD"), "\r")
	if i := strings.LastIndexByte(text, '\r'); i >= 0 {
		text = text[i+1:]
	}
	l.tail = append(l.tail, text)
	if len(l.tail) > tailLines {
		l.tail = l.tail[1:]
	}
	if l.emit != nil {
		l.emit(text)
	}
}

// stanzas splits RFC 822 style text, as of apt and Release files, into
// stanzas of fields. Continuation lines are joined by newlines.
func stanzas(text string) []map[string]string {
	var out []map[string]string
	current := map[string]string{}
	last := ""
	s := bufio.NewScanner(strings.NewReader(text))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := s.Text()
		switch {
		case strings.TrimSpace(line) == "":
			if len(current) > 0 {
				out = append(out, current)
			}
			current, last = map[string]string{}, ""
		case strings.HasPrefix(line, "#"):
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				current[last] += "\n" + strings.TrimSpace(line)
			}
		default:
			name, value, _ := strings.Cut(line, ":")
			last = strings.ToLower(name)
			current[last] = strings.TrimSpace(value)
		}
	}
	if len(current) > 0 {
		out = append(out, current)
	}
	return out
}
