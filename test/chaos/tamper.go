package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// writeInto writes into the tmpfs of an instance from outside.
func writeInto(c *chaos, e event) error {
	i, err := c.victim(e)
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Join("/proc", strconv.Itoa(i.PID), "root", "tmp"))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	var owner unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &owner); err != nil {
		return err
	}
	// The file system knows only users of the instance's namespace.
	command := exec.Command("sh", "-c", "echo planted >/proc/self/fd/3/planted")
	command.ExtraFiles = []*os.File{dir}
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("write into %s: %w: %s", i.ID, err, out)
	}
	return nil
}

// enter has a process of the machine enter an instance and stay a while.
func enter(c *chaos, e event) error {
	i, err := c.victim(e)
	if err != nil {
		return err
	}
	// --fork: the process is of the instance's process namespace.
	command := exec.Command("nsenter", "--target", strconv.Itoa(i.PID), "--mount", "--net", "--pid", "--fork", "--", "/app")
	command.Env = []string{"BAKE=" + e.For.String()}
	if err := command.Start(); err != nil {
		return err
	}
	c.lasting.Go(func() { _ = command.Wait() }) // it ends by itself, or with the instance
	return nil
}

var handle = regexp.MustCompile(`# handle (\d+)`)

// deleteRule deletes one rule of the packet filter.
func deleteRule(c *chaos, e event) error {
	table := "kiln_" + c.rig.Tag()
	out, err := exec.Command("nft", "-a", "list", "table", "inet", table).Output()
	if err != nil {
		return fmt.Errorf("list %s: %w", table, err)
	}
	var rules [][2]string
	chain := ""
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		number := handle.FindStringSubmatch(line)
		switch {
		case len(fields) > 1 && fields[0] == "chain":
			chain = fields[1]
		case len(fields) > 1 && (fields[0] == "set" || fields[0] == "map" || fields[0] == "table"):
			chain = ""
		case chain != "" && number != nil && !strings.HasPrefix(fields[0], "type"):
			rules = append(rules, [2]string{chain, number[1]})
		}
	}
	if len(rules) == 0 {
		return errNoVictim
	}
	one := rules[int(e.Pick*float64(len(rules)))]
	if out, err := exec.Command("nft", "delete", "rule", "inet", table, one[0], "handle", one[1]).CombinedOutput(); err != nil {
		return fmt.Errorf("delete a rule: %w: %s", err, out)
	}
	return nil
}

// removeLink takes the network from an instance.
func removeLink(c *chaos, e event) error {
	i, err := c.victim(e)
	if err != nil {
		return err
	}
	out, err := exec.Command("ip", "-o", "route", "get", i.Address.String()).Output()
	fields := strings.Fields(string(out))
	at := slices.Index(fields, "dev")
	if err != nil || at < 0 || at+1 >= len(fields) || !strings.HasPrefix(fields[at+1], "k"+c.rig.Tag()+"-") {
		return fmt.Errorf("find the link of %s: %w %s", i.ID, errors.Join(err, errNoVictim), out)
	}
	from := time.Now()
	defer func() { c.kills.Note("link", from, time.Now()) }() // as if the instance had been killed
	if out, err := exec.Command("ip", "link", "delete", fields[at+1]).CombinedOutput(); err != nil {
		return fmt.Errorf("remove a link: %w: %s", err, out)
	}
	return nil
}

// unlockSeal takes the protection from a sealed file and changes its mode.
func unlockSeal(c *chaos, e event) error {
	var files []string
	err := filepath.WalkDir(filepath.Join(c.rig.Data, "seal"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".erofs") {
			files = append(files, path)
		}
		return nil
	})
	if err != nil || len(files) == 0 {
		return errors.Join(err, errNoVictim)
	}
	f, err := os.Open(files[int(e.Pick*float64(len(files)))])
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0); err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("unlock %s: %w", f.Name(), err)
	}
	return f.Chmod(0o666)
}

// fillDisk takes all room of the disk, and gives it back later.
func fillDisk(c *chaos, e event) error {
	c.filling.Lock()
	path := filepath.Join(c.disk, "filler")
	f, err := os.Create(path)
	if err != nil {
		c.filling.Unlock()
		return err
	}
	zeros := make([]byte, 1<<20)
	for step := len(zeros); step > 0 && err == nil; {
		if _, err = f.Write(zeros[:step]); errors.Is(err, unix.ENOSPC) {
			step, err = step/2, nil
		}
	}
	c.lasting.Go(func() {
		defer c.filling.Unlock()
		<-time.After(e.For + time.Second)
		_ = f.Close()
		_ = os.Remove(path)
	})
	return err
}

// useMemory has an instance need more than its limit.
func useMemory(c *chaos, e event) error {
	i, err := c.victim(e)
	if err != nil {
		return err
	}
	grow := func(int) error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:8080/grow?mib=%d", i.Address, 2*memoryMiB), http.NoBody)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			_ = response.Body.Close()
			return fmt.Errorf("%s got %d MiB and has a limit of %d", i.ID, 2*memoryMiB, memoryMiB)
		}
		return nil
	}
	return c.kills.During("instance without memory", i.PID, within(i.ID), grow)
}
