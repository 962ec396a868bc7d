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
	switch who := h.dropper(ctx); who {
	case "":
		return append(all, ok("forward policy", "nothing drops what is forwarded")...)
	case "docker":
		return append(all, warn("forward policy", "Docker's policy drops what is forwarded: declared egress does not work",
			"iptables -I DOCKER-USER -i 'k+' -j ACCEPT && iptables -I DOCKER-USER -o 'k+' -j ACCEPT")...)
	default:
		return append(all, warn("forward policy", who+" drops what is forwarded: declared egress does not work", "iptables -P FORWARD ACCEPT")...)
	}
}

// dropper names who drops forwarded packets: "docker", a table, or "".
func (h *host) dropper(ctx context.Context) string {
	docker := h.exists("/run/docker.sock")
	for _, program := range []string{"iptables", "ip6tables"} {
		if !h.has(program) {
			continue
		}
		out, err := h.Run(ctx, program, "-S")
		if err != nil || !strings.Contains(string(out), "-P FORWARD DROP") {
			continue
		}
		if docker || strings.Contains(string(out), "DOCKER-USER") {
			return "docker"
		}
		return "the policy of " + program
	}
	if !h.has("nft") {
		return ""
	}
	out, err := h.Run(ctx, "nft", "list", "chains")
	if err != nil {
		return ""
	}
	return droppingTable(string(out))
}

// droppingTable finds a table with a base chain on forward whose policy is
// drop, in what `nft list chains` prints. Kiln's own do not count.
func droppingTable(chains string) string {
	table := ""
	for line := range strings.Lines(chains) {
		fields := strings.Fields(line)
		if len(fields) >= 3 && fields[0] == "table" {
			table = strings.Join(fields[1:3], " ")
		}
		if strings.Contains(line, "hook forward") && strings.Contains(line, "policy drop") && !strings.Contains(table, "kiln") {
			return "table " + table
		}
	}
	return ""
}

func checkFirewalld(_ context.Context, h *host) []Finding {
	if h.process("firewalld") {
		return warn("firewalld", "runs: it takes its rules anew whenever it reloads, and may drop the gateway's ports",
			"systemctl disable --now firewalld, or: firewall-cmd --permanent --add-port=8080/tcp --add-port=8443/tcp && firewall-cmd --reload")
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
