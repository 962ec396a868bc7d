package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/gateway"
	"github.com/kilnproject/kiln/internal/handoff"
)

// Which proxy.
const (
	nginx = iota
	ours
)

// stand is the processes under measurement.
type stand struct {
	address [2]string
	keeper  *net.UnixConn // held: its end would be the keeper's
	stops   []func()
}

// answer is what the upstream says, whatever it is asked.
const (
	answerBody = "Hello, world\n"
	answer     = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\n" + answerBody
)

// runPart is the program as one of its own parts.
func runPart(part string) bool {
	var err error
	switch part {
	case "part-upstream":
		err = upstream()
	case "part-gateway":
		ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer cancel()
		err = gateway.Run(ctx, gateway.Options{
			Dir: os.Getenv("KILN_BENCH_DIR"), Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		})
	default:
		return false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	return true
}

// upstream answers on the listener that it inherited.
func upstream() error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go serveAnswers(c)
	}
}

// serveAnswers answers each head, wherever its parts fall.
func serveAnswers(c net.Conn) {
	defer func() { _ = c.Close() }()
	b := bufio.NewReaderSize(c, 4096)
	for {
		line, err := b.ReadSlice('\n')
		if err != nil {
			return
		}
		if len(line) == 2 {
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	}
}

func startStand(ctx context.Context, dir string) (s *stand, err error) {
	s = &stand{}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	up, upFile, err := listen()
	if err != nil {
		return nil, err
	}
	if err := s.part("part-upstream", dir, upFile); err != nil {
		return nil, err
	}
	if s.address[nginx], err = s.startNginx(ctx, dir, up); err != nil {
		return nil, err
	}
	if s.address[ours], err = s.startGateway(ctx, dir, up); err != nil {
		return nil, err
	}
	return s, nil
}

// listen opens a loopback listener to be inherited.
func listen() (netip.AddrPort, *os.File, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	defer func() { _ = l.Close() }()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	return netip.MustParseAddrPort(l.Addr().String()), f, nil
}

// part starts this program as one of its parts and closes the files here.
func (s *stand) part(name, dir string, files ...*os.File) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe, name)
	cmd.ExtraFiles, cmd.Stderr = files, os.Stderr
	cmd.Env = append(os.Environ(), "KILN_BENCH_DIR="+filepath.Join(dir, "gateway"))
	err = s.start(cmd)
	for _, f := range files {
		_ = f.Close()
	}
	return err
}

func (s *stand) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.stops = append(s.stops, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	return nil
}

func (s *stand) stop() {
	for _, f := range s.stops {
		f()
	}
	if s.keeper != nil {
		_ = s.keeper.Close()
	}
}

// startNginx starts nginx with as many workers as Go has threads, buffered
// access log, counters, and connections kept to the upstream.
func (s *stand) startNginx(ctx context.Context, dir string, up netip.AddrPort) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		return "", err
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(nginxConf, dir, dir, dir, dir, dir, dir, dir, dir, up, address)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return "", err
	}
	cmd := exec.Command("nginx", "-c", conf, "-e", filepath.Join(dir, "error.log"))
	cmd.Stderr = os.Stderr
	if err := s.start(cmd); err != nil {
		return "", err
	}
	return address, answers(ctx, address)
}

const nginxConf = `daemon off;
worker_processes auto;
pid %s/nginx.pid;
error_log %s/error.log;
events { worker_connections 4096; }
http {
	access_log %s/nginx-access.log combined buffer=64k flush=1s;
	client_body_temp_path %s/body; proxy_temp_path %s/proxy; fastcgi_temp_path %s/fastcgi;
	uwsgi_temp_path %s/uwsgi; scgi_temp_path %s/scgi;
	keepalive_requests 1000000000;
	upstream up { server %s; keepalive 64; keepalive_requests 1000000000; }
	server {
		listen %s;
		location = /status { stub_status; }
		location / {
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Proto $scheme;
			proxy_set_header X-Forwarded-Host $host;
			proxy_set_header X-Request-Id $request_id;
			proxy_pass http://up;
		}
	}
}
`

// startGateway starts ours as the keeper does, and gives it a table.
func (s *stand) startGateway(ctx context.Context, dir string, up netip.AddrPort) (string, error) {
	socket := filepath.Join(dir, "gateway.sock")
	control, err := net.Listen("unix", socket)
	if err != nil {
		return "", err
	}
	controlFile, err := control.(*net.UnixListener).File()
	if err != nil {
		return "", err
	}
	keeper, theirs, err := handoff.Pair()
	if err != nil {
		return "", err
	}
	s.keeper = keeper
	if err := s.part("part-gateway", dir, controlFile, theirs); err != nil {
		return "", err
	}
	public, publicFile, err := listen()
	if err != nil {
		return "", err
	}
	defer func() { _ = publicFile.Close() }()
	if err := handoff.Send(keeper, "tcp://"+public.String(), publicFile); err != nil {
		return "", err
	}
	const fleet = kiln.FleetID("bench/up/000000000000")
	client := gateway.NewClient(socket)
	err = client.Set(ctx, kiln.Traffic{
		Generation: 1, HTTP: []string{public.String()},
		Public: []kiln.PublicRoute{{
			Environment: "bench", Protocol: kiln.ProtocolHTTP, Number: up.Port(),
			Route:  kiln.Route{Name: "up", Host: "127.0.0.1", Path: "/"},
			Fleets: []kiln.Weight{{Fleet: fleet, Percent: 100}},
		}},
		Fleets: map[kiln.FleetID][]kiln.Endpoint{fleet: {{Instance: "up-1", Address: up.Addr()}}},
	})
	if err != nil {
		return "", err
	}
	return public.String(), answers(ctx, public.String())
}

// answers waits until a proxy answers with the upstream's words.
func answers(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(res.Status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", address, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
