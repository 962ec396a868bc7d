package doctor

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// machine is a host whose files are those given, and on which the programs
// print what is given and others are not there.
func machine(t *testing.T, files, programs map[string]string) *host {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &host{Options{
		Root: root, Data: "/var/lib/kiln",
		Look: func(program string) (string, error) {
			if _, ok := programs[program]; ok {
				return "/usr/bin/" + program, nil
			}
			return "", errors.New("not found")
		},
		Run: func(_ context.Context, program string, args ...string) ([]byte, error) {
			if out, ok := programs[program+" "+args[0]]; ok {
				return []byte(out), nil
			}
			return []byte(programs[program]), nil
		},
		Now: func() time.Time { return time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC) },
	}}
}

// installation is what an installation leaves, but for what is without.
func installation(without ...string) map[string]string {
	files := map[string]string{
		"etc/kiln/installed.json": `{"version": 1, "kiln": "v1", "prefix": "/usr/local", "items": [{"kind": "file", "name": "/etc/systemd/system/kilnd.service"}]}`,
		"etc/kiln/kilnd.hcl":      "", "run/systemd/system/x": "",
		"etc/group": "root:x:0:\nkiln:x:9:\n", "etc/passwd": "kiln-gateway:x:8:8\nkiln-reader:x:9:9\n",
	}
	for _, name := range without {
		delete(files, name)
	}
	return files
}

// rooted is OK where root runs the test and owns its files.
func rooted() State {
	if os.Geteuid() == 0 {
		return OK
	}
	return Blocks
}

// states are the findings' states by check.
func states(all []Finding) map[string]State {
	out := map[string]State{}
	for _, f := range all {
		out[f.Check] = f.State
	}
	return out
}

