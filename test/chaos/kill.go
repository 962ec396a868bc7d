package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/test/rig"
)

// errNoVictim says that there was nobody to do it to.
var errNoVictim = errors.New("there was nobody to do it to")

func killControl(c *chaos, _ event) error {
	return c.kills.Kill("control plane", c.rig.DaemonPID(), c.is("kilnd"))
}

func killGateway(c *chaos, _ event) error { return c.killOwn("gateway") }
func killKeeper(c *chaos, _ event) error  { return c.killOwn("keep") }

func (c *chaos) killOwn(name string) error {
	pid := c.rig.Processes()[name]
	if pid == 0 {
		return errNoVictim
	}
	return c.kills.Kill(name, pid, c.is(name))
}

// is says whether a process is one of this rig's with the word in its command.
func (c *chaos) is(word string) func(pid int) bool {
	return func(pid int) bool {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		return err == nil && strings.Contains(string(b), c.rig.Data) && strings.Contains(string(b), word)
	}
}

// within says whether a process is in the control group of an instance.
func within(id string) func(pid int) bool {
	return func(pid int) bool {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
		return err == nil && strings.Contains(string(b), id)
	}
}

func killInstance(c *chaos, e event) error {
	i, err := c.victim(e)
	if err != nil {
		return err
	}
	return c.kills.Kill("instance", i.PID, within(i.ID))
}

// killApplication kills the child of an instance's init.
func killApplication(c *chaos, e event) error {
	i, err := c.victim(e)
	if err != nil {
		return err
	}
	for _, pid := range rig.Children(i.PID) {
		return c.kills.Kill("application", pid, within(i.ID))
	}
	return errNoVictim
}

// killRuntime kills an instance, and the runtime that starts another.
func killRuntime(c *chaos, e event) error {
	if err := killInstance(c, e); err != nil {
		return err
	}
	pid := 0
	err := c.watch(5*time.Second, func() bool {
		for _, one := range c.rig.Inhabitants() {
			if c.is("oci")(one) && c.is("--pid-file")(one) {
				pid = one
				return true
			}
		}
		return false
	})
	if err != nil {
		return err
	}
	return c.kills.Kill("runtime", pid, c.is("--pid-file"))
}

// killBake bakes an image with a command that takes long, and kills that.
func killBake(c *chaos, _ event) error {
	c.bakes++
	dir := filepath.Join(c.rig.Work, "bake")
	app, err := os.ReadFile(c.rig.Bin("app"))
	if err != nil {
		return err
	}
	c.rig.Write("bake/app", string(app))
	c.rig.Write("bake/Dockerfile", fmt.Sprintf("FROM scratch\nCOPY --chmod=755 app /app\nENV BAKE=20s N=%d\nRUN [\"/app\"]\nCMD [\"/app\"]\n", c.bakes))
	c.rig.Write("bake/kiln.hcl", "gate { no_database = \"warn\" }\n\nimage \"slow\" {\n  dockerfile { context = \".\" }\n}\n")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- c.command(ctx, "-C", dir, "bake").Run() }()
	pid := 0
	err = c.watch(20*time.Second, func() bool {
		if len(ended) > 0 {
			return true
		}
		for _, one := range c.rig.Bakes() {
			pid = one
		}
		return pid != 0
	})
	if err == nil && pid != 0 {
		err = c.kills.Kill("RUN", pid, func(pid int) bool { return len(c.rig.Bakes()) > 0 && pid != os.Getpid() })
	}
	if err != nil {
		cancel()
		<-ended
		return err
	}
	if <-ended == nil {
		return errors.New("a bake whose RUN was killed succeeded")
	}
	if pid == 0 {
		return errNoVictim
	}
	return nil
}

func freezeControl(c *chaos, e event) error { return c.freeze(c.rig.DaemonPID(), c.is("kilnd"), e.For) }
func freezeGateway(c *chaos, e event) error { return c.freezeOwn("gateway", e.For) }
func freezeKeeper(c *chaos, e event) error  { return c.freezeOwn("keep", e.For) }

func (c *chaos) freezeOwn(name string, limit time.Duration) error {
	pid := c.rig.Processes()[name]
	if pid == 0 {
		return errNoVictim
	}
	return c.freeze(pid, c.is(name), limit)
}

// freezeInstance stops the application of an instance, not its init.
func freezeInstance(c *chaos, e event) error {
	i, err := c.victim(e)
	if err != nil {
		return err
	}
	for _, pid := range rig.Children(i.PID) {
		return c.freeze(pid, within(i.ID), e.For)
	}
	return errNoVictim
}

// freeze stops a process and lets it go on later, while other things happen.
func (c *chaos) freeze(pid int, is func(int) bool, limit time.Duration) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil || !is(pid) {
		return errNoVictim
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGSTOP, nil, 0); err != nil {
		return err
	}
	c.lasting.Go(func() {
		<-time.After(limit)
		_ = unix.PidfdSendSignal(pidfd, unix.SIGCONT, nil, 0)
		_ = unix.Close(pidfd)
	})
	return nil
}

// victim is a ready instance of a serving service.
func (c *chaos) victim(e event) (kiln.Instance, error) {
	all, err := c.ready()
	if err != nil {
		return kiln.Instance{}, err
	}
	if len(all) == 0 {
		return kiln.Instance{}, errNoVictim
	}
	return all[int(e.Pick*float64(len(all)))], nil
}
