package rig

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Tag is what the names of this rig's links, tables and cgroups are made of.
func (r *Rig) Tag() string {
	sum := sha256.Sum256([]byte(r.Data))
	return hex.EncodeToString(sum[:])[:6]
}

// Left lists what the machine has of this rig: processes, links, tables,
// mounts, control groups, loop devices and routes.
func (r *Rig) Left() []string {
	var left []string
	for _, pid := range r.Inhabitants() {
		left = append(left, "process "+strconv.Itoa(pid)+" "+commandLine(pid))
	}
	for _, probe := range [][]string{
		{"ip", "-o", "link"},
		{"ip", "netns"},
		{"nft", "list", "tables"},
		{"cat", "/proc/mounts"},
		{"find", "/sys/fs/cgroup", "-maxdepth", "3", "-type", "d"},
		// One that clears itself is only held by a mount namespace of somebody
		// else's, made while it was mounted.
		{"sh", "-c", "for l in /sys/block/loop*/loop; do [ \"$(cat $l/autoclear 2>/dev/null)\" != 0 ] || cat $l/backing_file; done"},
	} {
		out, _ := exec.Command(probe[0], probe[1:]...).Output()
		for line := range strings.Lines(string(out)) {
			if r.names(line) {
				left = append(left, strings.TrimSpace(line))
			}
		}
	}
	return append(left, r.routes()...)
}

// routes are those of the instances' subnet.
func (r *Rig) routes() []string {
	var plan struct {
		Subnet string `json:"subnet"`
	}
	b, err := os.ReadFile(filepath.Join(r.Data, "local", "subnets.json"))
	if err != nil || json.Unmarshal(b, &plan) != nil {
		return nil // it never had one
	}
	out, _ := exec.Command("ip", "-o", "route", "show", "root", plan.Subnet).Output()
	if len(out) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// names says whether a line speaks of this rig.
func (r *Rig) names(line string) bool {
	return strings.Contains(line, r.Tag()) || strings.Contains(line, r.Data)
}

// Inhabitants are the processes of this rig but its control planes: those
// whose command names its data directory, those in its control groups, and
// those whose root is a bake's.
func (r *Rig) Inhabitants() []int {
	own, _ := os.Readlink("/proc/self/ns/mnt")
	var out []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		command := commandLine(pid)
		groups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		switch {
		case strings.Contains(command, "kilnd --data") || pid == os.Getpid():
		case command == "" && ended(pid): // who has not waited for it is not Kiln
		case strings.Contains(command, r.Data), strings.Contains(string(groups), "kiln-"+r.Tag()):
			out = append(out, pid)
		default:
			if ns, err := os.Readlink(filepath.Join(dir, "ns", "mnt")); err == nil && ns != own && r.bakes(dir) {
				out = append(out, pid)
			}
		}
	}
	slices.Sort(out)
	return out
}

// Bakes are the processes of commands that a bake runs.
func (r *Rig) Bakes() []int {
	return slices.DeleteFunc(r.Inhabitants(), func(pid int) bool {
		return !r.bakes(filepath.Join("/proc", strconv.Itoa(pid)))
	})
}

// bakes says whether the root of a process is a snapshot of this rig's bakes.
func (r *Rig) bakes(dir string) bool {
	mounts, _ := os.ReadFile(filepath.Join(dir, "mountinfo"))
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 5 && fields[4] == "/" {
			return strings.Contains(line, filepath.Join(r.Data, "bake"))
		}
	}
	return false
}

// ended says whether a process is dead, and only its parent has not looked.
func ended(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, rest, _ := strings.Cut(string(b), ") ")
	return err != nil || strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

func commandLine(pid int) string {
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}
