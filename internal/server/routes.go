package server

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// route is one endpoint: how it is asked, who may ask, and what it takes and
// gives. The OpenAPI description is tested against these, and the handler is
// made from them, so that there is no endpoint without a role.
type route struct {
	method, path string
	role         kiln.Role // the least that may ask
	summary      string
	query        []parameter
	body         any // zero value of what the JSON body is; nil for none
	tar          bool
	file         string // media type of a body that is a file; empty for none
	result       any    // zero value of the answer, or of a stream's result
	text         bool   // the answer is text
	frames       bool   // the answer is a stream of frames
	formats      []string
	handle       http.HandlerFunc
}

// parameter is one of a query.
type parameter struct {
	name, kind, doc string // kind: "string", "integer", "boolean" or "time"
}

// routes is every endpoint of the API.
func (a *api) routes() []route {
	return slices.Concat(a.looking(), a.looks(), a.inspecting(), a.changing(), a.administering(), a.databases())
}

func (a *api) looking() []route {
	environment := parameter{"environment", "string", "name of an environment; all within reach when not said"}
	limit := parameter{"limit", "integer", "items of a page: 1 to 1000, 100 when not said"}
	cursor := parameter{"cursor", "string", "next of the page before; the first page when not said"}
	follow := parameter{"follow", "boolean", "go on with what comes"}
	return []route{
		{
			method: "GET", path: "/v1/version", role: kiln.RoleRead, summary: "Who answers",
			result: Version{}, handle: a.answer(func(*http.Request) (any, error) { return a.Version, nil }),
		},
		{
			method: "GET", path: "/v1/openapi.json", role: kiln.RoleRead, summary: "This description",
			result: map[string]json.RawMessage{}, handle: a.answer(func(*http.Request) (any, error) { return json.RawMessage(openapi), nil }),
		},
		{
			method: "GET", path: "/v1/status", role: kiln.RoleRead, summary: "All environments at a glance",
			result: control.Status{}, handle: a.answer(a.status),
		},
		{
			method: "GET", path: "/v1/instances", role: kiln.RoleRead, summary: "Instances, those that died of late included, by environment, service and age",
			query: []parameter{environment, limit, cursor}, result: Page[kiln.Instance]{}, handle: a.answer(a.instances),
		},
		{
			method: "GET", path: "/v1/releases", role: kiln.RoleRead, summary: "Releases, by environment, the newest first",
			query: []parameter{environment, limit, cursor}, result: Page[kiln.Release]{}, handle: a.answer(a.releases),
		},
		{
			method: "GET", path: "/v1/diff", role: kiln.RoleRead, summary: "What two releases differ in",
			query: []parameter{
				{"to", "string", "ENVIRONMENT, whose live release is meant, or ENVIRONMENT/NUMBER"},
				{"from", "string", "the release that it is compared with; the one before it when not said"},
			},
			result: kiln.ReleaseDiff{}, handle: a.answer(a.diff),
		},
		{
			method: "GET", path: "/v1/events", role: kiln.RoleRead, summary: "The history, oldest first: a stream, a page, or server-sent events, as Accept says",
			query: []parameter{
				environment,
				{"after", "integer", "sequence number that the events come after; the header Last-Event-ID says the same"},
				{"last", "integer", "the newest so many of them; all when not said"},
				follow, limit, cursor,
			},
			result: Page[kiln.Event]{}, frames: true, formats: []string{typeStream, typeSSE, typeJSON}, handle: a.events,
		},
		{
			method: "GET", path: "/v1/logs", role: kiln.RoleRead, summary: "What instances wrote, in the order of time",
			query: []parameter{
				{"environment", "string", "name of the environment"},
				{"service", "string", "one service alone"},
				{"instance", "string", "one instance alone"},
				{"tail", "integer", "the last so many lines of each instance; all that is kept when not said"},
				{"since", "time", "later lines alone"},
				follow,
			},
			result: struct{}{}, frames: true, handle: a.stream(a.logs),
		},
	}
}

// inspecting is what is asked about the control plane itself.
func (a *api) inspecting() []route {
	return []route{
		{
			method: "GET", path: "/v1/config", role: kiln.RoleAdmin, summary: "The configuration in effect",
			result: Settings{}, handle: a.answer(a.settings),
		},
		{
			method: "GET", path: "/v1/keys", role: kiln.RoleRead, summary: "The public keys whose signatures of images count",
			result: Keys{}, handle: a.answer(a.keys),
		},
		{
			method: "GET", path: "/metrics", role: kiln.RoleRead, summary: "Metrics in Prometheus' form",
			text: true, handle: a.metrics,
		},
	}
}

