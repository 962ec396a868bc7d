// Command app is the service of the engine's tests: a web server that does
// what a test asks of it.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 {
		command(os.Args[1:])
		return
	}
	var unhealthy atomic.Bool
	if os.Getenv("IGNORE_TERM") != "" {
		signal.Ignore(syscall.SIGTERM)
	}
	fmt.Println("hello from", os.Getpid())
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if unhealthy.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	http.HandleFunc("/sick", func(http.ResponseWriter, *http.Request) { unhealthy.Store(true) })
	http.HandleFunc("/well", func(http.ResponseWriter, *http.Request) { unhealthy.Store(false) })
	http.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getenv("VERSION")) })
	http.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) {
		fmt.Println("last words")
		code, _ := strconv.Atoi(r.FormValue("code"))
		os.Exit(code)
	})
	http.HandleFunc("/eat", func(http.ResponseWriter, *http.Request) {
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
			_ = all
		}
	})
	http.HandleFunc("/cat", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(r.FormValue("path"))
		fmt.Fprintf(w, "%s%v", b, err)
	})
	http.HandleFunc("/write", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, os.WriteFile(r.FormValue("path"), []byte("x"), 0o600))
	})
	http.HandleFunc("/env", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, strings.Join(os.Environ(), "\n"))
		fmt.Fprintln(w, os.Getuid(), os.Getgid(), os.Getpid())
	})
	http.HandleFunc("/dial", func(w http.ResponseWriter, r *http.Request) {
		d := net.Dialer{Timeout: 2 * time.Second}
		conn, err := d.DialContext(r.Context(), r.FormValue("net"), r.FormValue("to"))
		if err == nil {
			_, err = conn.Write([]byte("x"))
			_ = conn.Close()
		}
		fmt.Fprint(w, err)
	})
	if err := http.ListenAndServe(":80", nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
}

func command(args []string) {
	switch args[0] {
	case "exit":
		fmt.Println("as told")
		code, _ := strconv.Atoi(args[1])
		os.Exit(code)
	case "bye":
		fmt.Println("bye")
		code, _ := strconv.Atoi(args[1])
		os.Exit(code)
	case "sleep":
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM)
		<-end
	case "get":
		resp, err := http.Get(args[1])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		_, _ = io.Copy(os.Stdout, resp.Body)
	}
}
