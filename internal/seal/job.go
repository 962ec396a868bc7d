package seal

import (
	"archive/tar"
	"context"
	"errors"
	"os"

	"github.com/kilnproject/kiln"
)

// Task names the work of a Sealer that is done by a process of its own: what
// reads the layers.
const Task = "flatten"

// job tells how an image's layers become one file. With it go the open files:
// that to write, one for temporary contents, and the layers' blobs.
type job struct {
	Layers []layerInfo `json:"layers"` // lowest first
	Points []string    `json:"points"` // where something will be mounted
	Limits Limits      `json:"limits"`
}

// outcome is what came of a job besides the file.
type outcome struct {
	Added   []string `json:"added,omitempty"` // mount points that the image had not
	Dropped drops    `json:"dropped"`
	// Damaged is the layer whose blob has not the digest of its name.
	Damaged kiln.Digest `json:"damaged,omitempty"`
}

// do flattens the layers and writes the image.
func (j job) do(ctx context.Context, files []*os.File) (outcome, error) {
	out, s, blobs := files[0], files[1], files[2:]
	f := newFlattener(openSpool(s), j.Limits)
	if damaged, err := f.blobs(ctx, j.Layers, blobs); err != nil {
		return outcome{Damaged: damaged}, err
	}
	o := outcome{Dropped: f.dropped}
	for _, p := range j.Points {
		added, err := addPoint(f.root, p)
		if err != nil {
			return outcome{}, err
		}
		if added {
			o.Added = append(o.Added, p)
		}
	}
	if err := errors.Join(f.spool.finish(), writeImage(ctx, out, f.root)); err != nil {
		if known := roomOrContext(err); known != nil {
			return outcome{}, known
		}
		return outcome{}, err
	}
	return o, nil
}

// blobs reads the layers, lowest first. With an error it returns the layer whose
// blob has not the digest of its name, if that is why.
func (f *flattener) blobs(ctx context.Context, layers []layerInfo, files []*os.File) (kiln.Digest, error) {
	unpacked := f.left.Bytes + slack
	for i, l := range layers {
		f.reading = uint16(i) // at most maxLayers
		n, err := f.blob(ctx, l, files[i], unpacked)
		if err != nil {
			return damagedBy(err, l), err
		}
		unpacked -= n
	}
	return "", nil
}

// blob reads one layer's blob and returns the bytes of its tar. It is verified
// here, but for a plain one: that is hashed while this goes on.
func (f *flattener) blob(ctx context.Context, l layerInfo, file *os.File, limit int64) (int64, error) {
	s, err := openStream(l, file, limit)
	if err != nil {
		return 0, err
	}
	defer s.close()
	a := &layerTar{Reader: tar.NewReader(s.tar), read: s.tar.count}
	if l.plain() {
		a.plain = file
	}
	if err := f.layerAt(ctx, l.Digest, a); err != nil || l.plain() {
		return s.tar.count(), err
	}
	return s.tar.count(), s.verify(ctx)
}

func damagedBy(err error, l layerInfo) kiln.Digest {
	if errors.Is(err, errDamagedLayer) {
		return l.Digest
	}
	return ""
}
