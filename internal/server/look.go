package server

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// looks are the endpoints that say what is in images and what is known of it.
func (a *api) looks() []route {
	subject := parameter{"subject", "string", "ENVIRONMENT (its live release), ENVIRONMENT/NUMBER, an image's name, its digest, or 12 hex digits of that or more"}
	platform := parameter{"platform", "string", "of an image of several: linux/amd64; the machine's when not said"}
	several := subject
	several.doc += "; may be repeated"
	return []route{
		{
			method: "GET", path: "/v1/scan", role: kiln.RoleRead, summary: "What gates say of images as they are now; changes nothing",
			query: []parameter{
				several, platform,
				{"fail_on", "string", "the least severity that fails: low, medium, high or critical; the gate's when not said"},
				{"no_database", "boolean", "let pass what no database can judge"},
			},
			result: control.ScanResult{}, frames: true, handle: a.stream(a.scan),
		},
		{
			method: "GET", path: "/v1/sbom", role: kiln.RoleRead, summary: "What software is in an image",
			query:  []parameter{subject, platform, {"format", "string", "cyclonedx, also when not said, or spdx"}},
			result: map[string]json.RawMessage{}, handle: a.answer(a.sbom),
		},
		{
			method: "GET", path: "/v1/database", role: kiln.RoleRead, summary: "What is known of vulnerabilities, and since when",
			result: control.Advisories{}, handle: a.answer(a.database),
		},
	}
}

// wholeDigests says whether a caller who may see some environments alone may
// name the digests of images: one who may send images, and so knows theirs.
func wholeDigests(r *http.Request) bool { return callOf(r).role.Includes(kiln.RoleDeploy) }

func (a *api) scan(r *http.Request, s *stream) (any, error) {
	q := r.URL.Query()
	p := params{values: q}
	request := control.ScanRequest{
		Subjects: q["subject"], Platform: q.Get("platform"), FailOn: kiln.Severity(q.Get("fail_on")), NoDatabase: p.boolean("no_database"),
		Reach: callOf(r).reach, Whole: wholeDigests(r),
	}
	if p.err != nil {
		return nil, p.err
	}
	ctx, cancel := untilClosing(r.Context())
	defer cancel()
	return a.Control.Scan(ctx, request, s.offer)
}

func (a *api) sbom(r *http.Request) (any, error) {
	q := r.URL.Query()
	format := q.Get("format")
	switch format {
	case "":
		format = FormatCycloneDX
	case FormatCycloneDX, FormatSPDX:
	default:
		return nil, kiln.Errorf(kiln.CodeInvalid, "", "format=%q: want %s or %s", format, FormatCycloneDX, FormatSPDX)
	}
	if a.SBOM == nil {
		return nil, kiln.Errorf(kiln.CodeNotFound, "", "this server has no images")
	}
	ctx, cancel := untilClosing(r.Context())
	defer cancel()
	d, err := a.Control.Inventory(ctx, control.InventoryRequest{
		Subject: q.Get("subject"), Platform: q.Get("platform"), Reach: callOf(r).reach, Whole: wholeDigests(r),
	})
	if err != nil {
		return nil, err
	}
	return a.SBOM(d, format)
}

// The formats of an SBOM.
const (
	FormatCycloneDX = "cyclonedx"
	FormatSPDX      = "spdx"
)

// Scan asks what gates say of images. What of the request says who asks is not
// sent.
func (c *Client) Scan(ctx context.Context, request control.ScanRequest, progress func(kiln.Progress)) (control.ScanResult, error) {
	query := url.Values{"subject": request.Subjects, "platform": {request.Platform}, "fail_on": {string(request.FailOn)}, "no_database": {strconv.FormatBool(request.NoDatabase)}}
	response, err := c.send(ctx, http.MethodGet, "scan", query, "", nil) //nolint:bodyclose // outcome closes it
	if err != nil {
		return control.ScanResult{}, err
	}
	return outcome[control.ScanResult](ctx, c, response, progress)
}

// SBOM asks what software is in an image, in a format.
func (c *Client) SBOM(ctx context.Context, subject, platform, format string) (json.RawMessage, error) {
	return get[json.RawMessage](ctx, c, "sbom", url.Values{"subject": {subject}, "platform": {platform}, "format": {format}})
}