func (a *api) changing() []route {
	return []route{
		{
			method: "POST", path: "/v1/blobs/missing", role: kiln.RoleDeploy, summary: "Which blobs the store has not",
			body: MissingRequest{}, result: MissingResult{}, handle: a.answer(a.missing),
		},
		{
			method: "POST", path: "/v1/blobs", role: kiln.RoleDeploy, summary: "Store blobs, each named sha256/<64 hex digits> by its content",
			tar: true, result: UploadResult{}, handle: a.answer(a.upload),
		},
		{
			method: "POST", path: "/v1/plan", role: kiln.RoleDeploy, summary: "What up would do",
			body: control.UpRequest{}, result: control.PlanResult{}, handle: a.answer(a.plan),
		},
		{
			method: "POST", path: "/v1/up", role: kiln.RoleDeploy, summary: "Bake, release and switch to what a tree says",
			body: control.UpRequest{}, result: control.UpResult{}, frames: true, handle: a.stream(a.up),
		},
		{
			method: "POST", path: "/v1/bake", role: kiln.RoleDeploy, summary: "Bake images and bundle, and release nothing",
			body: control.UpRequest{}, result: control.BakeResult{}, frames: true, handle: a.stream(a.bake),
		},
		{
			method: "POST", path: "/v1/verify", role: kiln.RoleDeploy, summary: "Check all that was signed of a release, and bake it again where asked",
			body: control.ProofRequest{}, result: kiln.ReleaseProof{}, frames: true, handle: a.stream(a.verify),
		},
		{
			method: "POST", path: "/v1/rollback", role: kiln.RoleDeploy, summary: "Go back to an earlier release",
			body: control.RollbackRequest{}, result: control.RollbackResult{}, frames: true, handle: a.stream(a.rollback),
		},
		{
			method: "POST", path: "/v1/repave", role: kiln.RoleDeploy, summary: "Bake again from newer bases, and roll out what that changed",
			body: control.RepaveRequest{}, result: control.RepaveResult{}, frames: true, handle: a.stream(a.repave),
		},
		{
			method: "POST", path: "/v1/push", role: kiln.RoleDeploy, summary: "Send an image and what refers to it to another registry",
			body: PushRequest{}, result: PushResult{}, frames: true, handle: a.stream(a.push),
		},
		{
			method: "POST", path: "/v1/down", role: kiln.RoleDeploy, summary: "End an environment",
			body: control.DownRequest{}, result: struct{}{}, frames: true, handle: a.stream(a.down),
		},
	}
}

// administering is what changes the control plane itself.
func (a *api) administering() []route {
	return []route{
		{
			method: "POST", path: "/v1/backup", role: kiln.RoleAdmin, summary: "All that cannot be made anew, as one file",
			body: BackupRequest{}, formats: []string{typeBackup}, handle: a.backup,
		},
		{
			method: "POST", path: "/v1/ledger/verify", role: kiln.RoleAdmin, summary: "Check every record of the ledger",
			body: VerifyRequest{}, result: kiln.LedgerReport{}, frames: true, handle: a.stream(a.verifyLedger),
		},
		{
			method: "POST", path: "/v1/ledger/accept", role: kiln.RoleAdmin, summary: "Go on with a damaged ledger",
			body: AcceptRequest{}, result: kiln.LedgerReport{}, frames: true, handle: a.stream(a.acceptLedger),
		},
		{
			method: "POST", path: "/v1/reload", role: kiln.RoleAdmin, summary: "Read the configuration again and take it, whole or not at all",
			body: struct{}{}, result: Reloaded{}, handle: a.answer(a.reload),
		},
		{
			method: "POST", path: "/v1/notify/test", role: kiln.RoleAdmin, summary: "Send a test event to those who are notified",
			body: NotifyTest{}, result: NotifyResults{}, handle: a.answer(a.notifyTest),
		},
		{
			method: "POST", path: "/v1/keys/rotate", role: kiln.RoleAdmin, summary: "Make a new key for signatures of images",
			body: struct{}{}, result: Keys{}, handle: a.answer(a.rotateKey),
		},
		{
			method: "POST", path: "/v1/keys/distrust", role: kiln.RoleAdmin, summary: "End the trust in a key, also for what it signed",
			body: KeyRequest{}, result: Keys{}, handle: a.answer(a.distrustKey),
		},
		{
			method: "POST", path: "/v1/shutdown", role: kiln.RoleAdmin, summary: "End every environment, and then Kiln's own processes",
			body: struct{}{}, result: struct{}{}, frames: true, handle: a.stream(a.shutdown),
		},
	}
}
