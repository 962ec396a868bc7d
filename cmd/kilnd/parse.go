package main

import (
	"net"
	"strconv"
	"strings"

	"github.com/kilnproject/kiln"
)

// parseSize reads a number of bytes: "0", "512MiB", "40GiB", "1TiB".
func parseSize(text string) (int64, error) {
	number, unit := text, int64(1)
	for suffix, bytes := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40} {
		if n, ok := strings.CutSuffix(text, suffix); ok {
			number, unit = n, bytes
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, invalid("write it like 40GiB", "%q is not a size", text)
	}
	return n * unit, nil
}

// listenAddress checks "address:port" or ":port"; "off" becomes empty.
func listenAddress(text string) (string, error) {
	if text == "off" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", invalid("write it like 127.0.0.1:8080, :8080 or off", "%q is not an address to listen on: %w", text, err)
	}
	if host != "" && net.ParseIP(host) == nil {
		return "", invalid("write a number such as 127.0.0.1", "%q is not an address of this machine", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", invalid("a port is a number from 1 to 65535", "%q is not a port", port)
	}
	return net.JoinHostPort(host, port), nil
}

// publicURL returns where a route answers; "" when it has no address.
func publicURL(c config) func(kiln.Route) string {
	at := func(scheme, address, usual string, r kiln.Route) string {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return ""
		}
		host := r.Host
		if port != usual {
			host = net.JoinHostPort(r.Host, port)
		}
		path := r.Path
		if path == "" {
			path = "/"
		}
		return scheme + "://" + host + path
	}
	return func(r kiln.Route) string {
		switch {
		case r.Host == "" && r.Listen != "":
			return "tcp://" + r.Listen
		case r.TLS.Mode == "" || r.TLS.Mode == "off":
			return at("http", c.http, "80", r)
		default:
			return at("https", c.https, "443", r)
		}
	}
}
