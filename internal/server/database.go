package server

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// Database is what is known of vulnerabilities.
type Database interface {
	Status() control.Advisories
	// Update gets what a server has that is newer; all that is there already for
	// no ecosystems.
	Update(ctx context.Context, actor string, request DatabaseUpdate, progress func(kiln.Progress)) (control.Advisories, error)
	// Import reads all of a file, and imports it whole or not at all.
	Import(ctx context.Context, actor string, request DatabaseImport, file io.Reader, progress func(kiln.Progress)) (control.Advisories, error)
}

// DatabaseUpdate asks for newer advisories.
type DatabaseUpdate struct {
	Ecosystems []string `json:"ecosystems"` // those that are there, for none
	// Server has the zips, as URL/ECOSYSTEM/all.zip; empty is the public one.
	Server string `json:"server,omitempty"`
}

// DatabaseImport says what a file is: a bundle, with the key that it must be
// signed by, or the zip of one ecosystem, which nobody signed.
type DatabaseImport struct {
	Key       string // public, in PEM
	Ecosystem string
}

// databases are the endpoints that change what is known of vulnerabilities.
func (a *api) databases() []route {
	return []route{
		{
			method: "POST", path: "/v1/database/update", role: kiln.RoleAdmin, summary: "Get newer advisories from a server",
			body: DatabaseUpdate{}, result: control.Advisories{}, frames: true, handle: a.stream(a.updateDatabase),
		},
		{
			method: "POST", path: "/v1/database/import", role: kiln.RoleAdmin, summary: "Import advisories: a signed bundle, or the zip of one ecosystem",
			query: []parameter{
				{"key", "string", "of a bundle: the public key that it is signed by, in PEM"},
				{"ecosystem", "string", "of a zip of OSV records: Go, npm, Debian; it is not signed"},
			},
			file: typeZip, result: control.Advisories{}, frames: true, handle: a.stream(a.importDatabase),
		},
	}
}

func (a *api) database(*http.Request) (any, error) {
	if a.Database == nil {
		return nil, noDatabase()
	}
	return a.Database.Status(), nil
}

func noDatabase() error {
	return kiln.Errorf(kiln.CodeNotFound, "", "this server has no database of vulnerabilities")
}

// updateDatabase ends when the caller goes away: what was there before stays.
func (a *api) updateDatabase(r *http.Request, s *stream) (any, error) {
	request, err := decode[DatabaseUpdate](a, r)
	if err != nil {
		return nil, err
	}
	if a.Database == nil {
		return nil, noDatabase()
	}
	return a.Database.Update(r.Context(), actorOf(r), request, s.offer)
}

func (a *api) importDatabase(r *http.Request, s *stream) (any, error) {
	q := r.URL.Query()
	request := DatabaseImport{Key: q.Get("key"), Ecosystem: q.Get("ecosystem")}
	switch {
	case a.Database == nil:
		return nil, noDatabase()
	case (request.Key == "") == (request.Ecosystem == ""):
		return nil, kiln.Errorf(kiln.CodeInvalid, "", "a bundle needs key, and the zip of an ecosystem needs ecosystem; one of them")
	}
	// What bounds the file is the database's.
	body := patient{r.Body, callOf(r).response}
	defer body.end()
	return a.Database.Import(r.Context(), actorOf(r), request, body, s.offer)
}

// Database asks what is known of vulnerabilities.
func (c *Client) Database(ctx context.Context) (control.Advisories, error) {
	return get[control.Advisories](ctx, c, "database", nil)
}

// UpdateDatabase has newer advisories got.
func (c *Client) UpdateDatabase(ctx context.Context, request DatabaseUpdate, progress func(kiln.Progress)) (control.Advisories, error) {
	return operate[control.Advisories](ctx, c, "database/update", request, progress)
}

// ImportDatabase sends a file with advisories.
func (c *Client) ImportDatabase(ctx context.Context, request DatabaseImport, file io.Reader, progress func(kiln.Progress)) (control.Advisories, error) {
	query := url.Values{"key": {request.Key}, "ecosystem": {request.Ecosystem}}
	response, err := c.send(ctx, http.MethodPost, "database/import", query, typeZip, file) //nolint:bodyclose // outcome closes it
	if err != nil {
		return control.Advisories{}, err
	}
	return outcome[control.Advisories](ctx, c, response, progress)
}
