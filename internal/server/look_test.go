package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

func TestLooksAreHandedOn(t *testing.T) {
	var format string
	a := serveRemote(t, func(o *Options) {
		o.SBOM = func(d control.Described, f string) (json.RawMessage, error) {
			format = f
			return json.RawMessage(`{"name":"` + d.Name + `"}`), nil
		}
	})
	text, token := tokenOf("ci", kiln.RoleDeploy)
	token.Reach = kiln.Reach{"staging"}
	a.options.Access.SetTokens(append(slices.Clone(a.options.Access.tokens), token))

	var told []kiln.Progress
	r, err := a.as(t, kiln.RoleRead).Scan(t.Context(), control.ScanRequest{
		Subjects: []string{"app", "production/3"}, Platform: "linux/arm64", FailOn: kiln.SeverityLow, NoDatabase: true,
	}, func(p kiln.Progress) { told = append(told, p) })
	if err != nil || len(r.Images) != 1 || r.Images[0].Verdict.Outcome != kiln.OutcomeFail || len(told) != 1 {
		t.Errorf("%+v, %v, told %d times", r, err, len(told))
	}
	got := a.control.scanned
	if !slices.Equal(got.Subjects, []string{"app", "production/3"}) || got.Platform != "linux/arm64" || got.FailOn != kiln.SeverityLow || !got.NoDatabase || got.Whole || len(got.Reach) > 0 {
		t.Errorf("asked for %+v", got)
	}
	document, err := a.as(t, kiln.RoleRead).SBOM(t.Context(), "app", "", FormatSPDX)
	if err != nil || string(document) != `{"name":"app"}` || format != FormatSPDX || a.control.described.Subject != "app" {
		t.Errorf("%s, %v, format %q", document, err, format)
	}
	if _, err := a.as(t, kiln.RoleRead).SBOM(t.Context(), "app", "", "xml"); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("a format that is none: %v", err)
	}

	a.tokens[kiln.RoleDeploy] = text
	if _, err := a.as(t, kiln.RoleDeploy).Scan(t.Context(), control.ScanRequest{Subjects: []string{"app"}}, nil); err != nil {
		t.Error(err)
	}
	if got := a.control.scanned; !got.Whole || !slices.Equal(got.Reach, token.Reach) {
		t.Errorf("a token with environments asked for %+v", got)
	}
}

// shelf is a database that keeps what it was told.
type shelf struct {
	actor  string
	update DatabaseUpdate
	taken  DatabaseImport
	file   string
	ends   chan error // of files
}

func (s *shelf) Status() control.Advisories {
	return control.Advisories{Digest: kiln.DigestOf(nil), Ecosystems: []control.AdvisoryEcosystem{{Name: "Go"}}}
}

func (s *shelf) Update(_ context.Context, actor string, r DatabaseUpdate, progress func(kiln.Progress)) (control.Advisories, error) {
	s.actor, s.update = actor, r
	progress(kiln.Progress{Stage: "database"})
	return s.Status(), nil
}

func (s *shelf) Import(_ context.Context, actor string, r DatabaseImport, file io.Reader, _ func(kiln.Progress)) (control.Advisories, error) {
	content, err := io.ReadAll(file)
	s.actor, s.taken, s.file = actor, r, string(content)
	s.ends <- err
	return s.Status(), err
}

func TestTheDatabaseIsChangedByAdministrators(t *testing.T) {
	s := &shelf{ends: make(chan error, 4)}
	a := serveRemote(t, func(o *Options) { o.Database = s })
	if d, err := a.as(t, kiln.RoleRead).Database(t.Context()); err != nil || len(d.Ecosystems) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
	content := strings.Repeat("zip", 1<<20)
	for _, role := range []kiln.Role{kiln.RoleRead, kiln.RoleDeploy} {
		if _, err := a.as(t, role).ImportDatabase(t.Context(), DatabaseImport{Ecosystem: "Go"}, strings.NewReader("x"), nil); !errors.Is(err, &kiln.Error{Code: kiln.CodeRefused}) {
			t.Errorf("import as %s: %v", role, err)
		}
		if _, err := a.as(t, role).UpdateDatabase(t.Context(), DatabaseUpdate{}, nil); !errors.Is(err, &kiln.Error{Code: kiln.CodeRefused}) {
			t.Errorf("update as %s: %v", role, err)
		}
	}
	if s.actor != "" {
		t.Errorf("%s changed it", s.actor)
	}
	admin := a.as(t, kiln.RoleAdmin)
	key := "-----BEGIN PUBLIC KEY-----\na+b/c=\n-----END PUBLIC KEY-----\n"
	if d, err := admin.ImportDatabase(t.Context(), DatabaseImport{Key: key}, strings.NewReader(content), nil); err != nil || d.Digest == "" {
		t.Errorf("%+v, %v", d, err)
	}
	if s.actor != "token:admin" || s.taken.Key != key || s.taken.Ecosystem != "" || s.file != content {
		t.Errorf("%s imported %+v, %d bytes", s.actor, s.taken, len(s.file))
	}
	if _, err := admin.UpdateDatabase(t.Context(), DatabaseUpdate{Ecosystems: []string{"Go"}, Server: "https://mirror.test"}, nil); err != nil || s.update.Server != "https://mirror.test" {
		t.Errorf("%+v, %v", s.update, err)
	}
	for _, r := range []DatabaseImport{{}, {Key: key, Ecosystem: "Go"}} {
		if _, err := admin.ImportDatabase(t.Context(), r, strings.NewReader("x"), nil); !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// TestAnImportThatBreaksOff ends in the middle of the file: the database is told
// so, and takes no part for the whole.
func TestAnImportThatBreaksOff(t *testing.T) {
	s := &shelf{ends: make(chan error, 4)}
	f := serve(t, func(o *Options) { o.Database = s })
	broken := io.MultiReader(strings.NewReader("half"), failing{})
	if _, err := f.client.ImportDatabase(t.Context(), DatabaseImport{Ecosystem: "Go"}, broken, nil); err == nil {
		t.Error("half a file was imported")
	}
	if err := <-s.ends; err == nil {
		t.Error("the file that broke off looked whole")
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, http.ErrBodyReadAfterClose }

func TestWithoutADatabase(t *testing.T) {
	f := serve(t, nil)
	if _, err := f.client.Database(t.Context()); !errors.Is(err, kiln.ErrNotFound) {
		t.Error(err)
	}
	if _, err := f.client.UpdateDatabase(t.Context(), DatabaseUpdate{}, nil); !errors.Is(err, kiln.ErrNotFound) {
		t.Error(err)
	}
	if _, err := f.client.SBOM(t.Context(), "app", "", ""); !errors.Is(err, kiln.ErrNotFound) {
		t.Error(err)
	}
}
