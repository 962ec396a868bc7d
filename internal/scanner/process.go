package scanner

import (
	"os/exec"
	"syscall"
)

// own gives a scanner a process group of its own, which ends as a whole: Snyk
// starts others.
func own(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
