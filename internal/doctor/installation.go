package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/kilnproject/kiln/internal/install"
)

// checkInstallation looks at what `kiln install` or a package left here: the
// accounts, the configuration and the units.
func checkInstallation(ctx context.Context, h *host) []Finding {
	how, mend := h.installed()
	if how == "" {
		return ok("installation", "none: kiln up starts the control plane; kiln install makes it a service that starts at boot")
	}
	all := ok("installation", how)
	all = append(all, h.checkAccounts(mend)...)
	all = append(all, h.checkConfig()...)
	return append(all, h.checkUnits(ctx)...)
}

// installed says how Kiln was installed, "" when it was not, and the command
// that installs it again.
func (h *host) installed() (how, mend string) {
	record, err := install.Read(h.Root)
	if err == nil && record != nil && slices.ContainsFunc(record.Items, func(e install.Entry) bool { return filepath.Base(e.Name) == install.DaemonUnit }) {
		return fmt.Sprintf("version %s in %s, by kiln install", record.Kiln, record.Prefix), "kiln install"
	}
	if h.exists(filepath.Join(install.UnitDir("/usr"), install.DaemonUnit)) {
		return "by a package", "apt-get install --reinstall kiln"
	}
	return "", ""
}

func (h *host) checkAccounts(mend string) []Finding {
	var missing []string
	for _, one := range []struct{ file, name string }{
		{"/etc/group", install.GroupName}, {"/etc/passwd", install.GatewayUser}, {"/etc/passwd", install.ReaderUser},
	} {
		if !strings.Contains("\n"+h.read(one.file), "\n"+one.name+":") {
			missing = append(missing, one.name)
		}
	}
	if len(missing) > 0 {
		return warn("accounts", "missing: "+strings.Join(missing, ", "), mend)
	}
	return ok("accounts", fmt.Sprintf("group %s, users %s and %s", install.GroupName, install.GatewayUser, install.ReaderUser))
}

func (h *host) checkConfig() []Finding {
	const check = "configuration"
	info, err := os.Stat(h.path(install.ConfigFile))
	switch {
	case os.IsNotExist(err):
		return ok(check, "there is no "+install.ConfigFile+": everything has its default")
	case os.IsPermission(err):
		return warn(check, install.ConfigFile+" cannot be looked at: that needs root or the group "+install.GroupName, "sudo kiln doctor")
	case err != nil:
		return blocks(check, err.Error(), "ls -l "+install.ConfigDir)
	}
	stat, _ := info.Sys().(*syscall.Stat_t)
	if !info.Mode().IsRegular() || stat == nil || stat.Uid != 0 || info.Mode().Perm()&0o022 != 0 {
		return blocks(check, install.ConfigFile+" is not root's alone to write: whoever writes it is root",
			fmt.Sprintf("look at what is in it, then: chown root:%s %s && chmod 0640 %s", install.GroupName, install.ConfigFile, install.ConfigFile))
	}
	return ok(check, install.ConfigFile)
}

func (h *host) checkUnits(ctx context.Context) []Finding {
	if !h.exists("/run/systemd/system") {
		return warn("units", "no systemd runs here: nothing starts Kiln at boot but what you have set up", "start kilnd from whatever starts services here")
	}
	var all []Finding
	for _, unit := range []string{install.KeeperUnit, install.DaemonUnit} {
		check := strings.TrimSuffix(unit, ".service") + " unit"
		enabled, _ := h.Run(ctx, "systemctl", "is-enabled", unit) // its exit code says the same
		active, _ := h.Run(ctx, "systemctl", "is-active", unit)
		switch starts, runs := strings.TrimSpace(string(enabled)), strings.TrimSpace(string(active)); {
		case runs != "active":
			all = append(all, warn(check, "is "+runs, "systemctl start "+unit+"; journalctl -u "+unit)...)
		case starts != "enabled":
			all = append(all, warn(check, "runs, and does not start at boot ("+starts+")", "systemctl enable "+unit)...)
		default:
			all = append(all, ok(check, "runs, and starts at boot")...)
		}
	}
	return all
}
