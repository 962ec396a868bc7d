package registry

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
)

// session is an upload that has not ended.
type session struct {
	id         string
	repository string
	used       time.Time // the registry's mu guards it

	mu     sync.Mutex // held while a request works on it
	upload Upload
	ended  bool
}

// begin starts an upload.
func (g *Registry) begin(repository string) (*session, error) {
	g.sweepUploads()
	g.mu.Lock()
	full := len(g.uploads) >= maxUploads
	g.mu.Unlock()
	if full {
		return nil, &failure{http.StatusTooManyRequests, "TOOMANYREQUESTS", fmt.Sprintf("%d uploads have not ended: end one, or wait", maxUploads)}
	}
	upload, err := g.Store.NewUpload()
	if err != nil {
		return nil, err
	}
	s := &session{id: rand.Text(), repository: repository, upload: upload}
	g.mu.Lock()
	defer g.mu.Unlock()
	s.used = g.now()
	g.uploads[s.id] = s
	return s, nil
}

func (g *Registry) sweepUploads() {
	before := g.now().Add(-uploadRest)
	g.dropUploads(func(s *session) bool { return s.used.Before(before) })
}

// dropUploads ends those uploads. One that a request works on is ended after it.
func (g *Registry) dropUploads(which func(*session) bool) {
	g.mu.Lock()
	var gone []*session
	for id, s := range g.uploads {
		if which(s) {
			gone = append(gone, s)
			delete(g.uploads, id)
		}
	}
	g.mu.Unlock()
	for _, s := range gone {
		s.mu.Lock()
		s.end()
		s.mu.Unlock()
	}
}

// end discards what came; s.mu is held.
func (s *session) end() {
	if !s.ended {
		s.ended = true
		s.upload.Discard()
	}
}

func (g *Registry) forget(s *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.uploads, s.id)
}

// withUpload hands a request the upload that it names, for itself alone.
func (q *request) withUpload(do func(*session) error) error {
	unknown := notFound("BLOB_UPLOAD_UNKNOWN", "there is no such upload: it ended, rested for more than %s, or kilnd was restarted", uploadRest)
	q.g.mu.Lock()
	s := q.g.uploads[q.reference]
	if s != nil {
		s.used = q.g.now()
	}
	q.g.mu.Unlock()
	if s == nil || s.repository != q.repository {
		return unknown
	}
	if !s.mu.TryLock() {
		return &failure{http.StatusConflict, "BLOB_UPLOAD_INVALID", "another request works on this upload"}
	}
	defer s.mu.Unlock()
	if s.ended {
		return unknown
	}
	defer q.rested(s)
	return do(s)
}

// rested begins the rest of an upload.
func (q *request) rested(s *session) {
	q.g.mu.Lock()
	defer q.g.mu.Unlock()
	s.used = q.g.now()
}

