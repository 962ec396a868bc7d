package seal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// built is what build learned on the way.
type built struct {
	config ocispec.ImageConfig
	outcome
}

// build flattens an image and writes it to an empty file. Temporary contents
// go to the folder of the seals. Nothing else is touched.
func build(ctx context.Context, opt Options, manifest kiln.Digest, points []string, out *os.File) (built, error) {
	layers, config, err := openImage(ctx, opt, manifest)
	defer layers.close()
	if err != nil {
		return built{}, err
	}
	s, err := newSpool(opt.Dir)
	if err != nil {
		return built{}, err
	}
	defer func() { _ = s.Close() }() // it has no name and is only read by now
	j := job{Points: points, Limits: opt.Limits}
	files := []*os.File{out, s}
	for _, l := range layers {
		j.Layers = append(j.Layers, l.layerInfo)
		files = append(files, l.file)
	}
	b := built{config: config}
	b.outcome, err = opt.flatten(ctx, j, files)
	return b, layers.sound(ctx, opt.Store, b.Damaged, err)
}

// flatten does a job in a process of its own or, without a program for that,
// in this one.
func (opt Options) flatten(ctx context.Context, j job, files []*os.File) (outcome, error) {
	if opt.Worker.Path == "" {
		return j.do(ctx, files)
	}
	var o outcome
	err := opt.Worker.Call(ctx, Task, j, &o, files...)
	return o, err
}

// Work does a Task for a Sealer, in the process of a worker.
func Work(ctx context.Context, request json.RawMessage, files []*os.File) (any, error) {
	var j job
	if err := json.Unmarshal(request, &j); err != nil {
		return nil, fmt.Errorf("read the job: %w", err)
	}
	if len(files) != len(j.Layers)+2 {
		return nil, errors.New("the job has not the files that it needs")
	}
	return j.do(ctx, files)
}

// seal builds an image's file under a temporary name and gives it its own.
// The file has no record yet: New would remove it. It is not flushed to the
// disk, which would cost more than all the rest: after a power cut the digest
// in the record tells what is missing, and the image is sealed again.
func (s *Sealer) seal(ctx context.Context, key Key, manifest kiln.Digest, points []string) (record, error) {
	temp, err := os.CreateTemp(s.opt.Dir, ".seal-*")
	if err != nil {
		return record{}, fmt.Errorf("seal: %w", err)
	}
	defer func() { _ = os.Remove(temp.Name()) }() // gone already once renamed
	b, err := build(ctx, s.opt, manifest, points, temp)
	if err = errors.Join(err, temp.Chmod(0o400), temp.Close()); err != nil {
		return record{}, err
	}
	if err := os.Rename(temp.Name(), s.imagePath(key)); err != nil {
		return record{}, fmt.Errorf("seal: %w", err)
	}
	return record{Format: formatVersion, Image: manifest, Points: points, Config: b.config, Added: b.Added, Dropped: b.Dropped}, nil
}