func TestChecks(t *testing.T) {
	kernel := func(release, filesystems, namespaces string) map[string]string {
		return map[string]string{
			"proc/sys/kernel/osrelease": release, "proc/filesystems": filesystems, "proc/sys/user/max_user_namespaces": namespaces,
		}
	}
	for name, c := range map[string]struct {
		check    func(context.Context, *host) []Finding
		files    map[string]string
		programs map[string]string
		want     map[string]State
	}{
		"a good kernel": {checkKernel, kernel("6.1.0-18-amd64\n", "nodev\toverlay\n\terofs\n", "1000"), nil, map[string]State{"kernel": OK, "erofs": OK, "overlay": OK, "user namespaces": OK}},
		"an old kernel": {checkKernel, kernel("5.10.0", "nodev\toverlayfs\n", "0"), nil, map[string]State{"kernel": Blocks, "erofs": Blocks, "overlay": Blocks, "user namespaces": Blocks}},
		"a module": {
			checkKernel, map[string]string{
				"proc/sys/kernel/osrelease": "6.1.0", "proc/filesystems": "overlay", "proc/sys/user/max_user_namespaces": "9",
				"lib/modules/6.1.0/modules.dep": "kernel/fs/erofs/erofs.ko.xz: ...",
			}, nil, map[string]State{"kernel": OK, "erofs": Warn, "overlay": OK, "user namespaces": OK},
		},
		"cgroup v2":              {checkCgroups, map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpu memory pids io"}, nil, map[string]State{"cgroups": OK}},
		"cgroup v2, no memory":   {checkCgroups, map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpu pids"}, nil, map[string]State{"cgroups": Blocks}},
		"cgroup v1":              {checkCgroups, map[string]string{"sys/fs/cgroup/cpu,cpuacct/cgroup.procs": "", "sys/fs/cgroup/memory/cgroup.procs": "", "sys/fs/cgroup/pids/cgroup.procs": ""}, nil, map[string]State{"cgroups": OK}},
		"no cgroups":             {checkCgroups, nil, nil, map[string]State{"cgroups": Blocks}},
		"no runtime":             {checkRuntime, nil, nil, map[string]State{"runtime": Blocks}},
		"all programs":           {checkPrograms, map[string]string{"usr/share/keyrings/debian-archive-keyring.gpg": ""}, map[string]string{"git": "", "catatonit": "", "mmdebstrap": "", "newuidmap": ""}, map[string]State{"git": OK, "init": OK, "mmdebstrap": OK, "uidmap": OK, "Debian's keys": OK}},
		"an init with libraries": {checkPrograms, nil, map[string]string{"tini": ""}, map[string]State{"git": Warn, "init": Blocks, "mmdebstrap": Warn, "uidmap": Warn, "Debian's keys": Warn}},
		"Docker drops":           {checkForward, map[string]string{"proc/sys/net/ipv4/ip_forward": "1"}, map[string]string{"iptables": "-P INPUT ACCEPT\n-P FORWARD DROP\n-N DOCKER-USER\n"}, map[string]State{"forward policy": Warn}},
		"nothing drops":          {checkForward, map[string]string{"proc/sys/net/ipv4/ip_forward": "0"}, map[string]string{"iptables": "-P FORWARD ACCEPT\n"}, map[string]State{"forwarding": Warn, "forward policy": OK}},
		"a table drops":          {checkForward, map[string]string{"proc/sys/net/ipv4/ip_forward": "1"}, map[string]string{"nft": "table inet fw {\n\tchain f {\n\t\ttype filter hook forward priority filter; policy drop;\n"}, map[string]State{"forward policy": Warn}},
		"Kiln's own table":       {checkForward, map[string]string{"proc/sys/net/ipv4/ip_forward": "1"}, map[string]string{"nft": "table inet kiln_00aa11 {\n\tchain f {\n\t\ttype filter hook forward priority filter; policy drop;\n"}, map[string]State{"forward policy": OK}},
		"firewalld":              {checkFirewalld, map[string]string{"proc/77/comm": "firewalld\n"}, nil, map[string]State{"firewalld": Warn}},
		"an SSH daemon":          {checkSSH, map[string]string{"proc/78/comm": "sshd\n", "proc/79/comm": "bash\n"}, nil, map[string]State{"ssh": Warn}},
		"no SSH daemon":          {checkSSH, map[string]string{"proc/79/comm": "bash\n"}, nil, map[string]State{"ssh": OK}},
		"little memory":          {checkMemory, map[string]string{"proc/meminfo": "MemTotal: 1 kB\nMemAvailable:  200000 kB\n"}, nil, map[string]State{"memory": Blocks}},
		"enough memory":          {checkMemory, map[string]string{"proc/meminfo": "MemAvailable:  4000000 kB\n"}, nil, map[string]State{"memory": OK}},
		"not installed":          {checkInstallation, nil, nil, map[string]State{"installation": OK}},
		"installed, and running": {
			checkInstallation, installation(),
			map[string]string{"systemctl is-enabled": "enabled\n", "systemctl is-active": "active\n"},
			map[string]State{"installation": OK, "accounts": OK, "configuration": rooted(), "kilnd unit": OK, "kiln-keep unit": OK},
		},
		"installed, and ended": {
			checkInstallation, installation(),
			map[string]string{"systemctl is-enabled": "enabled\n", "systemctl is-active": "failed\n"},
			map[string]State{"installation": OK, "accounts": OK, "configuration": rooted(), "kilnd unit": Warn, "kiln-keep unit": Warn},
		},
		"installed, not at boot": {
			checkInstallation, installation(),
			map[string]string{"systemctl is-enabled": "disabled\n", "systemctl is-active": "active\n"},
			map[string]State{"installation": OK, "accounts": OK, "configuration": rooted(), "kilnd unit": Warn, "kiln-keep unit": Warn},
		},
		"installed without systemd, and without a user": {
			checkInstallation, installation("run/systemd/system/x", "etc/passwd"), nil,
			map[string]State{"installation": OK, "accounts": Warn, "configuration": rooted(), "units": Warn},
		},
		"kilnd is not anywhere": {checkDaemon, nil, nil, map[string]State{"kilnd": Blocks}},
	} {
		t.Run(name, func(t *testing.T) {
			h := machine(t, c.files, c.programs)
			all := c.check(t.Context(), h)
			got := states(all)
			if len(got) != len(c.want) {
				t.Errorf("%+v", all)
			}
			for check, want := range c.want {
				if got[check] != want {
					t.Errorf("%s: %s, want %s: %+v", check, got[check], want, all)
				}
			}
			for _, f := range all {
				if f.State != OK && f.Fix == "" {
					t.Errorf("%s does not say what mends it", f.Check)
				}
			}
		})
	}
}

func TestADroppingChainIsNamedWithWhatMendsIt(t *testing.T) {
	const chains = `table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
	chain DOCKER-USER {
	}
}
table ip6 filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
}
table inet mine {
	chain in {
		type filter hook input priority filter; policy drop;
	}
	chain through {
		type filter hook forward priority filter; policy drop;
	}
}
table inet kiln_00aa11 {
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
`
	for name, c := range map[string]struct {
		programs map[string]string
		fixes    []string
	}{
		"Docker": {
			map[string]string{"iptables": "-P FORWARD DROP\n-N DOCKER-USER\n", "nft": chains},
			[]string{throughDocker, "nft 'chain inet mine through { policy accept; }'"},
		},
		"without iptables": {
			map[string]string{"nft": chains},
			[]string{"nft 'chain ip filter FORWARD { policy accept; }'", "nft 'chain inet mine through { policy accept; }'"},
		},
		"iptables alone": {map[string]string{"iptables": "-P FORWARD DROP\n"}, []string{"iptables -P FORWARD ACCEPT"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := machine(t, map[string]string{"proc/sys/net/ipv4/ip_forward": "1"}, c.programs)
			var fixes []string
			for _, f := range checkForward(t.Context(), h) {
				fixes = append(fixes, f.Fix)
			}
			if !slices.Equal(fixes, c.fixes) {
				t.Errorf("%q, want %q", fixes, c.fixes)
			}
		})
	}
}

func TestATakenPortBlocksUnlessItIsOurs(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	h := machine(t, nil, nil)
	h.HTTP = listener.Addr().String()
	if got := states(checkPorts(t.Context(), h)); got["http"] != Blocks {
		t.Errorf("%v", got)
	}
	h.Running = true
	if got := states(checkPorts(t.Context(), h)); got["http"] != OK {
		t.Errorf("%v", got)
	}
}

func TestAWrongClockBlocks(t *testing.T) {
	h := machine(t, nil, nil)
	h.Now = func() time.Time { return time.Unix(0, 0) }
	if got := states(checkClock(t.Context(), h)); got["clock"] != Blocks {
		t.Errorf("%v", got)
	}
}

func TestThisMachineIsLookedAtWhole(t *testing.T) {
	if testing.Short() {
		t.Skip("looks at the real machine")
	}
	all := Check(t.Context(), Options{Data: t.TempDir(), Look: func(string) (string, error) { return "", os.ErrNotExist }})
	if len(all) < 12 || !Blocked(all) {
		t.Errorf("%+v", all)
	}
}

func TestAConfigurationThatOthersMayWriteBlocks(t *testing.T) {
	h := machine(t, installation(), nil)
	if err := os.Chmod(h.path("/etc/kiln/kilnd.hcl"), 0o664); err != nil {
		t.Fatal(err)
	}
	if got := states(h.checkConfig()); got["configuration"] != Blocks {
		t.Errorf("%v", got)
	}
}

func TestAPackageIsKnown(t *testing.T) {
	h := machine(t, map[string]string{"usr/lib/systemd/system/kilnd.service": ""}, nil)
	all := checkInstallation(t.Context(), h)
	if all[0].Message != "by a package" || all[1].Check != "accounts" || all[1].Fix != "apt-get install --reinstall kiln" {
		t.Errorf("%+v", all)
	}
}
