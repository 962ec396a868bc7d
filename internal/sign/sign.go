// Package sign signs what Kiln made and says what is signed: images and
// bundles, what is known of them (provenance, inventory, verdict), and records
// of this machine.
//
// Signatures are ECDSA over P-256 with SHA-256. Those of images are in-toto
// statements in DSSE envelopes in Sigstore bundles, stored as OCI referrers of
// the manifest that they are about, and beside them one in the older form of
// "simple signing", so that others' tools accept both. Nothing here talks to a
// network or to a transparency log: who trusts a signature has the public key.
//
// What is read is believed only as far as a trusted key has signed it: names of
// files, annotations and media types of a referrer only choose what is tried.
// Payload type, kind of statement and the digest that it is about are compared
// each time, so that no signature stands for something else than it was made for.
//
// Records of this machine, such as which sealed file belongs to which image, are
// signed by a key of Kiln's own, whatever key signs images: they must be written
// also when the operator's is out of reach, and say nothing about an image.
package sign

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// Store is where images and what is signed of them are.
type Store interface {
	// Manifest and Document verify the digest of what they read.
	Manifest(context.Context, kiln.Digest) (ocispec.Manifest, error)
	Document(context.Context, kiln.Digest) ([]byte, error)
	// PutReferrer stores an artifact whose subject is a manifest. The same
	// artifact has the same digest, and is stored once.
	PutReferrer(ctx context.Context, subject kiln.Digest, a Referrer) (kiln.Digest, error)
	// Referrers lists the artifacts of a manifest with that type, and those that
	// are damaged, whose type nobody knows.
	Referrers(ctx context.Context, subject kiln.Digest, artifactType string) ([]ocispec.Descriptor, error)
}

// Referrer is an artifact that is about a manifest.
type Referrer struct {
	ArtifactType string
	Annotations  map[string]string
	Layers       []ReferrerLayer
}

// ReferrerLayer is one blob of an artifact.
type ReferrerLayer struct {
	MediaType   string
	Annotations map[string]string
	Content     []byte
}

// Options are what a Signer works with. At most one of KeyFile and Command is
// set; without either images are signed by a key that is made at first use.
type Options struct {
	// Dir is the folder of the keys: secret, and part of a backup.
	Dir   string
	Store Store
	// KeyFile is the operator's own key, in PEM: PKCS #8, SEC 1, or as cosign
	// encrypts them.
	KeyFile string
	// Password is that of an encrypted KeyFile.
	Password []byte
	Command  Command
	Now      func() time.Time // time.Now when nil
	Log      *slog.Logger     // nil discards
}

// Signer signs and verifies. Its methods may be called concurrently; one
// process at a time may have a Signer on a folder.
type Signer struct {
	store   Store
	log     *slog.Logger
	now     func() time.Time
	images  *ring
	records *ring
	seen    *memory
	others  atomic.Pointer[map[string]*keys]
}

// New opens the folder of the keys, and makes what is missing.
func New(opt Options) (*Signer, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	own, err := opt.operator()
	if err != nil {
		return nil, err
	}
	s := &Signer{store: opt.Store, log: opt.Log, now: opt.Now, seen: newMemory()}
	s.SetOthers(nil)
	if s.images, err = openRing(filepath.Join(opt.Dir, "image"), own, opt.Now); err != nil {
		return nil, fmt.Errorf("open the keys of images: %w", err)
	}
	if s.records, err = openRing(filepath.Join(opt.Dir, "record"), nil, opt.Now); err != nil {
		return nil, fmt.Errorf("open the keys of records: %w", err)
	}
	return s, nil
}

// Keys are the keys of images, the one that signs first, then the newest.
func (s *Signer) Keys() []Key { return s.images.current().list() }

// PublicKey is the public key that signs images now, in PEM.
func (s *Signer) PublicKey() string { return s.images.current().active().Public }

// Rotate makes a new key for images and another for records, removes the
// private halves of those before, and returns the new one of images. What the
// old ones signed stays valid. An operator's key is refused: it is the
// operator's to change.
func (s *Signer) Rotate() (Key, error) {
	key, err := s.images.rotate()
	if err != nil {
		return Key{}, err
	}
	_, err = s.records.rotate()
	return key, err
}

// Distrust ends the trust in a key of images, also for what it signed already.
// The key that signs now must be rotated first.
func (s *Signer) Distrust(id string) error { return s.images.distrust(id) }
