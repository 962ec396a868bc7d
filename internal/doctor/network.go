package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// checkNftables asks the kernel for the generation of its rules, which only a
// kernel with nf_tables knows.
func checkNftables(context.Context, *host) []Finding {
	if os.Geteuid() != 0 {
		return nil
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err == nil {
		defer func() { _ = conn.Close() }()
		_, err = conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
			Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, // struct nfgenmsg
		})
	}
	if err != nil {
		return blocks("nftables", "the kernel's packet filter cannot be used: "+err.Error(), "modprobe nf_tables")
	}
	return ok("nftables", "works")
}

// checkForward looks for a firewall that drops what is forwarded: Docker's,
// most often. Another table's drop wins over every accept of Kiln's.
func checkForward(ctx context.Context, h *host) []Finding {
	var all []Finding
	if h.read("/proc/sys/net/ipv4/ip_forward") != "1" {
		all = append(all, warn("forwarding", "is off: declared egress does not leave the machine until kilnd turns it on",
			"sysctl -w net.ipv4.ip_forward=1")...)
	}
	found := h.droppers(ctx)
	if len(found) == 0 {
		return append(all, ok("forward policy", "nothing drops what is forwarded")...)
	}
	for _, d := range found {
		all = append(all, warn("forward policy", d.who+" drops what is forwarded: declared egress does not work", d.fix)...)
	}
	return all
}

// dropper is who drops forwarded packets, and the command that ends it.
type dropper struct{ who, fix string }

// throughDocker lets Kiln's links through before Docker's own rules.
const throughDocker = "iptables -I DOCKER-USER -i 'k+' -j ACCEPT && iptables -I DOCKER-USER -o 'k+' -j ACCEPT"

// droppers looks with the programs that are there. What iptables shows is in
// nftables too where it is a front end of it; it is named once.
func (h *host) droppers(ctx context.Context) []dropper {
	var all []dropper
	if h.has("iptables") {
		out, err := h.Run(ctx, "iptables", "-S")
		switch {
		case err != nil || !strings.Contains(string(out), "-P FORWARD DROP"):
		case strings.Contains(string(out), "DOCKER-USER"):
			all = append(all, dropper{"Docker's policy", throughDocker})
		default:
			all = append(all, dropper{"the policy of iptables", "iptables -P FORWARD ACCEPT"})
		}
	}
	if h.has("nft") {
		if out, err := h.Run(ctx, "nft", "list", "chains"); err == nil {
			all = append(all, droppingChains(string(out), len(all) > 0)...)
		}
	}
	return all
}

// droppingChains finds the base chains on forward whose policy is drop, in
// what `nft list chains` prints. Kiln's own do not count, nor does IPv6, which
// instances do not have, nor iptables' when it was looked at already.
func droppingChains(text string, iptables bool) []dropper {
	var all []dropper
	table, chain := "", ""
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) >= 3 && fields[0] == "table":
			table = strings.Join(fields[1:3], " ")
		case len(fields) >= 2 && fields[0] == "chain":
			chain = fields[1]
		}
		if !strings.Contains(line, "hook forward") || !strings.Contains(line, "policy drop") {
			continue
		}
		family, name, _ := strings.Cut(table, " ")
		front := table == "ip filter" && chain == "FORWARD"
		if strings.HasPrefix(name, "kiln_") || family != "ip" && family != "inet" || front && iptables {
			continue
		}
		all = append(all, dropper{"table " + table, fmt.Sprintf("nft 'chain %s %s { policy accept; }'", table, chain)})
	}
	return all
}

func checkFirewalld(_ context.Context, h *host) []Finding {
	if h.process("firewalld") {
		return warn("firewalld", "runs: it rejects what is forwarded, so that declared egress does not work, and may drop the gateway's ports",
			"systemctl disable --now firewalld, or: firewall-cmd --permanent --zone=trusted --add-interface='k+' && "+
				"firewall-cmd --permanent --add-port=8080/tcp --add-port=8443/tcp && firewall-cmd --reload")
	}
	return ok("firewalld", "does not run")
}

func checkSSH(_ context.Context, h *host) []Finding {
	if h.process("sshd") || h.process("dropbear") {
		return warn("ssh", "an SSH daemon runs: a host whose instances are replaced and never entered should not need one",
			"systemctl disable --now ssh")
	}
	return ok("ssh", "no SSH daemon runs")
}

// process says whether any process has this name.
func (h *host) process(name string) bool {
	entries, err := os.ReadDir(h.path("/proc"))
	if err != nil {
		return false
	}
	for _, e := range entries {
		if e.Name()[0] >= '1' && e.Name()[0] <= '9' && h.read("/proc/"+e.Name()+"/comm") == name {
			return true
		}
	}
	return false
}

func checkPorts(ctx context.Context, h *host) []Finding {
	var all []Finding
	for _, one := range []struct{ check, address, option string }{{"http", h.HTTP, "KILN_LISTEN_HTTP"}, {"https", h.HTTPS, "KILN_LISTEN_HTTPS"}} {
		switch {
		case one.address == "":
			continue
		case h.Running:
			all = append(all, ok(one.check, one.address+" is the running gateway's")...)
		default:
			all = append(all, checkPort(ctx, one.check, one.address, one.option)...)
		}
	}
	return all
}

func checkPort(ctx context.Context, check, address, option string) []Finding {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		_ = listener.Close()
		return ok(check, address+" is free")
	case errors.Is(err, syscall.EADDRINUSE):
		return blocks(check, address+" is taken by another program", fmt.Sprintf("end it (ss -ltnp shows it), or set %s=ADDRESS:PORT", option))
	case errors.Is(err, os.ErrPermission):
		return warn(check, address+" cannot be tried: that needs root", "sudo kiln doctor")
	default:
		return blocks(check, address+" cannot be listened on: "+err.Error(), fmt.Sprintf("set %s=ADDRESS:PORT", option))
	}
}
