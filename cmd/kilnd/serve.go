package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/advisory"
	"github.com/kilnproject/kiln/internal/backup"
	"github.com/kilnproject/kiln/internal/bake"
	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/confine"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/gateway"
	"github.com/kilnproject/kiln/internal/keep"
	"github.com/kilnproject/kiln/internal/ledger"
	"github.com/kilnproject/kiln/internal/local"
	"github.com/kilnproject/kiln/internal/metrics"
	"github.com/kilnproject/kiln/internal/notify"
	"github.com/kilnproject/kiln/internal/probe"
	"github.com/kilnproject/kiln/internal/prove"
	"github.com/kilnproject/kiln/internal/registry"
	"github.com/kilnproject/kiln/internal/seal"
	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/internal/sign"
	"github.com/kilnproject/kiln/internal/store"
	"github.com/kilnproject/kiln/internal/systemd"
	"github.com/kilnproject/kiln/internal/tracing"
	"github.com/kilnproject/kiln/internal/track"
)

// answerGrace is how long requests may go on once kilnd was told to end.
const answerGrace = 3 * time.Second

// serve takes the data directory, puts the parts together, and runs until ctx
// ends.
func serve(ctx context.Context, g given, s settings, log *slog.Logger, level *slog.LevelVar, again <-chan os.Signal) error {
	if os.Geteuid() != 0 {
		return kiln.Errorf(kiln.CodeRefused, "sudo kilnd", "kilnd needs root: it makes namespaces, mounts and networks")
	}
	economize()
	// A shell's umask of 077 would close folders that the gateway, the group
	// and instances must pass through. What is secret has a mode of its own.
	_ = unix.Umask(0o022)
	// What whoever started this left open is no program's business that is
	// started from here. Kernels before 5.11 refuse; then it stays open.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	lock, err := lockData(s.data)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := backup.Unfinished(s.data); err != nil {
		return err
	}
	service, err := systemd.Take()
	if err != nil {
		return err
	}
	log.Info("control plane starts", "version", version, "pid", os.Getpid(), "data", s.data)
	p := &plane{given: g, data: s.data, log: log, level: level, started: time.Now(), history: newHistory(s.keepEvents), service: service}
	p.settings.Store(&s)
	defer p.close()
	if err := p.assemble(ctx); err != nil {
		return err
	}
	err = p.run(ctx, again)
	log.Info("control plane ended", "error", err)
	return err
}

// plane is the control plane's parts, made in this order and closed in the
// reverse one.
type plane struct {
	given   given
	data    string
	log     *slog.Logger
	level   *slog.LevelVar
	started time.Time
	service systemd.Service

	reloading sync.Mutex // held while the configuration is read and taken
	settings  atomic.Pointer[settings]
	certs     fingerprinted // of the API over TCP; reloading guards it
	access    *server.Access
	remote    *server.Remote
	own       *server.OwnRegistry // set, as remote is, before anything is baked
	history   *history
	backingUp sync.Mutex // held while a backup is made
	metrics   *metrics.Metrics
	listeners *metrics.Listeners
	tracer    *tracing.Tracer
	notifier  *notify.Notifier
	tracker   *track.Tracker

	program string          // the kiln executable
	workers confine.Program // for what needs no privileges

	reserve    *reserve
	ledger     *ledger.Ledger
	store      *store.Store
	sealer     *seal.Sealer
	groups     groups
	keeper     *keeper
	keep       *keep.Client
	gateway    *gateway.Client
	engine     *local.Engine
	baker      *bake.Baker
	signer     *sign.Signer
	advisories *advisory.DB
	database   *database
	prover     *prove.Prover
	control    *control.Control
	registry   *registry.Registry
	closers    []func() error
	// stopping is true once the keeper was told to end.
	stopping atomic.Bool
}

