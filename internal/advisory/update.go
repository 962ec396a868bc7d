package advisory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// PublicServer has the public OSV export.
const PublicServer = "https://osv-vulnerabilities.storage.googleapis.com"

const (
	maxFetch    = 15 * time.Minute // for one ecosystem
	maxAnswer   = 1 * time.Minute  // until a server answers
	maxRedirect = 5
)

// Server is where zips are got from: URL/Ecosystem/all.zip.
type Server struct {
	URL    string       // "" is PublicServer
	Client *http.Client // nil is one that follows no redirect to plain HTTP
}

// Update gets the ecosystems' records that the server has newer ones of, and
// replaces them all or, with an error, none. What has not changed is as good as
// new. No ecosystems are those that the database has.
func (db *DB) Update(ctx context.Context, server Server, ecosystems []string) error {
	db.writing.Lock()
	defer db.writing.Unlock()
	m := db.manifest()
	if len(ecosystems) == 0 {
		for _, e := range m.status().Ecosystems {
			ecosystems = append(ecosystems, e.Name)
		}
	}
	var sources []Source
	var unchanged []string
	for _, name := range ecosystems {
		f, err := os.CreateTemp(db.dir, durable.Unfinished+"*.zip")
		if err != nil {
			return fmt.Errorf("update the advisories: %w", err)
		}
		defer func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) }() // sweep removes what is left
		known := m.Ecosystems[name]
		if known.From != server.address(name) {
			known.ETag = "" // it named another server's file
		}
		s, err := server.Fetch(ctx, name, known.ETag, f)
		switch {
		case err != nil:
			return err
		case s == nil:
			unchanged = append(unchanged, name)
		default:
			s.Dated = db.now()
			sources = append(sources, *s)
		}
	}
	return db.importLocked(ctx, sources, unchanged)
}

func (s Server) address(ecosystem string) string {
	return cmp.Or(s.URL, PublicServer) + "/" + url.PathEscape(ecosystem) + "/all.zip"
}

// Fetch gets an ecosystem's zip into an empty file, nil where the server still
// has what the tag names.
func (s Server) Fetch(ctx context.Context, ecosystem, etag string, into *os.File) (*Source, error) {
	if err := checkEcosystem(ecosystem); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, maxFetch)
	defer cancel()
	address := s.address(ecosystem)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err == nil && (request.URL.Host == "" || request.URL.Scheme != "https" && request.URL.Scheme != "http") {
		err = errors.New("it is not of the form https://HOST")
	}
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "give the URL of a server, https://...", "%q is no address of advisories: %w", address, err)
	}
	request.Header.Set("User-Agent", "kiln")
	if etag != "" {
		request.Header.Set("If-None-Match", etag)
	}
	answer, err := cmp.Or(s.Client, client()).Do(request)
	if err != nil {
		return nil, unreachable(ecosystem, err)
	}
	defer func() { _ = answer.Body.Close() }() // it was only read
	switch {
	case answer.StatusCode == http.StatusNotModified && etag != "":
		return nil, nil //nolint:nilnil // there is nothing newer
	case answer.StatusCode == http.StatusNotFound:
		return nil, kiln.Errorf(kiln.CodeNotFound, "look at the server's address", "%s is not there", address)
	case answer.StatusCode != http.StatusOK:
		return nil, unreachable(ecosystem, fmt.Errorf("%s answers %s", address, answer.Status))
	}
	n, err := io.Copy(into, io.LimitReader(answer.Body, maxZip+1))
	switch {
	case err != nil:
		return nil, unreachable(ecosystem, err)
	case n > maxZip:
		return nil, refuse(ecosystem, "%s has more than %d bytes", address, int64(maxZip))
	case answer.ContentLength >= 0 && n != answer.ContentLength:
		return nil, unreachable(ecosystem, io.ErrUnexpectedEOF)
	}
	return &Source{Ecosystem: ecosystem, Zip: into, Size: n, From: address, ETag: answer.Header.Get("ETag")}, nil
}

func unreachable(ecosystem string, err error) error {
	return kiln.Errorf(kiln.CodeUnavailable, "try again, or use kiln db import with a bundle from a machine that has a network", "get the advisories for %s: %w", ecosystem, err)
}

// client waits for no server forever.
func client() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // that of the standard library
	transport.ResponseHeaderTimeout = maxAnswer
	return &http.Client{Transport: transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if len(via) > maxRedirect || via[0].URL.Scheme == "https" && next.URL.Scheme != "https" {
			return errors.New("it leads elsewhere, too often or without TLS")
		}
		return nil
	}}
}
