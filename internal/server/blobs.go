package server

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// missing answers which blobs a client must upload.
func (a *api) missing(r *http.Request) (any, error) {
	request, err := decode[MissingRequest](a, r)
	if err != nil {
		return nil, err
	}
	if len(request.Digests) > a.Limits.Blobs {
		return nil, kiln.Errorf(kiln.CodeInvalid, "ask in parts", "%d digests in one request, at most %d", len(request.Digests), a.Limits.Blobs)
	}
	seen := make(map[kiln.Digest]bool, len(request.Digests))
	for _, d := range request.Digests {
		if _, err := kiln.ParseDigest(string(d)); err != nil {
			return nil, kiln.Errorf(kiln.CodeInvalid, "", "%w", err)
		}
	}
	unique := slices.DeleteFunc(request.Digests, func(d kiln.Digest) bool {
		before := seen[d]
		seen[d] = true
		return before
	})
	return MissingResult{Missing: orEmpty(a.Store.Missing(unique))}, nil
}

// batchBytes and batchBlobs bound what an upload that breaks off loses.
const (
	batchBytes = 256 << 20
	batchBlobs = 5000
)

// upload stores the files of a tar stream, each named "sha256/<hex>" by its
// content. Of an upload that breaks off a part may stay stored: it is what its
// name says, and the client asks again what is missing.
func (a *api) upload(r *http.Request) (any, error) {
	body := patient{http.MaxBytesReader(nil, r.Body, a.Limits.Upload+int64(a.Limits.Blobs)*1024), callOf(r).response}
	defer body.end()
	archive := tar.NewReader(body)
	batch := a.Store.NewBatch()
	defer func() { batch.Discard() }()
	var result, committed UploadResult
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return result, errors.Join(batch.Commit(r.Context()), a.stored(r, result))
		}
		if err != nil {
			return nil, kiln.Errorf(kiln.CodeInvalid, "run the command again", "the upload broke off: %w", err)
		}
		digest, err := a.checkEntry(header, result)
		if err != nil {
			return nil, err
		}
		_, n, err := batch.Put(r.Context(), archive, digest)
		if err != nil {
			return nil, err
		}
		result.Blobs++
		result.Bytes += n
		if result.Blobs-committed.Blobs < batchBlobs && result.Bytes-committed.Bytes < batchBytes {
			continue
		}
		if err := batch.Commit(r.Context()); err != nil {
			return nil, err
		}
		committed = result
		batch = a.Store.NewBatch()
	}
}

// stored tells of an upload.
func (a *api) stored(r *http.Request, result UploadResult) error {
	if result.Blobs == 0 {
		return nil
	}
	return a.record(r.Context(), kiln.Event{
		Kind: "blobs.stored", Subject: "store", Message: fmt.Sprintf("%d blobs, %d bytes, were sent to the store", result.Blobs, result.Bytes), Actor: actorOf(r),
	})
}

// uploadTimeout is how long a client may take to send the next part of an
// upload.
const uploadTimeout = time.Minute

// patient is the body of an upload: as a whole it may take as long as it
// likes, while it goes on.
type patient struct {
	io.Reader
	response *http.ResponseController
}

func (p patient) Read(b []byte) (int, error) {
	_ = p.response.SetReadDeadline(time.Now().Add(uploadTimeout))
	return p.Reader.Read(b)
}

// end waits no longer for what is left.
func (p patient) end() { _ = p.response.SetReadDeadline(time.Now().Add(refusedTimeout)) }

// checkEntry checks one entry of an upload before a byte of it is stored.
func (a *api) checkEntry(header *tar.Header, so UploadResult) (kiln.Digest, error) {
	invalid := func(format string, args ...any) (kiln.Digest, error) {
		return "", kiln.Errorf(kiln.CodeInvalid, "", format, args...)
	}
	hex, ok := strings.CutPrefix(header.Name, "sha256/")
	digest, err := kiln.ParseDigest("sha256:" + hex)
	switch {
	case !ok || err != nil:
		return invalid("entry %q of the upload: want sha256/ and 64 lower-case hex digits", header.Name)
	case header.Typeflag != tar.TypeReg:
		return invalid("entry %q of the upload is not a regular file", header.Name)
	case header.Size > a.Limits.Blob:
		return invalid("blob %s has %d bytes, at most %d", digest.Short(), header.Size, a.Limits.Blob)
	case so.Bytes+header.Size > a.Limits.Upload:
		return invalid("the upload has more than %d bytes", a.Limits.Upload)
	case so.Blobs >= a.Limits.Blobs:
		return invalid("the upload has more than %d blobs", a.Limits.Blobs)
	}
	return digest, nil
}
