package control

import (
	"context"
	"encoding/json"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
	"github.com/kilnproject/kiln/internal/ledger"
)

// app is a definition as the tests say it.
type app struct {
	Environment kiln.Environment
	Services    []kiln.Service
	Routes      []kiln.Route
}

// shop has a front end, an API and a worker, all of one version.
func shop(environment, version string) app {
	return app{
		Environment: kiln.Environment{Name: environment},
		Services: []kiln.Service{
			serving("orders", version, 2), serving("web", version, 3), worker("mailer", version, 1),
		},
		Routes: []kiln.Route{{Name: "shop", Service: "web", Host: environment + ".example.com", Path: "/"}},
	}
}

func serving(name, version string, count int) kiln.Service {
	s := worker(name, version, count)
	s.Ports = []kiln.Port{{Name: "http", Number: 8080, Protocol: kiln.ProtocolHTTP}}
	return s
}

func worker(name, version string, count int) kiln.Service {
	return kiln.Service{
		Name: name, Image: name + "-" + version, Count: count,
		Config: kiln.Config{
			Env: map[string]string{"VERSION": version}, StartTimeout: 10 * time.Second, Grace: 5 * time.Second, Drain: 5 * time.Second,
		},
		Rollout: kiln.Strategy{Kind: "blue-green", Park: 30 * time.Minute},
	}
}

func (a app) service(name string) *kiln.Service {
	for i := range a.Services {
		if a.Services[i].Name == name {
			return &a.Services[i]
		}
	}
	panic("no service " + name)
}

// request is an Up of the app: its tree holds the definition as JSON, under a
// name of its own, so that other definitions have other trees.
func (a app) request() UpRequest {
	body, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	return UpRequest{Actor: "ada", Tree: kiln.Tree{Entries: []kiln.TreeEntry{{Path: "kiln.json", Link: string(body)}}}}
}

// loader, baker and store are what Up needs besides ledger and engine.
type loader struct{}

func (loader) Load(tree fs.FS, _ LoadOptions) (Definition, error) {
	body, err := fs.ReadFile(tree, "kiln.json")
	if err != nil {
		return Definition{}, err
	}
	var a app
	if err := json.Unmarshal(body, &a); err != nil {
		return Definition{}, err
	}
	d := Definition{Environment: a.Environment, Spec: kiln.Spec{Services: a.Services, Routes: a.Routes, Files: []string{"kiln.json"}}}
	for _, s := range a.Services {
		d.Spec.Images = append(d.Spec.Images, kiln.Image{Name: s.Image, Platform: "linux/amd64"})
	}
	return d, nil
}

type baker struct {
	mu    sync.Mutex
	bakes int
	block chan struct{} // bakes wait for it
}

func (b *baker) Bake(ctx context.Context, r kiln.BakeRequest) (kiln.BakeResult, error) {
	b.mu.Lock()
	b.bakes++
	block := b.block
	b.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return kiln.BakeResult{}, ctx.Err()
		}
	}
	known, _, err := b.Lookup(ctx, r)
	return kiln.BakeResult{Images: known}, err
}

func (b *baker) Lookup(_ context.Context, r kiln.BakeRequest) (map[string]kiln.Baked, map[string]string, error) {
	out := map[string]kiln.Baked{}
	for _, i := range r.Images {
		out[i.Name] = kiln.Baked{Name: i.Name, Manifest: kiln.DigestOf([]byte(i.Name)), Platform: i.Platform}
	}
	return out, nil, nil
}

func (b *baker) Refresh(_ context.Context, r kiln.BakeRequest) (kiln.Lock, error) { return r.Lock, nil }

type store struct{}

func (store) TreeFS(t kiln.Tree) fs.FS {
	m := fstest.MapFS{}
	for _, e := range t.Entries {
		m[e.Path] = &fstest.MapFile{Data: []byte(e.Link)}
	}
	return m
}

func (store) Missing([]kiln.Digest) []kiln.Digest { return nil }

func (store) PutBundle(_ context.Context, b kiln.Bundle, _ map[string]string) (kiln.Digest, error) {
	return kiln.DigestJSON(b), nil
}

func (store) Bundle(context.Context, kiln.Digest) (kiln.Bundle, error) { return kiln.Bundle{}, nil }

func (store) PutOrigin(_ context.Context, o kiln.Origin) (kiln.Digest, error) {
	return kiln.DigestJSON(o), nil
}

func (store) Origin(context.Context, kiln.Digest) (kiln.Origin, error) {
	return kiln.Origin{}, kiln.Errorf(kiln.CodeNotFound, "", "it was collected")
}

func (store) BundleDigest(b kiln.Bundle) (kiln.Digest, error) { return kiln.DigestJSON(b), nil }

// bench is a control plane over a ledger and an engine that outlive it.
type bench struct {
	clock func() time.Time // nil is the bubble's own
	*Control
	t       *testing.T
	ledger  *ledger.Ledger
	engine  *kilntest.Fake
	baker   *baker
	faults  Faults
	pending Faults // what inject sets
	storage []Collector
	// ledgerAs and engineAs stand before ledger and engine when set.
	ledgerAs Ledger
	engineAs kiln.Engine
	observer Observer
	prover   *prover // nil lets everything pass
	world    *world  // what bakes, keeps and judges instead of the plain ones, when set
	stop     context.CancelFunc
	ended    chan error
}

