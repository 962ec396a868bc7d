// Command app is the application that tests and benchmarks run: a static web
// server whose answers say which version, instance and release it is, and
// whose vices are asked for by environment variables.
//
//	VERSION         what GET / answers
//	PORT            default 8080
//	NEVER_READY     /healthz answers 503 for ever
//	IGNORE_TERM     SIGTERM does nothing
//	EXIT            exit at once with this code
//	LEAK            allocate this many MiB a second until killed
//	START_DELAY     a duration to wait before listening
//	WORKER          no server; print a line and wait
//	BAKE            no server; wait for this duration and exit 0
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if code, err := strconv.Atoi(os.Getenv("EXIT")); err == nil {
		fmt.Println("exiting as told")
		os.Exit(code)
	}
	if os.Getenv("IGNORE_TERM") != "" {
		signal.Ignore(syscall.SIGTERM)
	}
	if rate, err := strconv.Atoi(os.Getenv("LEAK")); err == nil {
		go leak(rate)
	}
	if wait, err := time.ParseDuration(os.Getenv("BAKE")); err == nil {
		time.Sleep(wait)
		return
	}
	if delay, err := time.ParseDuration(os.Getenv("START_DELAY")); err == nil {
		time.Sleep(delay)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx := context.Background()
	if os.Getenv("IGNORE_TERM") == "" {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGTERM)
		defer stop()
	}
	if os.Getenv("WORKER") != "" {
		fmt.Println("working as", os.Getenv("VERSION"))
		<-ctx.Done()
		fmt.Println("worker ends")
		return nil
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	server := &http.Server{Addr: ":" + port, Handler: handler(), ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() {
		stop, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(stop)
	})
	fmt.Println("listening on", port)
	err := server.ListenAndServe()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func handler() http.Handler {
	mux := http.NewServeMux()
	version := os.Getenv("VERSION")
	host, _ := os.Hostname()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Version", version)
		w.Header().Set("Instance", host)
		_, _ = io.WriteString(w, version+"\n")
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if os.Getenv("NEVER_READY") != "" {
			http.Error(w, "not today", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"host": r.Host, "remote": r.RemoteAddr, "headers": r.Header})
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(r.URL.Query().Get("for"))
		time.Sleep(d)
		_, _ = io.WriteString(w, version+"\n")
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	mux.HandleFunc("/call", call)
	mux.HandleFunc("/dial", dial)
	mux.HandleFunc("/lookup", lookup)
	mux.HandleFunc("/write", write)
	mux.HandleFunc("/whoami", whoami)
	mux.HandleFunc("/grow", grow)
	mux.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.URL.Query().Get("code"))
		fmt.Println("exiting by request")
		os.Exit(code)
	})
	return mux
}

// call answers with what GET ?url= answered.
func call(w http.ResponseWriter, r *http.Request) {
	client := http.Client{Timeout: 30 * time.Second} // the other side may be frozen for a while
	response, err := client.Get(r.URL.Query().Get("url"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer func() { _ = response.Body.Close() }()
	w.WriteHeader(response.StatusCode)
	_, _ = io.Copy(w, response.Body)
}

// dial says whether a TCP connection to ?to= can be made.
func dial(w http.ResponseWriter, r *http.Request) {
	conn, err := net.DialTimeout("tcp", r.URL.Query().Get("to"), 2*time.Second)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	_ = conn.Close()
	_, _ = io.WriteString(w, "connected\n")
}

// lookup resolves ?name=.
func lookup(w http.ResponseWriter, r *http.Request) {
	names, err := net.DefaultResolver.LookupHost(r.Context(), r.URL.Query().Get("name"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	_ = json.NewEncoder(w).Encode(names)
}

// write tries to write a file at ?path=.
func write(w http.ResponseWriter, r *http.Request) {
	if err := os.WriteFile(r.URL.Query().Get("path"), []byte("x"), 0o600); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	_, _ = io.WriteString(w, "written\n")
}

// whoami tells what the instance may do.
func whoami(w http.ResponseWriter, _ *http.Request) {
	status, _ := os.ReadFile("/proc/self/status")
	uidmap, _ := os.ReadFile("/proc/self/uid_map")
	_, _ = fmt.Fprintf(w, "uid %d gid %d\nuid_map %s\n%s", os.Getuid(), os.Getgid(), uidmap, status)
}

// grow takes ?mib= of memory and keeps it.
func grow(w http.ResponseWriter, r *http.Request) {
	mib, _ := strconv.Atoi(r.URL.Query().Get("mib"))
	block := make([]byte, mib<<20)
	for i := 0; i < len(block); i += 4096 {
		block[i] = 1
	}
	fat.Store(&block)
	_, _ = io.WriteString(w, "grown\n")
}

// fat is what grow took last.
var fat atomic.Pointer[[]byte] //nolint:gochecknoglobals // it must outlive the request

func leak(rate int) {
	var kept [][]byte
	for range time.Tick(time.Second / 10) {
		block := make([]byte, rate<<20/10)
		for i := range block {
			block[i] = byte(i)
		}
		kept = append(kept, block)
		fmt.Println("holding", len(kept)*rate/10, "MiB")
	}
}