// assemble makes the parts. What was made before an error is closed by close.
func (p *plane) assemble(ctx context.Context) error {
	s := p.settings.Load()
	program, err := findKiln()
	if err != nil {
		return err
	}
	p.program, p.workers = program, workers(program)
	for _, make := range []func(context.Context) error{
		p.openMetrics, p.openLedger, p.restoreMetrics, p.openStore, p.openSigner, p.openSeals, p.openProver, p.openKeeper, p.openEngine, p.openBaker,
	} {
		if err := make(ctx); err != nil {
			return err
		}
	}
	watching := observer{p.metrics, p.tracer}
	wanted, err := faults()
	if err != nil {
		return err
	}
	examiner, err := p.openExaminer(ctx)
	if err != nil {
		return err
	}
	p.openTracker()
	p.control = control.New(control.Options{
		Ledger: p.durable(), Store: p.store, Baker: observedBaker{baker{p.baker, p.store}, watching}, Prover: p.prover, Examiner: examiner, Locks: p.signer.Records("lock"),
		Looker: p.prover, Images: p.store, Advisories: p.database.Status, Observer: watching,
		Engine: durableEngine{p.engine, p.reserve}, Preparer: p.engine, Loader: loader{},
		Storage: []control.Collector{caches{p.baker}, seals{p.sealer}, blobs{p.store}, writings{p.engine}}, StorageMax: s.storageMax,
		Log: p.log, Version: version, Faults: wanted, PublicURL: publicURL(func() local.Listen { return p.settings.Load().listen }),
		Problems: p.tracker.Problems,
	})
	p.openNotifier()
	return p.openRegistry()
}

// close closes what was opened, the last first.
func (p *plane) close() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		if err := p.closers[i](); err != nil {
			p.log.Error("closing", "error", err)
		}
	}
}

func (p *plane) later(f func() error) { p.closers = append(p.closers, f) }

func (p *plane) dir(elements ...string) string {
	return filepath.Join(append([]string{p.data}, elements...)...)
}

func (p *plane) openLedger(ctx context.Context) (err error) {
	// The copy of a backup whose control plane was killed goes.
	if err := errors.Join(os.MkdirAll(p.dir("ledger"), 0o700), os.RemoveAll(p.dir("ledger", backupFolder))); err != nil {
		return fmt.Errorf("open the ledger: %w", err)
	}
	p.reserve = newReserve(p.dir("ledger", "reserve"), p.log)
	err = p.reserve.write(ctx, func() (err error) {
		p.ledger, err = ledger.Open(ctx, ledgerPath(p.data))
		return err
	})
	if err != nil {
		return err
	}
	p.later(p.ledger.Close)
	if err := p.reserve.write(ctx, func() error { return claimMachine(ctx, p.ledger, thisMachine(), false) }); err != nil {
		return err
	}
	p.reserve.ledger = p.ledger
	p.reserve.take()
	return nil
}

func (p *plane) openStore(context.Context) (err error) {
	p.store, err = store.Open(p.dir("store")) //nolint:contextcheck // a look at small local files
	return err
}

func (p *plane) openSigner(ctx context.Context) (err error) {
	o := sign.Options{Dir: p.dir("sign"), Store: signable{p.store}, Log: p.log}
	s := p.settings.Load().file.Signing
	o.KeyFile, o.Command = s.Key, sign.Command{Args: s.Command, Digest: s.Digest, PublicKey: s.PublicKey}
	if s.PasswordFile != "" {
		text, err := config.Secret(s.PasswordFile)
		if err != nil {
			return err
		}
		o.Password = bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	}
	if p.signer, err = sign.New(o); err != nil {
		return err
	}
	others, err := p.others(s)
	if err != nil {
		return err
	}
	p.signer.SetOthers(others)
	// What stands in its way, such as a signing command that is out of reach, is
	// no reason not to serve: what runs goes on, and the next start tries again.
	if err := p.reserve.write(ctx, func() error { return p.grandfather(ctx) }); err != nil {
		p.log.Error("releases of an earlier version are not signed: their instances cannot be replaced", "error", err)
	}
	return nil
}

func (p *plane) openSeals(context.Context) (err error) {
	p.sealer, err = seal.New(seal.Options{Dir: p.dir("seal"), MountDir: p.dir("run", "seal"), Store: p.store, Log: p.log, Worker: p.workers, Sealed: p.metrics.Sealed, Signer: p.signer.Records("seal")})
	if err == nil {
		p.later(p.sealer.Close)
	}
	return err
}

func (p *plane) openKeeper(ctx context.Context) (err error) {
	p.keeper = &keeper{data: p.data, program: p.program, unit: os.Getenv(keeperUnit), log: p.log}
	if p.keep, err = p.keeper.dial(ctx); err != nil {
		return err
	}
	info, err := p.keep.Ping(ctx)
	if err == nil {
		err = kiln.CheckSkew("kilnd", version, "the keeper", info.Version)
	}
	if err != nil {
		return err
	}
	p.gateway = gateway.NewClient(p.dir("run", "gateway.sock"))
	p.later(func() error { p.gateway.Close(); return nil })
	return nil
}

