package local_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	realgateway "github.com/kilnproject/kiln/internal/gateway"
	"github.com/kilnproject/kiln/internal/keep"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// processes are the real keeper and the real gateway of a data directory.
type processes struct {
	keeper  *keep.Client
	gateway interface {
		Set(ctx context.Context, t kiln.Traffic) error
		Measure(ctx context.Context) ([]kiln.Measurement, error)
		Drain(ctx context.Context, instance string, limit time.Duration) error
		Failures(ctx context.Context) (<-chan string, error)
	}
	address string // of public HTTP
	command *exec.Cmd
	life    io.Closer // of the keeper, which ends with its gateway when it is closed
}

// buildProcesses builds the keeper and the gateway, once.
var buildProcesses = sync.OnceValues(func() (string, error) {
	path := filepath.Join(os.Getenv("KILN_TEST_BIN"), "processes")
	out, err := exec.Command("go", "build", "-o", path, "./testdata/processes").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// newRealBed is an engine with a real keeper and a real gateway.
func newRealBed(t testing.TB) *bed {
	t.Helper()
	root(t)
	program, err := buildProcesses()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "kiln-local-")
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, dir: dir, images: newImages(t, dir)}
	t.Cleanup(b.clean)
	for _, sub := range []string{"run", "gateway"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "keep", dir)
	if testing.Verbose() {
		cmd.Stderr = t.Output()
	}
	life, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	b.real = &processes{command: cmd, life: life, gateway: realgateway.NewClient(filepath.Join(dir, "run/gateway.sock"))}
	b.real.address = freeAddress(t)
	for limit := time.Now().Add(longest); ; {
		if b.real.keeper, err = keep.Dial(filepath.Join(dir, "run/keep.sock")); err == nil {
			break
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
	b.boot()
	return b
}

// end stops keeper and gateway.
func (p *processes) end(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	if p.keeper != nil {
		if err := p.keeper.Stop(ctx, t.Failed()); err != nil {
			t.Error(err)
		}
	}
	_ = p.life.Close()
	done := make(chan struct{})
	go func() { _ = p.command.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		t.Error("the keeper did not end")
		_ = p.command.Process.Kill()
		<-done
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	port, err := kilntest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

func TestEngineSuite(t *testing.T) {
	root(t)
	kilntest.RunEngineSuite(t, func(t *testing.T) kilntest.EngineUnderTest {
		b := newRealBed(t)
		named := func(service string, change func(*kiln.Template)) kiln.Template {
			return web(1, func(t *kiln.Template) { t.Service = service; change(t) }).Template
		}
		return kilntest.EngineUnderTest{
			Engine: b.Engine, Environment: "test", Host: "shop.test",
			Serve: func(version string) kiln.Template {
				return named("web", func(t *kiln.Template) { t.Config.Env = map[string]string{"VERSION": version} })
			},
			Exit: func(code int) kiln.Template {
				return named("worker", func(t *kiln.Template) {
					t.Ports, t.Config.Ready = nil, kiln.Probe{}
					t.Config.Command = []string{"bye", strconv.Itoa(code)}
				})
			},
			NeverReady: func() kiln.Template {
				return named("stuck", func(t *kiln.Template) {
					t.Config.Ready.HTTP = "/sick"
					t.Config.Ready.Port = "http"
					t.Config.Command = []string{"sleep"}
					t.Config.StartTimeout = 300 * time.Millisecond
				})
			},
			IgnoresTerm: func() kiln.Template {
				return named("deaf", func(t *kiln.Template) {
					t.Config.Env = map[string]string{"IGNORE_TERM": "1"}
					t.Config.Grace = 300 * time.Millisecond
				})
			},
			Storm: b.Storm,
			Kill:  func(i kiln.Instance) error { return syscall.Kill(i.PID, syscall.SIGKILL) },
			Get: func(ctx context.Context, path string) (int, string, error) {
				return b.real.get(ctx, "shop.test", path)
			},
		}
	})
}

// TestRestartUnderTraffic ends and starts the engine, kills an instance, and
// replaces all of them, while requests go on.
func TestRestartUnderTraffic(t *testing.T) {
	b := newRealBed(t)
	f := web(3)
	o := b.ready(f)
	route := func(f kiln.Fleet) {
		t.Helper()
		err := b.Route(t.Context(), kiln.RouteTable{Public: []kiln.PublicRoute{{
			Environment: "test", Protocol: kiln.ProtocolHTTP, Number: 80, Fleets: []kiln.Weight{{Fleet: f.ID(), Percent: 100}}, Drain: time.Second,
			Route: kiln.Route{Name: "shop", Service: "web", Port: "http", Host: "shop.test", Path: "/", TLS: kiln.TLS{Mode: "off"}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	route(f)
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var sent, failed atomic.Int64
	for range 2 {
		load.Go(func() {
			for ctx.Err() == nil {
				status, body, err := b.real.get(context.Background(), "shop.test", "/healthz") //nolint:contextcheck // what left is waited for
				sent.Add(1)
				if err != nil || status != http.StatusOK {
					failed.Add(1)
					t.Logf("at %v: status %d: %s %v", time.Now(), status, body, err)
				}
			}
		})
	}
	b.reboot()
	if err := syscall.Kill(o.Fleets[0].Instances[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.wait("a replacement", func(o kiln.Observation) bool { return len(o.Fleets[0].Deaths) == 1 && o.Fleets[0].Ready() == 3 })
	next := web(3, func(t *kiln.Template) { t.Config.Env = map[string]string{"VERSION": "2"} })
	b.ready(f, next)
	route(next)
	b.ready(next)
	cancel()
	load.Wait()
	t.Logf("%d requests", sent.Load())
	if failed.Load() > 0 {
		t.Errorf("%d of %d requests failed", failed.Load(), sent.Load())
	}
}

// get asks the gateway.
func (p *processes) get(ctx context.Context, host, path string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address+path, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: longest}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		body = append(body, fmt.Sprint(resp.Header)...)
	}
	return resp.StatusCode, string(body), err
}
