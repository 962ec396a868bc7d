package registry

import (
	"encoding/json"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strconv"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// listTags answers with the tags of a repository in their order
// (distribution-spec, listing tags).
func (q *request) listTags() error {
	all, err := q.g.Store.Tags(q.Context(), q.repository)
	if errors.Is(err, kiln.ErrNotFound) {
		return notFound("NAME_UNKNOWN", "there is no repository %s", q.repository)
	}
	if err != nil {
		return err
	}
	tags, err := q.names(slices.Sorted(maps.Keys(all)))
	if err != nil {
		return err
	}
	return q.answer(200, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{q.repository, tags})
}

// listRepositories answers with the names of repositories in their order, as
// Docker's registry does. The distribution-spec reserves the path for that.
func (q *request) listRepositories() error {
	if !reads(q.Method) {
		return notPossible(q.Method)
	}
	if err := q.may("", Pull); err != nil {
		return err
	}
	all, err := q.g.Store.Repositories(q.Context())
	if err != nil {
		return err
	}
	repositories, err := q.names(all)
	if err != nil {
		return err
	}
	return q.answer(200, struct {
		Repositories []string `json:"repositories"`
	}{repositories})
}

// names are those of one page: all that it takes, or n of those after last.
func (q *request) names(sorted []string) ([]string, error) {
	limit := q.g.page
	if text := q.URL.Query().Get("n"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return nil, badRequest("UNSUPPORTED", "n: want a whole number, 0 or more")
		}
		limit = min(limit, n)
	}
	if last := q.URL.Query().Get("last"); last != "" {
		at, found := slices.BinarySearch(sorted, last)
		if found {
			at++
		}
		sorted = sorted[at:]
	}
	if len(sorted) > limit {
		if sorted = sorted[:limit]; limit > 0 {
			q.more(url.Values{"n": {strconv.Itoa(limit)}, "last": {sorted[limit-1]}})
		}
	}
	return append([]string{}, sorted...), nil
}

// more says where the next page is (RFC 5988).
func (q *request) more(query url.Values) {
	q.w.Header().Set("Link", "<"+q.URL.EscapedPath()+"?"+query.Encode()+`>; rel="next"`)
}

// listReferrers answers with an index of what refers to a digest
// (distribution-spec, listing referrers). A subject that is not there has none.
func (q *request) listReferrers() error {
	subject, err := digestOf(q.reference)
	if err != nil {
		return err
	}
	artifactType := q.URL.Query().Get("artifactType")
	all, err := q.g.Store.Referrers(q.Context(), subject, artifactType)
	if err != nil {
		return err
	}
	last := q.URL.Query().Get("last")
	page := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	size := 0
	for _, desc := range all { // by digest
		if string(desc.Digest) <= last {
			continue
		}
		ok, err := q.g.shows(q.Context(), q.repository, kiln.Digest(desc.Digest))
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		text, err := json.Marshal(desc)
		if err != nil {
			return err
		}
		if n := len(page.Manifests); n > 0 && (n == q.g.page || size+len(text) > maxManifest/2) {
			query := url.Values{"last": {string(page.Manifests[n-1].Digest)}}
			if artifactType != "" {
				query.Set("artifactType", artifactType)
			}
			q.more(query)
			break
		}
		size += len(text)
		page.Manifests = append(page.Manifests, desc)
	}
	if artifactType != "" {
		q.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	q.w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	return q.answer(200, page)
}
