package metrics

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

const (
	// usageFresh is how long a measurement of storage is given again: it walks
	// through folders.
	usageFresh = time.Minute
	usageLimit = time.Minute
)

// usage measures what is stored. A scrape never waits for it but for the first
// time: it gets the last figures, and has new ones made.
type usage struct {
	options Options
	blind   *prometheus.CounterVec
	now     func() time.Time

	mu     sync.Mutex
	at     time.Time
	bytes  map[string]int64
	making chan struct{} // closed once the figures that are being made are there; nil when none are
}

func usedDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_storage_used_bytes", "What is stored, by what it is; at most a minute or two old.", []string{"kind"}, nil)
}

func boundDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_storage_bound_bytes", "The bound of all that is stored together; 0 is none.", nil, nil)
}

// Describe implements prometheus.Collector.
func (u *usage) Describe(ch chan<- *prometheus.Desc) {
	ch <- usedDesc()
	ch <- boundDesc()
}

// Collect implements prometheus.Collector.
func (u *usage) Collect(ch chan<- prometheus.Metric) {
	for kind, bytes := range u.get() {
		ch <- prometheus.MustNewConstMetric(usedDesc(), prometheus.GaugeValue, float64(bytes), kind)
	}
	ch <- prometheus.MustNewConstMetric(boundDesc(), prometheus.GaugeValue, float64(u.options.StorageMax()))
}

// get returns the last figures, and has new ones made where they are old.
func (u *usage) get() map[string]int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := u.now(); u.making == nil && (u.bytes == nil || now.Sub(u.at) >= usageFresh || now.Before(u.at)) {
		u.making = make(chan struct{})
		go u.measure(u.making) // bounded by usageLimit, and never two at once
	}
	if making := u.making; u.bytes == nil {
		u.mu.Unlock()
		<-making
		u.mu.Lock()
	}
	return u.bytes
}

// measure makes new figures. What cannot be measured keeps its last one.
func (u *usage) measure(done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), usageLimit)
	defer cancel()
	bytes := map[string]int64{}
	for kind, measure := range u.options.Storage {
		n, err := measure(ctx)
		if err != nil {
			u.blind.WithLabelValues("storage").Inc()
			u.options.Log.Debug("metrics are incomplete", "source", "storage", "kind", kind, "error", err)
			continue
		}
		bytes[kind] = n
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for kind, n := range u.bytes {
		if _, ok := bytes[kind]; !ok {
			bytes[kind] = n
		}
	}
	u.bytes, u.at, u.making = bytes, u.now(), nil
	close(done)
}

// disk are the metrics of the data directory's file system and the ledger's
// files.
type disk struct{ options Options }

func freeDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_disk_free_bytes", "What is free on the data directory's file system.", nil, nil)
}

func diskDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_disk_size_bytes", "The size of the data directory's file system.", nil, nil)
}

func ledgerDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_ledger_size_bytes", "The ledger's files together.", nil, nil)
}

// Describe implements prometheus.Collector.
func (d disk) Describe(ch chan<- *prometheus.Desc) {
	ch <- freeDesc()
	ch <- diskDesc()
	ch <- ledgerDesc()
}

// Collect implements prometheus.Collector.
func (d disk) Collect(ch chan<- prometheus.Metric) {
	var fs unix.Statfs_t
	if unix.Statfs(d.options.DataDir, &fs) == nil {
		ch <- prometheus.MustNewConstMetric(freeDesc(), prometheus.GaugeValue, float64(fs.Bavail)*float64(fs.Bsize))
		ch <- prometheus.MustNewConstMetric(diskDesc(), prometheus.GaugeValue, float64(fs.Blocks)*float64(fs.Bsize))
	}
	size := int64(0)
	for _, suffix := range []string{"", "-wal"} {
		if info, err := os.Stat(d.options.LedgerFile + suffix); err == nil {
			size += info.Size()
		}
	}
	ch <- prometheus.MustNewConstMetric(ledgerDesc(), prometheus.GaugeValue, float64(size))
}
