// Package doctor looks at a machine and says what Kiln lacks there and what is
// in its way, each with the command that mends it. It changes nothing that
// outlives a check.
package doctor

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// State is how a check ended.
type State string

// The states of a finding.
const (
	OK     State = "ok"
	Warn   State = "warn"   // something that not everybody needs does not work, or is unwise
	Blocks State = "blocks" // Kiln cannot work like this
)

// Finding is what one check found.
type Finding struct {
	Check   string `json:"check"`
	State   State  `json:"state"`
	Message string `json:"message"`
	// Fix is the command that mends it; empty when OK.
	Fix string `json:"fix,omitempty"`
}

// Options say what to look at. The zero value is this machine with the default
// directory and ports.
type Options struct {
	Data  string // data directory
	HTTP  string // the gateway's public listeners, "address:port"; empty is not checked
	HTTPS string
	// Running is true when a control plane of Data answers: its listeners are
	// taken because they serve.
	Running bool
	// Daemon is where kilnd is; empty when it was not found.
	Daemon string
	// Root is where /proc, /sys, /etc and /usr are; empty means "/".
	Root string
	// Look finds a program, Run runs one; nil means along PATH, for real.
	Look func(program string) (string, error)
	Run  func(ctx context.Context, program string, args ...string) ([]byte, error)
	Now  func() time.Time
}

// host is a machine as the checks see it.
type host struct{ Options }

// path is an absolute path on the machine.
func (h *host) path(name string) string { return filepath.Join(h.Root, name) }

// read returns a small file's text without the white space around it, "" when
// there is none.
func (h *host) read(name string) string {
	b, err := os.ReadFile(h.path(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (h *host) exists(name string) bool {
	_, err := os.Stat(h.path(name))
	return err == nil
}

func (h *host) has(program string) bool {
	_, err := h.Look(program)
	return err == nil
}

const checkTimeout = 20 * time.Second

// Check looks at everything, in the order of a report.
func Check(ctx context.Context, options Options) []Finding {
	h := &host{options}
	if h.Root == "" {
		h.Root = "/"
	}
	if h.Look == nil {
		h.Look = exec.LookPath
	}
	if h.Run == nil {
		h.Run = func(ctx context.Context, program string, args ...string) ([]byte, error) {
			return exec.CommandContext(ctx, program, args...).CombinedOutput()
		}
	}
	if h.Now == nil {
		h.Now = time.Now
	}
	var all []Finding
	for _, check := range []func(context.Context, *host) []Finding{
		checkUser, checkDaemon, checkInstallation, checkKernel, checkCgroups, checkRuntime, checkPrograms, checkNftables,
		checkForward, checkFirewalld, checkSSH, checkPorts, checkDisk, checkMemory, checkClock,
	} {
		limited, cancel := context.WithTimeout(ctx, checkTimeout)
		all = append(all, check(limited, h)...)
		cancel()
	}
	return all
}

// Blocked says whether any finding keeps Kiln from working.
func Blocked(all []Finding) bool {
	for _, f := range all {
		if f.State == Blocks {
			return true
		}
	}
	return false
}

func ok(check, message string) []Finding {
	return []Finding{{Check: check, State: OK, Message: message}}
}

func warn(check, message, fix string) []Finding {
	return []Finding{{Check: check, State: Warn, Message: message, Fix: fix}}
}

func blocks(check, message, fix string) []Finding {
	return []Finding{{Check: check, State: Blocks, Message: message, Fix: fix}}
}
