package bake_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/kilnproject/kiln/internal/bake"
)

// listen opens a port that must not be reached, and counts who does.
func listen(t *testing.T, at string) (port uint16, reached func() int) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	count := make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			count <- struct{}{}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal("not TCP")
	}
	return addr.AddrPort().Port(), func() int { return len(count) }
}

// privateHost makes a namespace with a private address behind this machine:
// a neighbour that forwarding would reach.
func privateHost(t *testing.T) netip.Addr {
	t.Helper()
	const ns, link = "kilnbaketest", "kilnbaketest0"
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(context.Background(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	run("ip", "netns", "add", ns)
	t.Cleanup(func() { run("ip", "netns", "del", ns) })
	run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", ns)
	run("ip", "addr", "add", "10.213.77.1/30", "dev", link)
	run("ip", "link", "set", link, "up")
	run("ip", "-n", ns, "addr", "add", "10.213.77.2/30", "dev", "eth0")
	run("ip", "-n", ns, "link", "set", "eth0", "up")
	run("ip", "-n", ns, "link", "set", "lo", "up")
	run("ip", "-n", ns, "route", "add", "default", "via", "10.213.77.1")
	return netip.MustParseAddr("10.213.77.2")
}

// try is a line of bash that says whether an address answers: a refused
// connection is an answer too, silence is none.
func try(name, address string, port uint16) string {
	return fmt.Sprintf(`if timeout 2 bash -c "exec 3<>/dev/tcp/%s/%d" 2>/tmp/e; then echo %s open; elif grep -q refused /tmp/e; then echo %s refused; else echo %s silent; fi`,
		address, port, name, name, name)
}

func TestRunCannotReachPrivateNetworks(t *testing.T) {
	needRoot(t)
	neighbour := privateHost(t)
	loopback, reachedLoopback := listen(t, "127.0.0.1:0")
	everywhere, reachedHost := listen(t, "0.0.0.0:0")
	script := strings.Join([]string{
		`hex=$(awk '$2=="00000000"{print $3}' /proc/net/route)`,
		`gw=$(printf '%d.%d.%d.%d' 0x${hex:6:2} 0x${hex:4:2} 0x${hex:2:2} 0x${hex:0:2})`,
		"echo gateway is $gw",
		try("loopback", "127.0.0.1", loopback),
		try("host", hostAddress(t).String(), everywhere),
		try("gateway", "$gw", everywhere),
		try("neighbour", neighbour.String(), 80),
		try("metadata", "169.254.169.254", 80),
		"getent hosts deb.debian.org >/dev/null && echo resolver answers",
		"exit 0",
	}, "\n")
	for name, c := range map[string]struct {
		allow []netip.Prefix
		want  map[string]string
	}{
		"default": {nil, map[string]string{"loopback": "refused", "host": "silent", "gateway": "silent", "neighbour": "silent", "metadata": "silent"}},
		"allowed": {
			[]netip.Prefix{netip.MustParsePrefix("10.213.77.0/30")},
			map[string]string{"host": "silent", "gateway": "silent", "neighbour": "refused", "metadata": "silent"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := seeded(t, func(o *bake.Options) { o.AllowPrivate = c.allow })
			s.mustBake(s.request(map[string]string{
				"web/Dockerfile": "FROM base\nCOPY try.sh /\nRUN bash /try.sh\n", "web/try.sh": script,
			}))
			text := s.log.text()
			for what, want := range c.want {
				if !strings.Contains(text, "| "+what+" "+want+"\n") {
					t.Errorf("%s is not %s:\n%s", what, want, text)
				}
			}
			if !strings.Contains(text, "resolver answers") {
				t.Errorf("names are not resolved:\n%s", text)
			}
		})
	}
	if n := reachedLoopback() + reachedHost(); n != 0 {
		t.Errorf("%d connections came through", n)
	}
}

func hostAddress(t *testing.T) netip.Addr {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP.To4()); ok && ip.IsGlobalUnicast() && !ip.IsPrivate() && !strings.HasPrefix(ip.String(), "198.18.") {
				return ip
			}
		}
	}
	t.Skip("this machine has no public address")
	return netip.Addr{}
}

func TestHermeticHasNoNetwork(t *testing.T) {
	needRoot(t)
	s := seeded(t)
	req := s.request(map[string]string{"web/Dockerfile": "FROM base\nRUN ls /sys/class/net; if getent hosts deb.debian.org; then exit 1; fi\n"})
	req.Images[1].Hermetic = true
	s.mustBake(req)
	if text := s.log.text(); strings.Contains(text, "| eth0\n") {
		t.Errorf("a hermetic RUN has a link:\n%s", text)
	}
}
