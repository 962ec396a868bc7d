package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// checkRuntime starts one instance of nothing with each OCI runtime: whether
// one is installed says little (crun refuses hybrid cgroups, a runc without
// seccomp refuses Kiln's profile).
func checkRuntime(ctx context.Context, h *host) []Finding {
	var refused []string
	for _, name := range []string{"crun", "runc"} {
		program, err := h.Look(name)
		if err != nil {
			continue
		}
		if os.Geteuid() != 0 {
			return warn("runtime", program+", not tried: that needs root", "sudo kiln doctor")
		}
		if err := h.tryRuntime(ctx, program); err != nil {
			refused = append(refused, name+": "+err.Error())
			continue
		}
		return ok("runtime", program+" works")
	}
	if len(refused) == 0 {
		return blocks("runtime", "neither runc nor crun is installed", "apt-get install runc")
	}
	return blocks("runtime", "does not work here: "+strings.Join(refused, "; "), "apt-get install runc")
}

// tryRuntime runs an instance that prints the init's version; where there is
// no init, this program's.
func (h *host) tryRuntime(ctx context.Context, program string) error {
	dir, err := os.MkdirTemp("", "kiln-doctor-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := writeBundle(dir, h.static()); err != nil {
		return err
	}
	id := filepath.Base(dir)
	state := filepath.Join(dir, "state")
	out, err := h.Run(ctx, program, "--root", state, "run", "--bundle", dir, id)
	if err != nil {
		// What half started must not stay; an instance that ended is gone.
		_, _ = h.Run(context.WithoutCancel(ctx), program, "--root", state, "delete", "--force", id)
		return fmt.Errorf("%w: %s", err, lastLine(out))
	}
	return nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// trial is a static program and what makes it end at once.
type trial struct {
	path, argument string
}

// static finds a program that needs no libraries: the init is one, and this
// executable may have been built against a C library.
func (h *host) static() trial {
	for _, name := range initPrograms() {
		if at, err := h.Look(name); err == nil {
			return trial{at, "--version"}
		}
	}
	return trial{"/proc/self/exe", "version"}
}

// writeBundle makes an OCI bundle whose root holds a copy of the program.
func writeBundle(dir string, program trial) error {
	root := filepath.Join(dir, "rootfs")
	for _, sub := range []string{"proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, sub), 0o755); err != nil { //nolint:gosec // of the trial's root
			return err
		}
	}
	if err := copyFile(program.path, filepath.Join(root, "trial")); err != nil {
		return err
	}
	type m = map[string]any
	var namespaces []m
	for _, kind := range []string{"pid", "mount", "ipc", "uts", "network"} {
		namespaces = append(namespaces, m{"type": kind})
	}
	config := m{
		"ociVersion": "1.0.2",
		"process":    m{"args": []string{"/trial", program.argument}, "cwd": "/", "user": m{"uid": 0, "gid": 0}, "noNewPrivileges": true},
		"root":       m{"path": "rootfs", "readonly": true},
		"mounts":     []m{{"destination": "/proc", "type": "proc", "source": "proc"}},
		"linux": m{
			"namespaces": namespaces,
			"seccomp": m{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []m{
				{"names": []string{"keyctl"}, "action": "SCMP_ACT_ERRNO"},
			}},
		},
	}
	b, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755) //nolint:gosec // an executable
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}
