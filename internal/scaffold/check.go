package scaffold

import (
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// check is a health check that runs a command inside of a container.
type check struct {
	command  []string
	interval time.Duration
	timeout  time.Duration
	start    time.Duration
	failures int
}

func parseDuration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0
	}
	return d
}

// httpPath returns the path and port of the request that a check makes by curl
// or wget, if that is what it does.
func (c *check) httpPath() (path string, port int, ok bool) {
	text := strings.Join(c.command, " ")
	if !strings.Contains(text, "curl") && !strings.Contains(text, "wget") {
		return "", 0, false
	}
	found := regexp.MustCompile(`https?://[^\s"'|;&<>()]+`).FindString(text)
	u, err := url.Parse(found)
	if found == "" || err != nil || u.Scheme != "http" || strings.ContainsAny(found, "${}") {
		return "", 0, false
	}
	switch u.Hostname() {
	case "localhost", "127.0.0.1", "0.0.0.0", "::1":
	default:
		return "", 0, false
	}
	port = 80
	if u.Port() != "" {
		if port, err = strconv.Atoi(u.Port()); err != nil {
			return "", 0, false
		}
	}
	path = u.RequestURI()
	return path, port, true
}

// probe turns a health check into a ready block. Kiln asks from outside, so a
// check that is no HTTP request becomes a connection to the first port.
func (s *service) probe(c *check, whose string) {
	if c == nil {
		return
	}
	path, number, ok := c.httpPath()
	if ok {
		if at := s.port(number); at < 0 || s.ports[at].protocol == "tcp" {
			ok = false
		} else {
			s.ready = append(s.ready, setting{"http", quote(path)})
			if at > 0 {
				s.ready = append(s.ready, setting{"port", quote(s.ports[at].name)})
			}
		}
	}
	if !ok && len(s.ports) > 0 {
		s.notes = append(s.notes, fmt.Sprintf("%s runs a command inside (%s). Kiln asks from outside: without a ready block, a connection to the first port is enough.", whose, strings.Join(c.command, " ")))
	}
	if !ok && len(s.ports) == 0 {
		s.notes = append(s.notes, fmt.Sprintf("%s (%s) is not carried over: an instance without ports is ready once its process runs.", whose, strings.Join(c.command, " ")))
		return
	}
	s.timing(c)
}

func (s *service) timing(c *check) {
	add := func(name string, d, low, high time.Duration) {
		if d > 0 {
			s.ready = append(s.ready, setting{name, quote(min(max(d, low), high).String())})
		}
	}
	add("interval", c.interval, 100*time.Millisecond, time.Hour)
	add("timeout", c.timeout, 10*time.Millisecond, 5*time.Minute)
	if c.failures > 0 {
		s.ready = append(s.ready, setting{"failures", strconv.Itoa(min(c.failures, 100))})
	}
	if c.start > time.Minute {
		s.startTimeout = min(c.start, time.Hour).String()
	}
}

// port returns the index of the port with a number, or -1.
func (s *service) port(number int) int {
	for i, p := range s.ports {
		if p.number == number {
			return i
		}
	}
	return -1
}

// expose adds a port, "8080" or "8080/tcp".
func (s *service) expose(text string) {
	number, protocol, _ := strings.Cut(text, "/")
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > 65535 {
		s.notes = append(s.notes, fmt.Sprintf("The exposed port %q is not carried over: it is not a number.", text))
		return
	}
	if protocol == "udp" || protocol == "sctp" {
		s.notes = append(s.notes, fmt.Sprintf("The port %s is not carried over: Kiln has no %s ports.", text, protocol))
		return
	}
	s.addPort(n, guessProtocol(n))
}

// addPort adds a port unless the service has it.
func (s *service) addPort(number int, protocol string) {
	if s.port(number) >= 0 {
		return
	}
	name := protocol
	for i := range s.ports {
		if s.ports[i].name == name {
			name = fmt.Sprintf("%s-%d", protocol, number)
		}
	}
	s.ports = append(s.ports, port{name: name, number: number, protocol: protocol})
}

// guessProtocol knows the ports that surely do not speak HTTP.
func guessProtocol(number int) string {
	switch number {
	case 21, 22, 23, 25, 53, 110, 143, 389, 465, 587, 636, 993, 995,
		1433, 1521, 1883, 2181, 2379, 3306, 4222, 5432, 5671, 5672, 6379, 6380, 8883, 9042, 9092, 11211, 26379, 27017, 50000:
		return "tcp"
	}
	return "http"
}

// volume makes a path writable, with the warning that belongs to it.
func (s *service) volume(target, whose string) {
	target = strings.TrimSuffix(target, "/")
	if !validWritable(target) {
		s.notes = append(s.notes, fmt.Sprintf("%s %s is not carried over.", whose, target))
		return
	}
	s.notes = append(s.notes, fmt.Sprintf("%s %s is a tmpfs here: what is written there is gone with the instance. State that must last belongs into a database or an object store elsewhere.", whose, target))
	s.write(target, 256)
}

// write makes a path writable unless it is inside of one that is.
func (s *service) write(target string, mebibytes int64) {
	if s.writable == nil {
		s.writable = map[string]int64{}
	}
	for other := range s.writable {
		if strings.HasPrefix(target, other+"/") {
			return
		}
		if strings.HasPrefix(other, target+"/") {
			delete(s.writable, other)
		}
	}
	s.writable[target] = mebibytes
}