func (p *plane) openEngine(ctx context.Context) error {
	s := p.settings.Load()
	p.groups = openGroups(ctx, p.data, p.program, p.log)
	p.later(p.closeGroups)
	return p.reserve.write(ctx, func() (err error) {
		p.engine, err = local.New(ctx, local.Options{
			DataDir: p.data, Group: p.groups.instances, Keeper: p.keep, Gateway: p.gateway, Images: images{p.sealer, p.tracer, p.prover},
			Prober: probe.Prober{}, Listen: s.listen, LogBytes: s.logBytes, Log: p.log, Failed: p.reserve.relieve,
		})
		return err
	})
}

func (p *plane) openBaker(ctx context.Context) (err error) {
	p.baker, err = bake.New(ctx, bake.Options{
		Dir: p.dir("bake"), Group: p.groups.bakes, Store: p.store, Runtime: runtimeProgram(), Worker: p.workers, Log: p.log,
		OwnRegistry: func(r *http.Request) http.RoundTripper { return p.own.Carrier(r) },
	})
	if err == nil {
		p.later(p.baker.Close)
		p.baker.SetKeyring(p.settings.Load().file.Debian.Keyring)
		p.baker.SetMirrors(mirrors(p.settings.Load().file.Registries))
	}
	return err
}

// api is what the API is made from; end ends the control plane.
func (p *plane) api(end func()) server.Options {
	return server.Options{
		Control: p.control, Ledger: p.ledger, Store: uploads{p.store}, Log: p.log, Access: p.access, Record: p.record,
		Version:  server.Version{Version: version, PID: os.Getpid(), DataDir: p.data, StartedAt: p.started},
		Settings: p.view, Reload: p.reload, Backup: p.backup,
		Metrics: p.metricsFor, Answered: p.metrics.Answered, NotifyTest: p.testNotify, Registry: p.registry, Push: p.push, SigningKeys: signingKeys{p},
		SBOM: describe, Database: p.database,
		Shutdown: func(ctx context.Context, actor string, progress func(kiln.Progress)) error {
			if err := p.shutdown(ctx, actor, progress); err != nil {
				return err
			}
			end()
			return nil
		},
	}
}

// run serves until ctx ends, the parts that depend on others first to end.
func (p *plane) run(ctx context.Context, again <-chan os.Signal) error {
	listener, err := server.Listen(p.dir(server.SocketName))
	if err != nil {
		return fmt.Errorf("open the API's socket: %w", err)
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	p.access = server.NewAccess(p.noteLogin)
	handler := server.New(p.api(end))
	p.remote = server.NewRemote(handler, answerGrace, p.log)
	p.own = server.NewOwnRegistry(p.remote, p.dir(server.SocketName))
	if err := p.openRemote(ctx); err != nil {
		_ = listener.Close()
		return err
	}
	p.openTelling(ctx)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.keeper.guard(ctx, p.keep, &p.stopping) })
	group.Go(func() error { return p.reserve.run(ctx) })
	group.Go(func() error { return p.notifier.Run(ctx) })
	group.Go(func() error { return p.tracker.Run(ctx) })
	group.Go(func() error { p.ledger.Tend(ctx, p.history.care(p.log)); return nil })
	group.Go(func() error { return p.reloadOnSignal(ctx, again) })
	group.Go(func() error { return p.registry.Run(ctx) })
	group.Go(func() error { return p.remote.Run(ctx) })
	group.Go(func() error { return boundLogs(ctx, p.log, logEvery, p.dir("kilnd.log"), p.dir("keep.log")) })
	group.Go(func() error { return p.engine.Serve(ctx) })
	group.Go(func() error { return p.control.Run(ctx) })
	group.Go(func() error { return server.Serve(ctx, listener, handler, answerGrace, p.log) })
	group.Go(func() error { p.live(ctx); return nil })
	return group.Wait()
}

// live tells systemd that the control plane has started, and then that it
// lives for as long as it answers its own API.
func (p *plane) live(ctx context.Context) {
	if err := p.service.Ready(); err != nil {
		p.log.Warn("systemd was not told", "error", err)
	}
	p.upgraded()
	client := server.NewClient(p.dir(server.SocketName), version)
	alive := func(ctx context.Context) error {
		_, err := client.Version(ctx)
		return err
	}
	p.service.Watch(ctx, alive, func(err error) { p.log.Error("the control plane does not answer itself", "error", err) })
}
