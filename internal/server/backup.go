package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/kilnproject/kiln"
)

// BackupRequest says what a backup has.
type BackupRequest struct {
	// Store is StoreWhole, also when it is empty, or StoreReference.
	Store string `json:"store,omitempty"`
	// Recipients are those of age that keys are encrypted to; without any they
	// are left out.
	Recipients []string `json:"recipients,omitempty"`
}

// How much of the store is in a backup.
const (
	StoreWhole     = "whole"
	StoreReference = "reference" // bundles; of all else the digests
)

// trailerError is the trailer of a download that breaks off: a kiln.Error.
const trailerError = "Kiln-Error"

// backup answers with the file. What breaks off has no end, and so is refused by
// whoever reads it.
func (a *api) backup(w http.ResponseWriter, r *http.Request) {
	r = withResponse(w, r)
	d := &download{w: w, response: callOf(r).response}
	err := a.guard(r, func() error { //nolint:contextcheck // r has it
		request, err := decode[BackupRequest](a, r)
		if err != nil {
			return err
		}
		if request.Store != "" && request.Store != StoreWhole && request.Store != StoreReference {
			return kiln.Errorf(kiln.CodeInvalid, "", "store is %q or %q, not %q", StoreWhole, StoreReference, request.Store)
		}
		if a.Backup == nil {
			return kiln.Errorf(kiln.CodeRefused, "", "this server has nothing to back up")
		}
		return a.Backup(r.Context(), actorOf(r), request, d)
	})
	if err == nil {
		return
	}
	d.patient()
	if !d.begun {
		writeError(w, err)
		return
	}
	text, _ := json.Marshal(errorOf(err)) //nolint:errchkjson // it has strings only
	w.Header().Set(http.TrailerPrefix+trailerError, string(text))
}

// download is the answer to a request for a file: as a whole it may take as long
// as it likes, while the client goes on to read.
type download struct {
	w        http.ResponseWriter
	response *http.ResponseController
	begun    bool
}

func (d *download) patient() { _ = d.response.SetWriteDeadline(time.Now().Add(writeTimeout)) }

func (d *download) Write(b []byte) (int, error) {
	if !d.begun {
		d.begun = true
		d.w.Header().Set("Content-Type", typeBackup)
		d.w.Header().Set("X-Content-Type-Options", "nosniff")
		d.w.Header().Set("Cache-Control", "no-store")
		d.patient()
		if err := d.response.Flush(); err != nil { // what has no length can have a trailer
			return 0, err
		}
	}
	d.patient()
	return d.w.Write(b)
}

// Download is a file that comes. Whether it is whole, its content must say.
type Download struct {
	io.ReadCloser
	response *http.Response
}

// Cause is why the server broke off, once all was read; nil when it did not say.
func (d *Download) Cause() error {
	var e kiln.Error
	if text := d.response.Trailer.Get(trailerError); text == "" || json.Unmarshal([]byte(text), &e) != nil {
		return nil
	}
	return &e
}

// Backup asks for a backup.
func (c *Client) Backup(ctx context.Context, request BackupRequest) (*Download, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	response, err := c.send(ctx, http.MethodPost, "backup", nil, typeJSON, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusOK {
		return &Download{ReadCloser: response.Body, response: response}, nil
	}
	defer func() { _ = response.Body.Close() }()
	return nil, refusedWith(response, "backup")
}
