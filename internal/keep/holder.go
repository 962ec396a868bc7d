package keep

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tcpListen is the state of a listening socket in /proc/net/tcp.
const tcpListen = "0A"

// holder names the process that listens on a port, "nginx (pid 612)", or
// returns nothing when it cannot be told.
func holder(network string, port uint16) string {
	inodes := map[string]bool{}
	for _, table := range []string{network, network + "6"} {
		listeningInodes("/proc/net/"+table, network == "tcp", port, inodes)
	}
	if len(inodes) == 0 {
		return ""
	}
	files, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, f := range files {
		target, err := os.Readlink(f)
		if err != nil || !inodes[target] {
			continue
		}
		pid := strings.Split(f, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue
		}
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid)
	}
	return ""
}

// listeningInodes adds the links of the sockets on a port, as /proc/PID/fd
// shows them.
func listeningInodes(table string, tcp bool, port uint16, into map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 10 || tcp && fields[3] != tcpListen {
			continue
		}
		_, hex, ok := strings.Cut(fields[1], ":")
		n, err := strconv.ParseUint(hex, 16, 16)
		if ok && err == nil && uint16(n) == port {
			into["socket:["+fields[9]+"]"] = true
		}
	}
}
