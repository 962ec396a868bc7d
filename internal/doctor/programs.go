package doctor

import (
	"context"
	"strings"
)

// installed is a program or file that Kiln uses, and the package that has it.
type installed struct {
	check   string
	paths   []string // any of these files or programs
	pkg     string   // Debian's
	state   State    // when it is missing
	missing string   // what does not work then
}

// initPrograms are the inits that instances can run under, all static.
func initPrograms() []string {
	return []string{"catatonit", "tini-static", "docker-init"}
}

func needs() []installed {
	return []installed{
		{"git", []string{"git"}, "git", Warn, "releases do not know their commit, and environments that follow a branch are refused"},
		{
			"init",
			initPrograms(),
			"catatonit",
			Blocks, "instances have no init that reaps and forwards signals",
		},
		{"mmdebstrap", []string{"mmdebstrap"}, "mmdebstrap", Warn, "debian images cannot be baked"},
		{"uidmap", []string{"newuidmap"}, "uidmap", Warn, "debian images cannot be baked"},
		{
			"Debian's keys",
			[]string{"/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"},
			"debian-archive-keyring",
			Warn, "debian images cannot be baked: signatures cannot be checked",
		},
	}
}

func checkPrograms(_ context.Context, h *host) []Finding {
	var all []Finding
	for _, need := range needs() {
		found := ""
		for _, path := range need.paths {
			if strings.HasPrefix(path, "/") && h.exists(path) {
				found = path
			} else if at, err := h.Look(path); !strings.HasPrefix(path, "/") && err == nil {
				found = at
			}
			if found != "" {
				break
			}
		}
		if found == "" {
			all = append(all, Finding{Check: need.check, State: need.state, Message: "is missing: " + need.missing, Fix: "apt-get install " + need.pkg})
			continue
		}
		all = append(all, ok(need.check, found)...)
	}
	return all
}
