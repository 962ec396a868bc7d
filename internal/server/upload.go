package server

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/kilnproject/kiln"
)

// Blob is content that a client can send.
type Blob struct {
	Digest kiln.Digest
	Size   int64
	Open   func() (io.ReadCloser, error)
}

const missingBatch = 50_000 // digests in one question

// Missing asks which of the digests the store has not.
func (c *Client) Missing(ctx context.Context, digests []kiln.Digest) ([]kiln.Digest, error) {
	var missing []kiln.Digest
	for len(digests) > 0 {
		n := min(len(digests), missingBatch)
		body, err := json.Marshal(MissingRequest{Digests: digests[:n]})
		if err != nil {
			return nil, err
		}
		var result MissingResult
		if err := c.call(ctx, http.MethodPost, "blobs/missing", nil, typeJSON, bytes.NewReader(body), &result); err != nil {
			return nil, err
		}
		missing = append(missing, result.Missing...)
		digests = digests[n:]
	}
	return missing, nil
}

// Upload streams blobs into the store. A file that changed after it was hashed
// is refused by the server. Sent is told the bytes of each blob once it is on
// its way; nil is allowed.
func (c *Client) Upload(ctx context.Context, blobs []Blob, sent func(bytes int64)) (UploadResult, error) {
	var result UploadResult
	if len(blobs) == 0 {
		return result, nil
	}
	reader, writer := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := pack(writer, blobs, sent)
		_ = writer.CloseWithError(err)
		packed <- err
	}()
	err := c.call(ctx, http.MethodPost, "blobs", nil, typeTar, reader, &result)
	_ = reader.Close()
	// A file that cannot be read is the cause of what the server then says; a
	// pipe that was closed is only its consequence.
	if local := <-packed; local != nil && !errors.Is(local, io.ErrClosedPipe) {
		return result, local
	}
	return result, err
}

func pack(w io.Writer, blobs []Blob, sent func(int64)) error {
	archive := tar.NewWriter(w)
	for _, blob := range blobs {
		if err := packOne(archive, blob); err != nil {
			return err
		}
		if sent != nil {
			sent(blob.Size)
		}
	}
	return archive.Close()
}

func packOne(archive *tar.Writer, blob Blob) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: "sha256/" + blob.Digest.Hex(), Size: blob.Size, Mode: 0o600, Format: tar.FormatPAX}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	content, err := blob.Open()
	if err != nil {
		return err
	}
	defer func() { _ = content.Close() }()
	n, err := io.Copy(archive, content)
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != blob.Size {
		return kiln.Errorf(kiln.CodeConflict, "run the command again", "a file changed while it was read: %s had %d bytes", blob.Digest.Short(), blob.Size)
	}
	if err != nil {
		return fmt.Errorf("send %s: %w", blob.Digest.Short(), err)
	}
	return nil
}
