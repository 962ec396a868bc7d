package keep

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
	"github.com/kilnproject/kiln/internal/logs"
)

// TestFullDiskBlocksNobody has the logs on a disk of 1 MiB that is full.
func TestFullDiskBlocksNobody(t *testing.T) {
	rooted(t)
	r := newRig(t, false)
	disk := filepath.Join(r.dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); err != nil {
		t.Log("the disk is full before its end:", err)
	}
	gone := filepath.Join(r.dir, "gone")
	p := r.process("web-1", fmt.Sprintf(`head -c 5000000 /dev/zero | tr '\0' x | fold -w 1000; echo; echo fits >&2; : > %s; read x < %s; echo again; exit 0`, gone, fifo(t, r.dir)))
	p.LogDir, p.LogBytes = filepath.Join(disk, "e", "web-1"), 4<<20
	if _, err := r.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, func() bool { _, err := os.Stat(gone); return err == nil })
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "fifo"), []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	if e := r.exit("web-1"); e.Code != 0 {
		t.Fatalf("exit %+v", e)
	}
	// The two streams are two pipes: what they say has no order between them.
	// What a pipe still held when the disk got room comes after the notice.
	lines, err := logs.Last(p.LogDir, 1000)
	told := slices.IndexFunc(lines, func(l kiln.LogLine) bool { return strings.Contains(l.Text, "lines lost here") })
	again := slices.IndexFunc(lines, func(l kiln.LogLine) bool { return l.Text == "again" })
	if err != nil || told < 0 || again < told {
		t.Fatalf("logs %+v, %v\n%s", lines, err, r.log())
	}
}

// TestAnotherUserIsRefused also where the socket's own mode lets them in.
func TestAnotherUserIsRefused(t *testing.T) {
	rooted(t)
	r := newRig(t, false)
	socket := filepath.Join(r.dir, "run", "keep.sock")
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v", info.Mode(), err)
	}
	open := func(path string) {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	open(socket)
	for p := filepath.Dir(socket); p != filepath.Clean(os.TempDir()) && len(p) > 1; p = filepath.Dir(p) {
		open(p)
	}
	cmd := exec.Command(os.Args[0], confine.LaunchArgs(defaultGatewayID, defaultGatewayID, []string{os.Args[0], "role=dial", socket})...)
	cmd.Args = append([]string{os.Args[0], "role=launch"}, cmd.Args[1:]...)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "may not use the keeper") {
		t.Fatalf("%v: %s", err, out)
	}
}

func fifo(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestUnderRunc starts a real container, in a user namespace, whose user opens
// /dev/stdout again.
func TestUnderRunc(t *testing.T) {
	rooted(t)
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("needs runc")
	}
	r := newRig(t, false)
	bundle := makeBundle(t, r.dir, "echo reopened > /dev/stdout; echo err >&2; exit 5")
	id := fmt.Sprintf("keep-test-%d", os.Getpid())
	root := filepath.Join(r.dir, "runc")
	t.Cleanup(func() {
		if out, err := exec.Command(runc, "--root", root, "delete", "--force", id).CombinedOutput(); err != nil {
			t.Logf("%v: %s", err, out)
		}
	})
	p := r.process(id, "")
	p.Command = []string{runc, "--root", root, "run", "--detach", "--bundle", bundle, "--pid-file", p.PIDFile, id}
	if _, err := r.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if e := r.exit(id); e.Code != 5 || e.Lost {
		t.Fatalf("exit %+v", e)
	}
	lines, err := logs.Last(p.LogDir, 10)
	got := map[string]string{}
	for _, l := range lines {
		got[l.Stream] += l.Text
	}
	if err != nil || got["stdout"] != "reopened" || got["stderr"] != "err" {
		t.Fatalf("logs %+v, %v", lines, err)
	}
	p.ID, p.PIDFile = id+"-bad", p.PIDFile+".bad"
	p.Command = []string{runc, "--root", root, "run", "--detach", "--bundle", filepath.Join(r.dir, "nowhere"), "--pid-file", p.PIDFile, p.ID}
	_, err = r.Start(t.Context(), p)
	if err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Fatalf("a bundle that is not there: %v", err)
	}
	t.Log(err)
}