// postUpload begins an upload, takes a whole blob, or mounts one of another
// repository.
func (q *request) postUpload() error {
	query := q.URL.Query()
	if mount := query.Get("mount"); mount != "" {
		if done, err := q.mount(mount, query.Get("from")); done || err != nil {
			return err
		}
	}
	want := query.Get("digest")
	if want != "" {
		if _, err := digestOf(want); err != nil {
			return err
		}
	}
	s, err := q.g.begin(q.repository)
	if err != nil {
		return err
	}
	if want == "" {
		q.located(s)
		return q.done(http.StatusAccepted)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer q.g.forget(s)
	defer s.end()
	if err := q.receive(s); err != nil {
		return err
	}
	return q.commit(s, want)
}

// mount makes a blob readable here that is readable in another repository, to
// whom may read it there. It reports whether it did: where it cannot, an
// upload begins.
func (q *request) mount(mount, from string) (bool, error) {
	d, err := digestOf(mount)
	if err != nil {
		return false, err
	}
	if from == "" || checkRepository(from) != nil || q.may(from, Pull) != nil {
		return false, nil
	}
	ok, err := q.g.showsBlob(q.Context(), from, d)
	if err != nil || !ok {
		return false, err
	}
	f, err := q.g.Store.Open(d)
	if err != nil {
		return false, nil // collected: it is sent again
	}
	_ = f.Close()
	if err := q.g.loose.add(q.repository, d); err != nil {
		return false, err
	}
	return true, q.created("blobs", d)
}

// created answers that something is there now.
func (q *request) created(kind string, d kiln.Digest) error {
	h := q.w.Header()
	h.Set("Location", "/v2/"+q.repository+"/"+kind+"/"+string(d))
	h.Set("Docker-Content-Digest", string(d))
	return q.done(http.StatusCreated)
}

// located says where an upload goes on and what came of it. That nothing came
// cannot be written as a range: it is 0-0.
func (q *request) located(s *session) {
	h := q.w.Header()
	h.Set("Location", "/v2/"+q.repository+"/blobs/uploads/"+s.id)
	h.Set("Docker-Upload-UUID", s.id)
	h.Set("Range", "0-"+strconv.FormatInt(max(0, s.upload.Size()-1), 10))
}

func (q *request) getUpload(s *session) error {
	q.located(s)
	return q.done(http.StatusNoContent)
}

func (q *request) patchUpload(s *session) error {
	if err := q.receive(s); err != nil {
		return err
	}
	q.located(s)
	return q.done(http.StatusAccepted)
}

func (q *request) putUpload(s *session) error {
	want := q.URL.Query().Get("digest")
	if _, err := digestOf(want); err != nil {
		return err
	}
	if err := q.receive(s); err != nil {
		return err
	}
	defer q.g.forget(s)
	defer s.end()
	return q.commit(s, want)
}

func (q *request) deleteUpload(s *session) error {
	q.g.forget(s)
	s.end()
	return q.done(http.StatusNoContent)
}

// contentRange is "first-last", both included (distribution-spec, pushing a blob
// in chunks), and what HTTP has before and behind it.
var contentRange = regexp.MustCompile(`^(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/(?:\*|[0-9]+))?$`)

// receive appends the body of a request. What came before an error stays.
func (q *request) receive(s *session) error {
	length := int64(-1)
	if text := q.Header.Get("Content-Range"); text != "" {
		m := contentRange.FindStringSubmatch(text)
		if m == nil {
			return badRequest("BLOB_UPLOAD_INVALID", "Content-Range: want first-last")
		}
		first, _ := strconv.ParseInt(m[1], 10, 64) // 18 digits always fit
		last, _ := strconv.ParseInt(m[2], 10, 64)
		if first != s.upload.Size() || last < first {
			q.located(s)
			return &failure{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", fmt.Sprintf("the next chunk begins with byte %d", s.upload.Size())}
		}
		length = last - first + 1
		if q.ContentLength >= 0 && q.ContentLength != length {
			return badRequest("SIZE_INVALID", "Content-Range says %d bytes and Content-Length %d", length, q.ContentLength)
		}
	}
	n, err := s.upload.Append(q.Context(), q.Body, maxBlob)
	switch {
	case errors.Is(err, kiln.ErrInvalid):
		s.end()
		q.g.forget(s)
		return &failure{http.StatusRequestEntityTooLarge, "SIZE_INVALID", fmt.Sprintf("a blob has at most %d bytes", int64(maxBlob))}
	case errors.Is(err, kiln.ErrNoRoom):
		return err
	case err != nil && !errors.Is(err, io.EOF):
		return badRequest("BLOB_UPLOAD_INVALID", "the chunk broke off after %d bytes", n)
	case length >= 0 && n != length:
		return badRequest("SIZE_INVALID", "the chunk has %d bytes, and Content-Range says %d", n, length)
	}
	return nil
}

// commit makes a blob of an upload and shows it in the repository.
func (q *request) commit(s *session, want string) error {
	d, err := digestOf(want)
	if err != nil {
		return err
	}
	s.ended = true // Commit does
	err = s.upload.Commit(d)
	if errors.Is(err, kiln.ErrInvalid) {
		return badRequest("DIGEST_INVALID", "%v", err)
	}
	if err != nil {
		return err
	}
	if err := q.g.loose.add(q.repository, d); err != nil {
		return err
	}
	return q.created("blobs", d)
}
