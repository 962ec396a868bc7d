package buildkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/diff/apply"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	ctdsnapshot "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/executor/resources"
	"github.com/moby/buildkit/executor/runcexecutor"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/worker/base"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"
)

const (
	namespace   = "kiln"
	snapshotter = "overlayfs"
)

// oomScore makes the kernel kill a RUN before instances, which have 300.
const oomScore = 500

// executorDir is where the runtime's bundles of a root are.
func executorDir(root string) string { return filepath.Join(root, "executor") }

// workerOptions assembles a worker. BuildKit's own constructor is not used
// because it cannot be given a network provider: it would offer the host's.
func workerOptions(o Options) (_ base.WorkerOpt, err error) {
	var undo []func() error
	defer func() {
		if err != nil {
			for _, f := range undo {
				err = errors.Join(err, f())
			}
		}
	}()
	monitor, err := resources.NewMonitor()
	if err != nil {
		return base.WorkerOpt{}, fmt.Errorf("watch resources: %w", err)
	}
	undo = append(undo, monitor.Close)
	networks := map[pb.NetMode]network.Provider{
		pb.NetMode_UNSET: o.Network,
		pb.NetMode_NONE:  network.NewNoneProvider(),
	}
	exec, err := newExecutor(o, monitor, networks)
	if err != nil {
		return base.WorkerOpt{}, err
	}
	mdb, opened, err := openContent(o.Root)
	if err != nil {
		return base.WorkerOpt{}, err
	}
	undo = append(undo, opened.Close)
	md, err := metadata.NewStore(filepath.Join(o.Root, "metadata.db"))
	if err != nil {
		return base.WorkerOpt{}, err
	}
	undo = append(undo, md.Close)
	id, err := base.ID(o.Root)
	if err != nil {
		return base.WorkerOpt{}, err
	}
	pool := filepath.Join(o.Root, "cachemounts")
	opt := base.WorkerOpt{
		ID:               id,
		Root:             o.Root,
		Labels:           map[string]string{},
		MetadataStore:    md,
		ContentMetadata:  opened,
		NetworkProviders: networks,
		Executor:         exec,
		Platforms:        []ocispec.Platform{platforms.Normalize(platforms.DefaultSpec())},
		ParallelismSem:   semaphore.NewWeighted(max(o.Parallel, 1)),
		MountPoolRoot:    pool,
		ResourceMonitor:  monitor,
	}
	storeOptions(&opt, mdb)
	return opt, os.MkdirAll(pool, 0o700)
}

// openContent opens the layers' bytes, their snapshots and what containerd
// keeps about both.
//
//nolint:contextcheck // it opens local files; the libraries have no context there
func openContent(root string) (*ctdmetadata.DB, closers, error) {
	content, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return nil, nil, err
	}
	snaps, err := overlay.NewSnapshotter(filepath.Join(root, "snapshots"))
	if err != nil {
		return nil, nil, fmt.Errorf("overlayfs on %s: %w", root, err)
	}
	db, err := boltutil.Open(filepath.Join(root, "containerdmeta.db"), 0o600,
		&bolt.Options{FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, nil, errors.Join(err, snaps.Close())
	}
	mdb := ctdmetadata.NewDB(db, content, map[string]ctdsnapshot.Snapshotter{snapshotter: snaps})
	opened := closers{db, snaps}
	if err := mdb.Init(context.Background()); err != nil {
		return nil, nil, errors.Join(err, opened.Close())
	}
	return mdb, opened, nil
}

// storeOptions sets what works over containerd's metadata.
func storeOptions(opt *base.WorkerOpt, mdb *ctdmetadata.DB) {
	opt.ContentStore = containerdsnapshot.NewContentStore(mdb.ContentStore(), namespace)
	opt.Snapshotter = containerdsnapshot.NewSnapshotter(snapshotter, mdb.Snapshotter(snapshotter), namespace, nil)
	opt.Applier = apply.NewFileSystemApplier(opt.ContentStore)
	opt.Differ = walking.NewWalkingDiff(opt.ContentStore)
	opt.LeaseManager = leaseutil.WithNamespace(ctdmetadata.NewLeaseManager(mdb), namespace)
	opt.GarbageCollect = mdb.GarbageCollect
}

// newExecutor makes what runs a RUN. Its resolver's search list is empty: the
// host's would make builds depend on where they run.
func newExecutor(o Options, monitor *resources.Monitor, networks map[pb.NetMode]network.Provider) (executor.Executor, error) {
	score := oomScore
	return runcexecutor.New(runcexecutor.Opt{
		OOMScoreAdj:         &score,
		Root:                executorDir(o.Root),
		CommandCandidates:   []string{o.Runtime},
		ProcessMode:         oci.ProcessSandbox,
		DefaultCgroupParent: o.CgroupParent,
		ResourceMonitor:     monitor,
		DNS:                 &oci.DNSConfig{Nameservers: o.Nameservers, SearchDomains: []string{"."}, Options: []string{"timeout:5"}},
	}, networks)
}

// closers closes several things as one.
type closers []interface{ Close() error }

func (c closers) Close() error {
	var err error
	for _, one := range c {
		err = errors.Join(err, one.Close())
	}
	return err
}