// makeBundle is a container of the machine's own programs, read-only.
func makeBundle(t *testing.T, dir, script string) string {
	t.Helper()
	bundle := filepath.Join(dir, "bundle")
	for _, d := range []string{"usr", "lib", "lib64", "bin", "proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(bundle, "rootfs", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for p := bundle; p != "/tmp" && len(p) > 4; p = filepath.Dir(p) { // runc's child is another user
		_ = os.Chmod(p, 0o755)
	}
	mount := func(to, kind, from string, options ...string) map[string]any {
		return map[string]any{"destination": to, "type": kind, "source": from, "options": options}
	}
	var mounts []map[string]any
	for _, d := range []string{"/usr", "/lib", "/lib64", "/bin"} {
		mounts = append(mounts, mount(d, "bind", d, "rbind", "ro"))
	}
	mounts = append(mounts, mount("/proc", "proc", "proc"), mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755"))
	mapping := []map[string]any{{"containerID": 0, "hostID": 700000, "size": 65536}}
	var namespaces []map[string]any
	for _, n := range []string{"pid", "mount", "ipc", "uts", "network", "user"} {
		namespaces = append(namespaces, map[string]any{"type": n})
	}
	config := map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"args": []string{"/bin/sh", "-c", script}, "cwd": "/", "env": []string{"PATH=/usr/bin:/bin"},
			"user": map[string]any{"uid": 1000, "gid": 1000}, "noNewPrivileges": true,
		},
		"root":   map[string]any{"path": "rootfs", "readonly": true},
		"mounts": mounts,
		"linux":  map[string]any{"namespaces": namespaces, "uidMappings": mapping, "gidMappings": mapping},
	}
	b, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return bundle
}

// BenchmarkMemory prints what each of 400 more instances costs the keeper.
func BenchmarkMemory(b *testing.B) {
	r := &rig{dir: b.TempDir()}
	r.opt = Options{DataDir: r.dir}
	options, err := json.Marshal(r.opt)
	if err != nil {
		b.Fatal(err)
	}
	r.Client, err = ensure(b.Context(), r.dir, []string{os.Args[0], "role=keeper", string(options)})
	if err != nil {
		b.Fatal(err)
	}
	info, err := r.Ping(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	var pids []int
	defer func() {
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		_ = r.Stop(b.Context(), true)
	}()
	grow := func(to int) int {
		for len(pids) < to {
			id := fmt.Sprintf("web-%d", len(pids))
			pid := filepath.Join(r.dir, id+".pid")
			s, err := r.Start(b.Context(), kiln.Process{
				ID: id, Dir: "/", PIDFile: pid, LogDir: filepath.Join(r.dir, "logs/e", id),
				Command: []string{"sh", "-c", `sh -c "echo hello; exec sleep 600" & echo $! > "$1"`, "runtime", pid},
			})
			if err != nil {
				b.Fatal(err)
			}
			pids = append(pids, s.PID)
		}
		return pss(b, info.PID)
	}
	for b.Loop() {
		few := grow(100)
		many := grow(500)
		b.ReportMetric(float64(few), "KiB-at-100")
		b.ReportMetric(float64(many), "KiB-at-500")
		b.ReportMetric(float64(many-few)/400, "KiB/instance")
	}
}

func pss(b *testing.B, pid int) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var n int
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &n); err == nil {
			return n
		}
	}
	b.Fatal("no Pss")
	return 0
}

// TestAGatewayOfAnotherUserFindsItsFiles: what the user before had is the new
// one's, and nothing else is.
func TestAGatewayOfAnotherUserFindsItsFiles(t *testing.T) {
	rooted(t)
	const former, now, other = 60001, 60002, 60003
	outside := t.TempDir()
	dir := filepath.Join(t.TempDir(), "gateway")
	own := func(path string, uid int) {
		t.Helper()
		if err := os.Lchown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path string, uid int) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		own(path, uid)
	}
	write(filepath.Join(dir, "table.json"), former)
	write(filepath.Join(dir, "tls", "key.pem"), former)
	write(filepath.Join(dir, "others"), other)
	write(filepath.Join(outside, "linked"), former)
	write(filepath.Join(outside, "hard"), former)
	if err := os.Symlink(outside, filepath.Join(dir, "soft")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(outside, "hard"), filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "tls"), filepath.Join(dir, "soft")} {
		own(path, former)
	}
	if err := giveFolder(dir, now, now); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		dir: now, filepath.Join(dir, "table.json"): now, filepath.Join(dir, "tls"): now, filepath.Join(dir, "tls", "key.pem"): now,
		filepath.Join(dir, "others"): other, filepath.Join(outside, "linked"): former, filepath.Join(outside, "hard"): former, outside: 0,
	} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := ownerOf(info); got != want {
			t.Errorf("%s belongs to %d, want %d", path, got, want)
		}
	}
}
