package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kilnproject/kiln/test/rig"
)

const many = 100

// benchStart times 100 instances of the test application by Kiln, by the OCI
// runtime alone with the same configuration, and by podman, in turn.
func benchStart(b *bench) {
	r := rig.New(b)
	r.App()
	define(r, "v0", 1)
	up(r) // baked and sealed; podman gets its image ready, too
	config := configOf(b, r)
	podman, err := podmanImage(b, r)
	if err != nil {
		b.note("podman", "left out: %v", err)
	}
	var ours, bare, peers []float64
	for i := range 3 {
		ours = append(ours, startOurs(r))
		bare = append(bare, startBare(b, config, i))
		if podman != "" {
			peers = append(peers, startPodman(b, podman))
		}
	}
	our, text := spread(ours)
	b.note("100 instances started and ready, s", "%s", text)
	alone, text := spread(bare)
	b.note("100 bare starts by the OCI runtime, s", "%s", text)
	b.judge(our <= 1.5*alone, "Kiln / bare runtime", "<= 1.5", "%.2f", our/alone)
	if len(peers) > 0 {
		peer, text := spread(peers)
		b.note("100 x podman run -d, s", "%s", text)
		b.judge(peer >= 3*our, "podman / Kiln", ">= 3", "%.2f", peer/our)
	}
}

// startOurs grows the service from 1 to 101 instances and shrinks it again.
func startOurs(r *rig.Rig) float64 {
	define(r, "v0", 1+many)
	begin := time.Now()
	up(r)
	took := time.Since(begin).Seconds()
	define(r, "v0", 1)
	up(r)
	r.Eventually(2*time.Minute, "the instances are gone", func() error {
		if n := len(ready(r)); n != 1 {
			return fmt.Errorf("%d left", n)
		}
		return nil
	})
	return took
}

// configOf reads the OCI configuration of a running instance and gives it a
// network namespace of its own instead of the prepared one.
func configOf(b *bench, r *rig.Rig) *specs.Spec {
	files, _ := filepath.Glob(filepath.Join(r.Data, "local", "instances", "*", "config.json"))
	if len(files) == 0 {
		b.Fatalf("no instance has a config.json")
	}
	raw, err := os.ReadFile(files[0])
	if err != nil {
		b.Fatalf("%v", err)
	}
	var config specs.Spec
	if err := json.Unmarshal(raw, &config); err != nil {
		b.Fatalf("%v", err)
	}
	for i, ns := range config.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace || ns.Type == specs.UserNamespace {
			config.Linux.Namespaces[i].Path = ""
		}
	}
	return &config
}

// startBare starts the same configuration without Kiln, two at a time.
func startBare(b *bench, config *specs.Spec, run int) float64 {
	dir, err := os.MkdirTemp("", "bare")
	if err != nil {
		b.Fatalf("%v", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	root := filepath.Join(dir, "root")
	name := func(i int) string { return fmt.Sprintf("bare%d-%d", run, i) }
	bundles := make([]string, many)
	for i := range bundles {
		bundles[i] = filepath.Join(dir, name(i))
		one := *config
		linux := *config.Linux
		linux.CgroupsPath = "/kilnbench/" + name(i)
		one.Linux = &linux
		raw, _ := json.Marshal(one)
		if err := errors.Join(os.Mkdir(bundles[i], 0o700), os.WriteFile(filepath.Join(bundles[i], "config.json"), raw, 0o600)); err != nil {
			b.Fatalf("%v", err)
		}
	}
	begin := time.Now()
	failed := inParallel(2, many, func(i int) error {
		return exec.Command("runc", "--root", root, "run", "--detach", "--bundle", bundles[i], name(i)).Run()
	})
	took := time.Since(begin).Seconds()
	_ = inParallel(2, many, func(i int) error { return exec.Command("runc", "--root", root, "delete", "--force", name(i)).Run() })
	removeCgroups("kilnbench")
	if failed != nil {
		b.Fatalf("bare start: %v", failed)
	}
	return took
}

func removeCgroups(name string) {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	for _, dir := range append(dirs, "/sys/fs/cgroup/"+name) {
		_ = os.Remove(dir)
	}
}

// inParallel calls f for 0 to n-1 with so many at a time.
func inParallel(workers, n int, f func(int) error) error {
	next := make(chan int)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for range workers {
		wg.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("%d: %w", i, err))
					mu.Unlock()
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

// podmanImage gives podman the image that Kiln baked, read from its store.
func podmanImage(b *bench, r *rig.Rig) (string, error) {
	if _, err := exec.LookPath("podman"); err != nil {
		return "", errors.New("not installed")
	}
	archive := filepath.Join(r.Work, "app.tar")
	if out, err := exec.Command("skopeo", "copy", "oci:"+filepath.Join(r.Data, "store")+":app", "docker-archive:"+archive+":localhost/kilnbench:latest").CombinedOutput(); err != nil {
		return "", fmt.Errorf("skopeo: %w: %s", err, out)
	}
	if out, err := exec.Command("podman", "load", "-i", archive).CombinedOutput(); err != nil {
		return "", fmt.Errorf("podman load: %w: %s", err, out)
	}
	b.Cleanup(func() { _ = exec.Command("podman", "rmi", "-f", "localhost/kilnbench:latest").Run() })
	const image = "localhost/kilnbench:latest"
	if out, err := exec.Command("podman", podmanRun(image)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("podman run: %w: %s", err, out)
	}
	removePodman()
	return image, nil
}

// podmanRun is one start, with podman's own network as a user would have it.
// The limits are no higher than what a machine without CAP_SYS_RESOURCE may
// give, and runc is what runs on every version of cgroups.
func podmanRun(image string) []string {
	return []string{
		"run", "-d", "--read-only", "--runtime", "runc", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096",
		"--label", "kilnbench", image,
	}
}

func removePodman() {
	_ = exec.Command("sh", "-c", "podman ps -aq --filter label=kilnbench | xargs -r podman rm -f -t 0").Run()
}

func startPodman(b *bench, image string) float64 {
	defer removePodman()
	begin := time.Now()
	if err := inParallel(2, many, func(int) error { return exec.Command("podman", podmanRun(image)...).Run() }); err != nil {
		b.Fatalf("podman: %v", err)
	}
	return time.Since(begin).Seconds()
}