// onBench runs a test in a bubble, with a control plane that runs.
func onBench(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Helper()
	onBenchAs(t, func(*bench) {}, test)
}

func onBenchAs(t *testing.T, prepare func(*bench), test func(t *testing.T, b *bench)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ledger.db")
	synctest.Test(t, func(t *testing.T) {
		l, err := ledger.Open(t.Context(), path)
		check(t, err)
		b := &bench{t: t, ledger: l, engine: kilntest.NewFake(), baker: &baker{}}
		prepare(b)
		b.start()
		defer func() {
			b.halt()
			check(t, l.Close())
		}()
		test(t, b)
	})
}

// start makes a control plane over what is there.
func (b *bench) start() {
	var l Ledger = b.ledger
	if b.ledgerAs != nil {
		l = b.ledgerAs
	}
	var e kiln.Engine = b.engine
	if b.engineAs != nil {
		e = b.engineAs
	}
	var p Prover
	if b.prover != nil {
		p = b.prover
	}
	options := Options{
		Prover: p, Ledger: l, Store: store{}, Baker: b.baker, Engine: e, Loader: loader{},
		Log: slog.New(slog.NewTextHandler(b.t.Output(), nil)), Version: "test", Faults: b.faults, Observer: b.observer,
		Storage: b.storage, StorageMax: 80, Now: b.clock,
	}
	options.Preparer, _ = e.(kiln.Preparer)
	if w := b.world; w != nil {
		options.Baker, options.Store, options.Prover, options.Loader, options.Locks = worldBaker{w}, worldStore{world: w}, worldProver{w}, worldLoader{world: w}, stamps{}
	}
	b.Control = New(options)
	ctx, stop := context.WithCancel(b.t.Context())
	b.stop, b.ended = stop, make(chan error, 1)
	c := b.Control
	ended := b.ended
	go func() { ended <- c.Run(ctx) }()
}

// halt ends the control plane as a clean stop does.
func (b *bench) halt() {
	b.stop()
	<-b.ended
	b.ended <- nil
}

func (b *bench) up(a app) (UpResult, error) {
	return b.Up(b.t.Context(), a.request(), nil)
}

func (b *bench) mustUp(a app) UpResult {
	b.t.Helper()
	r, err := b.up(a)
	check(b.t, err)
	return r
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// settled waits until nothing moves.
func (b *bench) settled() { kilntest.Pass(15 * time.Second) }

// states are the releases' states by number, from 1.
func (b *bench) states(environment string) []kiln.ReleaseState {
	b.t.Helper()
	list, err := b.ledger.Releases(b.t.Context(), environment)
	check(b.t, err)
	var out []kiln.ReleaseState
	for _, r := range list {
		out = append(out, r.State)
	}
	return out
}

func (b *bench) wantStates(environment string, want ...kiln.ReleaseState) {
	b.t.Helper()
	if got := b.states(environment); !slices.Equal(got, want) {
		b.t.Fatalf("releases are %v, want %v", got, want)
	}
}

// running counts the instances that are ready, by "service version".
func (b *bench) running(environment string) map[string]int {
	b.t.Helper()
	seen, err := b.engine.Observe(b.t.Context(), environment)
	check(b.t, err)
	out := map[string]int{}
	for _, f := range seen.Fleets {
		if n := len(f.Instances); n > 0 {
			out[f.Fleet.Template.Service+" "+f.Fleet.Template.Config.Env["VERSION"]] += n
		}
	}
	return out
}

func (b *bench) wantRunning(environment string, want map[string]int) {
	b.t.Helper()
	got := b.running(environment)
	same := len(got) == len(want)
	for k, n := range want {
		same = same && got[k] == n
	}
	if !same {
		b.t.Fatalf("running %v, want %v", got, want)
	}
}

// wantPublic checks which fleets have public traffic.
func (b *bench) wantPublic(want ...kiln.FleetID) {
	b.t.Helper()
	var got []kiln.FleetID
	for _, r := range b.engine.Table().Public {
		for _, w := range r.Fleets {
			got = append(got, w.Fleet)
		}
	}
	if !slices.Equal(got, want) {
		b.t.Fatalf("public traffic goes to %v, want %v", got, want)
	}
}

// fleet is what a service is in production.
func (b *bench) fleet(s kiln.Service) kiln.FleetID {
	return kiln.FleetIDOf("production", kiln.Template{
		Service: s.Name, Image: kiln.DigestOf([]byte(s.Image)), Platform: "linux/amd64", Ports: s.Ports, Config: s.Config,
	})
}

// kinds are the kinds of production's events, in order.
func (b *bench) kinds() []string {
	b.t.Helper()
	var out []string
	check(b.t, b.Events(b.t.Context(), EventQuery{Environment: "production"}, func(e kiln.Event) error {
		out = append(out, e.Kind)
		return nil
	}))
	return out
}
