// Package control moves environments from one release to the next: it
// observes, asks the pure packages what to do, acts through an engine, and
// records each step in the ledger before it is taken. It holds no state that
// the ledger does not: after a restart it goes on where the journal ends.
package control

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kilnproject/kiln"
)

// Control is the control plane. Its methods may be called at once and again;
// they wait until Run has restored what was there.
type Control struct {
	ledger   Ledger
	store    Store
	baker    Baker
	prover   Prover   // nil lets everything pass
	examiner Examiner // nil sees nothing
	locks    Records
	looker   Looker
	images   Images
	advise   func() Advisories
	engine   kiln.Engine
	preparer kiln.Preparer
	loader   Loader
	storage  []Collector
	max      atomic.Int64
	log      *slog.Logger
	version  string
	url      func(kiln.Route) string
	now      func() time.Time
	faults   Faults

	observer Observer        // nil for none
	others   func() []string // problems of other parts

	restored chan struct{} // closed once Run has restored
	begun    time.Time

	gate sync.RWMutex // read while something is baked and released, written by a collection

	// mu guards what follows; it is not held during I/O.
	mu           sync.Mutex
	environments map[string]*environment
	base         context.Context // of the work that outlives a request
	stopAll      context.CancelCauseFunc
	closed       bool
	work         sync.WaitGroup
	unrecorded   string                   // why the ledger takes no events; empty when it does
	blind        error                    // why not all of what is desired is known; nil when it is
	complaints   map[string]string        // what was logged last of what is tried again
	found        map[string]findings      // what is wrong with what runs, by environment
	known        map[string]kiln.Instance // those that are not dead, as the ledger has them; only record and restore touch it

	storm   storm            // only record touches it
	backlog backlog          // only record and restore touch it
	alarms  map[string]alarm // only expire touches it

	kick   chan struct{} // asks for a reconcile soon
	bounds chan struct{} // asks for a collection soon
	parked chan struct{} // says that a release may have been parked
	again  chan struct{} // asks that what runs be judged again
	stale  chan struct{} // says that something that runs may be repaved
	router chan struct{} // held while a table is made and sent
}

// New returns a Control that does nothing until Run.
func New(o Options) *Control {
	c := &Control{
		ledger: o.Ledger, store: o.Store, baker: o.Baker, prover: o.Prover, examiner: o.Examiner, locks: o.Locks, looker: o.Looker, images: o.Images, advise: o.Advisories, engine: o.Engine, preparer: o.Preparer, loader: o.Loader,
		storage: o.Storage, log: o.Log, version: o.Version,
		url: o.PublicURL, now: o.Now, faults: o.Faults, observer: o.Observer, others: o.Problems,
		restored:     make(chan struct{}),
		environments: map[string]*environment{},
		known:        map[string]kiln.Instance{},
		complaints:   map[string]string{},
		alarms:       map[string]alarm{},
		kick:         make(chan struct{}, 1),
		bounds:       make(chan struct{}, 1),
		parked:       make(chan struct{}, 1),
		router:       make(chan struct{}, 1),
		again:        make(chan struct{}, 1),
		stale:        make(chan struct{}, 1),
		found:        map[string]findings{},
	}
	if c.url == nil {
		c.url = routeURL
	}
	if c.now == nil {
		c.now = time.Now
	}
	c.max.Store(o.StorageMax)
	return c
}

// ready waits until Run has restored what was there.
func (c *Control) ready(ctx context.Context) error {
	select {
	case <-c.restored:
		return nil
	case <-ctx.Done():
		return kiln.Errorf(kiln.CodeUnavailable, "try again in a moment", "the control plane is still starting: %w", ctx.Err())
	}
}

// routeURL says where a route answers on standard ports.
func routeURL(r kiln.Route) string {
	switch {
	case r.Listen != "":
		return "tcp://" + r.Listen
	case r.TLS.Mode == "" || r.TLS.Mode == "off":
		return "http://" + r.Host + cmp.Or(r.Path, "/")
	default:
		return "https://" + r.Host + cmp.Or(r.Path, "/")
	}
}
