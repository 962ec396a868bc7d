package metrics

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/net/netutil"

	"github.com/kilnproject/kiln"
)

// Handler answers with the metrics that a caller may see: those of no
// environment, and those of environments within reach.
func (m *Metrics) Handler(reach kiln.Reach) http.Handler {
	return promhttp.HandlerFor(within{m.registry, reach}, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, ErrorLog: slog.NewLogLogger(m.options.Log.Handler(), slog.LevelWarn), EnableOpenMetrics: true,
	})
}

// within leaves out the series of environments out of reach.
type within struct {
	prometheus.Gatherer
	reach kiln.Reach
}

// Gather implements prometheus.Gatherer.
func (w within) Gather() ([]*dto.MetricFamily, error) {
	all, err := w.Gatherer.Gather()
	if len(w.reach) == 0 {
		return all, err
	}
	for _, family := range all {
		family.Metric = slices.DeleteFunc(family.Metric, func(m *dto.Metric) bool {
			return slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool {
				return l.GetName() == "environment" && !w.reach.Covers(l.GetValue())
			})
		})
	}
	return slices.DeleteFunc(all, func(f *dto.MetricFamily) bool { return len(f.GetMetric()) == 0 }), err
}

// connections bounds those of one listener that are open at once.
const connections = 64

// Listeners serve metrics without a login, on addresses that can change.
type Listeners struct {
	handler http.Handler
	log     *slog.Logger

	mu   sync.Mutex
	open map[string]*http.Server
	work sync.WaitGroup
}

// NewListeners serves nothing until Set.
func (m *Metrics) NewListeners() *Listeners {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", byNumber(m.Handler(nil)))
	return &Listeners{handler: mux, log: m.options.Log, open: map[string]*http.Server{}}
}

// byNumber refuses requests by a host name other than localhost. A browser on
// this machine could be led here by a page whose name resolves to it.
func byNumber(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && host != "localhost" {
			http.Error(w, "ask by the address's number, or as localhost", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Set serves on these addresses and no others. Those that stay are not closed;
// when one cannot be had nothing changes.
func (l *Listeners) Set(ctx context.Context, addresses []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	opened := map[string]net.Listener{}
	for _, address := range addresses {
		if l.open[address] != nil {
			continue
		}
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			for _, one := range opened {
				_ = one.Close()
			}
			return refused(address, err)
		}
		opened[address] = listener
	}
	for address, server := range l.open {
		if !slices.Contains(addresses, address) {
			_ = server.Close()
			delete(l.open, address)
		}
	}
	for address, listener := range opened {
		l.serve(address, listener)
	}
	return nil
}

// serve answers on a listener until its server is closed; l.mu is held.
func (l *Listeners) serve(address string, listener net.Listener) {
	server := &http.Server{
		Handler: l.handler, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(l.log.Handler(), slog.LevelDebug),
	}
	l.open[address] = server
	l.work.Go(func() {
		if err := server.Serve(netutil.LimitListener(listener, connections)); !errors.Is(err, http.ErrServerClosed) {
			l.log.Error("metrics are not served any more", "address", address, "error", err)
		}
	})
	l.log.Info("metrics are served", "address", address)
}

func refused(address string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		_, port, _ := net.SplitHostPort(address)
		return kiln.Errorf(kiln.CodeConflict, "see `ss -lntp 'sport = :"+port+"'`; stop what holds it, or choose another port",
			"metrics cannot be served on %s: %w", address, err)
	}
	return kiln.Errorf(kiln.CodeFailed, "listen.metrics names addresses of this machine", "metrics cannot be served on %s: %w", address, err)
}

// Addresses are those that are listened on, sorted.
func (l *Listeners) Addresses() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.open))
}

// Close ends all of them and waits.
func (l *Listeners) Close() error {
	l.mu.Lock()
	for address, server := range l.open {
		_ = server.Close()
		delete(l.open, address)
	}
	l.mu.Unlock()
	l.work.Wait()
	return nil
}
