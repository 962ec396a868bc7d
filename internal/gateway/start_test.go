package gateway

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kilnproject/kiln/internal/handoff"
)

// TestProcess is the gateway itself when another test runs it as a process.
func TestProcess(t *testing.T) {
	dir := os.Getenv("KILN_TEST_GATEWAY_DIR")
	if dir == "" {
		t.Skip("it is run by TestNewProcessServesAtOnce")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := Run(ctx, Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
}

// TestNewProcessServesAtOnce kills a gateway and starts another on the same
// sockets, as the keeper does: no connection is refused, and a client that
// came in between is answered.
func TestNewProcessServesAtOnce(t *testing.T) {
	r, address := simple(t, http.HandlerFunc(hello))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	control, err := net.Listen("unix", filepath.Join(r.dir, "process.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	controlFile, err := control.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer controlFile.Close()
	for range 3 {
		begin := time.Now()
		cmd, keeper := startProcess(t, filepath.Join(r.dir, "gateway"), controlFile)
		c := dial(t, address) // the socket listens, whoever lives
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
		if err := handoff.Send(keeper, "tcp://"+address, socket); err != nil {
			t.Fatal(err)
		}
		if res := read(t, c, bufio.NewReader(c), "GET"); res.StatusCode != 200 {
			t.Error(res.Status)
		}
		t.Logf("from exec to the first answer: %v", time.Since(begin))
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = keeper.Close()
	}
}

func startProcess(t *testing.T, dir string, control *os.File) (*exec.Cmd, *net.UnixConn) {
	t.Helper()
	keeper, theirs, err := handoff.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProcess$")
	cmd.Env = append(os.Environ(), "KILN_TEST_GATEWAY_DIR="+dir)
	cmd.ExtraFiles = []*os.File{control, theirs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, keeper
}
