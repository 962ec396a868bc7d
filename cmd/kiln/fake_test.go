package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/backup"
	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/scaffold"
	"github.com/kilnproject/kiln/internal/server"
)

// fakeDaemon is a control plane that answers the API on $KILN_DATA/kiln.sock
// with what these scripts look for, and runs nothing. A tree whose definition
// is for environment "slow" hangs in the bake, "rolling" in the switch, and
// "failing" fails. As "fakekilnd draft FOLDER" it does what kilnd does.
func fakeDaemon() {
	if len(os.Args) > 1 {
		draft(os.Args[2])
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	data := os.Getenv("KILN_DATA")
	if err := os.MkdirAll(data, 0o700); err != nil {
		fatal(err)
	}
	listener, err := server.Listen(filepath.Join(data, server.SocketName))
	if err != nil {
		fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	handler := server.New(server.Options{
		Control: fake{}, Ledger: fake{}, Store: sink{}, Log: log, Version: server.Version{Version: "dev", PID: os.Getpid()},
		NotifyTest: func(_ context.Context, name, _ string) ([]server.NotifyResult, error) {
			all := []server.NotifyResult{{Name: "ops", URL: "https://ops.test", Status: 204, Took: time.Millisecond}, {Name: "chat", URL: "https://chat.test", Error: "no \x1b[2Janswer"}}
			switch name {
			case "ops":
				return all[:1], nil
			case "":
				return all, nil
			}
			return nil, kiln.Errorf(kiln.CodeNotFound, "kiln config show lists them", "the configuration has no notify %q", name)
		},
		SigningKeys: &ring{},
		Backup:      backUp,
		SBOM: func(d control.Described, format string) (json.RawMessage, error) {
			return json.RawMessage(fmt.Sprintf(`{"format":%q,"name":%q}`, format, d.Name)), nil
		},
		Database: &fakeDatabase{},
		Shutdown: func(context.Context, string, func(kiln.Progress)) error { stop(); return nil },
	})
	if err := server.Serve(ctx, listener, handler, time.Second, log); err != nil {
		fatal(err)
	}
}

func draft(folder string) {
	files, notes, err := scaffold.Generate(os.DirFS(folder))
	if err != nil {
		os.Exit(cli.Explain(os.Stderr, err))
	}
	if err := json.NewEncoder(os.Stdout).Encode(cli.Draft{Files: files, Notes: notes}); err != nil {
		fatal(err)
	}
}

// ring has the key "aaaa...", and after a rotation another one.
type ring struct{ rotated, distrusted bool }

func (r *ring) Keys() []server.SigningKey {
	day := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	old := server.SigningKey{ID: strings.Repeat("a", 64), Public: "-----BEGIN PUBLIC KEY-----\n", Origin: "own", Since: day}
	if r.distrusted {
		old.Distrusted = day
	}
	if r.rotated {
		return []server.SigningKey{{ID: strings.Repeat("b", 64), Origin: "own", Since: day}, old}
	}
	return []server.SigningKey{old}
}

func (r *ring) Rotate(context.Context, string) error { r.rotated = true; return nil }

func (r *ring) Distrust(context.Context, string, string) error { r.distrusted = true; return nil }

// backUp writes a small backup. One by reference breaks off.
func backUp(ctx context.Context, _ string, request server.BackupRequest, w io.Writer) error {
	recipients, err := backup.ParseRecipients(request.Recipients)
	if err != nil {
		return err
	}
	path := filepath.Join(os.Getenv("KILN_DATA"), "ledger.db")
	if err := os.WriteFile(path, []byte("a ledger"), 0o600); err != nil {
		return err
	}
	var whole bytes.Buffer
	_, err = backup.Write(ctx, &whole, backup.Source{
		Version: "dev", Host: "first", At: time.Unix(0, 0), Ledger: path, Tip: "1:ab", Index: []byte("{}"),
		Keys: []backup.Key{{Path: "api/authority.key", Content: []byte("key")}}, Recipients: recipients,
	})
	if err == nil && request.Store == server.StoreReference {
		whole.Truncate(whole.Len() / 2)
		err = kiln.Errorf(kiln.CodeFailed, "mend it", "a blob is damaged")
	}
	_, _ = w.Write(whole.Bytes())
	return err
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

type fake struct{}

func image() kiln.Digest { return kiln.DigestOf([]byte("image")) }

func release(number int, state kiln.ReleaseState) kiln.Release {
	return kiln.Release{
		Environment: "default", Number: number, State: state, Bundle: image(), Actor: "ann (1000)",
		CreatedAt: time.Now().Add(-3 * time.Minute), Source: kiln.Source{Branch: "main", Dirty: number == 2},
	}
}

func (fake) Up(ctx context.Context, r control.UpRequest, progress func(kiln.Progress)) (control.UpResult, error) {
	progress(kiln.Progress{Stage: "bake", Subject: "app", Step: "[1/1] COPY app /app"})
	switch r.Environment {
	case "slow":
		<-ctx.Done()
		return control.UpResult{}, ctx.Err()
	case "rolling":
		progress(kiln.Progress{Stage: "switch", Subject: "release 2"})
		<-ctx.Done()
		return control.UpResult{}, ctx.Err()
	case "failing":
		return control.UpResult{}, &kiln.Error{
			Code: kiln.CodeFailed, Message: "release 2 was undone: web was never ready", Hint: "kiln logs web", Evidence: []string{"GET /healthz: 503", "\x1b[2Jhostile"},
		}
	}
	progress(kiln.Progress{Stage: "bake", Subject: "app", Step: "[1/1] COPY app /app", Done: true, Took: time.Second})
	return control.UpResult{
		Overlay: pinned(r), Environment: "default", Release: release(2, kiln.ReleaseLive), URLs: []string{"http://web.localhost:8080/"}, Took: 2 * time.Second,
		Steps: steps(), Images: map[string]kiln.Baked{"app": {Manifest: image(), Size: 2048, Took: time.Second}},
		Lock: kiln.Lock{References: []kiln.LockedReference{{
			Reference: "docker.io/library/debian:12", Index: image(), Platforms: map[string]kiln.Digest{"linux/amd64": image()},
		}}},
	}, nil
}

// pinned says that a repave pinned something, where the version says so.
func pinned(r control.UpRequest) []string {
	if string(r.Values["version"]) != `"pinned"` {
		return nil
	}
	return []string{"test/base:1 is as a repave pinned it"}
}

func steps() []kiln.Step {
	return []kiln.Step{{Verb: kiln.VerbReplace, Service: "web", Count: 2, Reasons: []string{"env VERSION: v1 -> v2"}}}
}

func (fake) Bake(context.Context, control.UpRequest, func(kiln.Progress)) (control.BakeResult, error) {
	return control.BakeResult{Bundle: image(), Images: map[string]kiln.Baked{"app": {Manifest: image(), Cached: true}}}, nil
}

func (fake) Plan(_ context.Context, r control.UpRequest) (control.PlanResult, error) {
	if string(r.Values["version"]) == `"same"` {
		return control.PlanResult{Environment: "default", Live: 1}, nil
	}
	return control.PlanResult{
		Overlay: pinned(r), Environment: "default", Live: 1, Steps: steps(), Routes: []string{"web.localhost is new"},
		Bakes: []control.PlannedBake{{Image: "app", Reason: "its context changed"}},
	}, nil
}

func (fake) Rollback(context.Context, control.RollbackRequest, func(kiln.Progress)) (control.RollbackResult, error) {
	return control.RollbackResult{From: 2, To: 1, Parked: true, Took: 8 * time.Millisecond}, nil
}

func (fake) Repave(_ context.Context, r control.RepaveRequest, _ func(kiln.Progress)) (control.RepaveResult, error) {
	if r.Finding == "CVE-1" {
		return control.RepaveResult{}, kiln.Errorf(kiln.CodeNotFound, "kiln status shows what was found", "no image that runs in default has the finding %s", r.Finding)
	}
	one := control.Repaved{Environment: "default", From: 2, Pins: []string{"test/base:1 aaaaaaaaaaaa -> bbbbbbbbbbbb"}, Steps: steps()}
	if r.Plan {
		one.Outcome, one.Bakes = control.RepavePlanned, []control.PlannedBake{{Image: "app", Reason: "base test/base:1 changed"}}
		return control.RepaveResult{Environments: []control.Repaved{one}}, nil
	}
	one.Outcome, one.Release, one.URLs = control.RepaveDone, 3, []string{"http://web.localhost/"}
	one.Before, one.After = &control.FindingCount{Failing: 1, Open: 4}, &control.FindingCount{Open: 2}
	other := control.Repaved{Environment: "preview", From: 7, Outcome: control.RepaveFailed, Error: kiln.Errorf(kiln.CodeNotFound, "run kiln up preview", "the files are not here")}
	if len(r.Environments) > 0 {
		return control.RepaveResult{Environments: []control.Repaved{one}}, nil
	}
	kept := control.Repaved{Environment: "qa", From: 5, Outcome: control.RepaveKept, Reason: "it still has CVE-2", Before: one.Before, After: one.Before}
	return control.RepaveResult{Environments: []control.Repaved{one, other, kept}}, nil
}

func (fake) Down(context.Context, control.DownRequest, func(kiln.Progress)) error { return nil }

// VerifyRelease finds that nothing holds of release 2.
func (fake) VerifyRelease(_ context.Context, r control.ProofRequest, _ func(kiln.Progress)) (kiln.ReleaseProof, error) {
	d := kiln.DigestOf([]byte("web"))
	proof := kiln.ReleaseProof{Environment: r.Environment, Release: r.Release, Holds: r.Release != 2, Checks: []kiln.Check{
		{Subject: "web", Digest: d, Kind: kiln.CheckSignature, Outcome: kiln.OutcomePass, Detail: "a trusted key signed it as it is"},
		{Subject: "service web", Digest: d, Kind: kiln.CheckSealed, Outcome: kiln.OutcomeUnknown, Detail: "not sealed at present"},
	}}
	if proof.Holds {
		return proof, nil
	}
	proof.Checks = append(proof.Checks, kiln.Check{Subject: "web", Digest: d, Kind: kiln.CheckRebuild, Outcome: kiln.OutcomeFail, Detail: "it is another \x1b[2J", Hint: "look why"})
	proof.Rebuilt = []kiln.ImageEntries{{Name: "web", From: d, To: d, Total: 2, Entries: []kiln.EntryChange{{Layer: 2, Path: "/app/built", Change: "content"}}}}
	return proof, nil
}

func (fake) DiffReleases(_ context.Context, r control.DiffRequest) (kiln.ReleaseDiff, error) {
	out := kiln.ReleaseDiff{
		From: kiln.ReleaseName{Environment: r.To.Environment, Release: 1}, To: kiln.ReleaseName{Environment: r.To.Environment, Release: 2},
		Definition: []kiln.FileChange{}, Images: []kiln.ImageChange{},
	}
	if r.From.Release > 0 {
		return out, nil
	}
	out.Definition = append(out.Definition, kiln.FileChange{Path: "kiln.hcl", Change: "changed", Lines: []string{"@@ -1 +1 @@", "-a", "+b"}, More: 3})
	out.Images = append(out.Images, kiln.ImageChange{
		Name: "web", From: kiln.DigestOf(nil), To: kiln.DigestOf([]byte("web")), FromSize: 1 << 20, ToSize: 2 << 20,
		Packages: []kiln.PackageChange{{Name: "curl", From: "1", To: "2"}, {Name: "new", To: "1"}, {Name: "old", From: "1"}},
		Fixed:    []kiln.Finding{{ID: "CVE-1", Severity: kiln.SeverityHigh, Package: "curl", Version: "1"}},
	})
	return out, nil
}

func (fake) Status(context.Context) (control.Status, error) {
	live := release(2, kiln.ReleaseLive)
	return control.Status{Environments: []control.EnvironmentStatus{{
		Name: "default", Live: &live, Services: []control.ServiceStatus{{Name: "web", Image: image(), Desired: 2, Ready: 1}},
		URLs: []string{"http://web.localhost:8080/"}, Problems: []string{"web: 1 of 2 is not ready"},
	}}}, nil
}

// Scan has an image "app" that fails, "odd" of which nothing can be told, and
// others that pass.
func (fake) Scan(_ context.Context, r control.ScanRequest, progress func(kiln.Progress)) (control.ScanResult, error) {
	var out control.ScanResult
	for _, subject := range r.Subjects {
		v := kiln.Verdict{Image: image(), Outcome: kiln.OutcomePass, Packages: 3, Findings: []kiln.Finding{}}
		switch subject {
		case "nothing":
			return out, kiln.Errorf(kiln.CodeNotFound, "kiln bake makes the images of a definition", "there is no image and no environment %q", subject)
		case "odd":
			v.Outcome, v.Reasons, v.Hint = kiln.OutcomeUnknown, []string{"Vulnerabilities are not known: there is no database of vulnerabilities."}, "kiln db update"
		case "app":
			v.Outcome, v.Reasons, v.Database = kiln.OutcomeFail, []string{"1 finding fails: A-1 (left-over)."}, image()
			v.Findings = []kiln.Finding{
				{
					ID: "A-1", Kind: kiln.FindingVulnerability, Severity: kiln.SeverityHigh, State: kiln.FindingOpen, Fails: r.FailOn != kiln.SeverityCritical, Title: "It runs \x1b[2Jwhat it is told",
					Package: "left-over", Version: "1.0.0", PURL: "pkg:npm/left-over@1.0.0", Path: "/srv/a file", FixedIn: []string{"1.2.3"}, Change: "upgrade left-over to 1.2.3", Aliases: []string{"CVE-2026-1"},
				},
				{ID: "A-2", Kind: kiln.FindingVulnerability, Severity: kiln.SeverityLow, State: kiln.FindingIgnored, Reason: "not reachable", Title: "It is slow", Package: "left-over", Version: "1.0.0"},
			}
			if r.FailOn == kiln.SeverityCritical {
				v.Outcome = kiln.OutcomePass
			}
		}
		progress(kiln.Progress{Stage: "scan", Subject: subject, Done: true, Message: string(v.Outcome)})
		out.Images = append(out.Images, control.Scanned{Subject: subject, Name: subject, Verdict: v})
	}
	return out, nil
}

func (fake) Inventory(_ context.Context, r control.InventoryRequest) (control.Described, error) {
	return control.Described{Name: r.Subject}, nil
}

// fakeDatabase is empty until something is imported.
type fakeDatabase struct{ known control.Advisories }

func (d *fakeDatabase) Status() control.Advisories { return d.known }

func (d *fakeDatabase) Update(_ context.Context, _ string, r server.DatabaseUpdate, _ func(kiln.Progress)) (control.Advisories, error) {
	if r.Server == "" {
		d.known.Failed, d.known.FailedAt = "nobody answers", time.Now()
		return d.known, kiln.Errorf(kiln.CodeUnavailable, "try again", "get the advisories for %s: nobody answers", strings.Join(r.Ecosystems, ", "))
	}
	return d.add(r.Ecosystems[0], r.Server), nil
}

func (d *fakeDatabase) Import(_ context.Context, _ string, r server.DatabaseImport, file io.Reader, _ func(kiln.Progress)) (control.Advisories, error) {
	content, err := io.ReadAll(file)
	if err == nil && string(content) != "records\n" {
		err = kiln.Errorf(kiln.CodeInvalid, "get it again", "the bundle is refused")
	}
	if err != nil {
		return d.known, err
	}
	if r.Ecosystem == "" {
		return d.add("npm", "bundle"), nil
	}
	return d.add(r.Ecosystem, "file"), nil
}

func (d *fakeDatabase) add(name, from string) control.Advisories {
	d.known = control.Advisories{Digest: image(), Dated: time.Now().Add(-3 * time.Hour), Ecosystems: []control.AdvisoryEcosystem{
		{Name: name, Digest: image(), Records: 4293, Withdrawn: 17, Dated: time.Now().Add(-3 * time.Hour), From: from},
	}}
	return d.known
}

func (fake) InstancePage(_ context.Context, q control.InstanceQuery) ([]kiln.Instance, error) {
	if q.Environment != "" && q.Environment != "default" {
		return nil, kiln.Errorf(kiln.CodeNotFound, "there is: default", "there is no environment %q", q.Environment)
	}
	return []kiln.Instance{
		{ID: "web-01aa", Environment: "default", Service: "web", State: kiln.InstanceReady, Image: image(), PID: 7, CreatedAt: time.Now(), Reason: "release 2"},
		{ID: "web-01bb", Environment: "default", Service: "web", State: kiln.InstanceDead, Image: image(), Cause: &kiln.Cause{Kind: kiln.CauseOutOfMemory}},
	}, nil
}

func (fake) ReleasePage(context.Context, control.ReleaseQuery) ([]kiln.Release, error) {
	return []kiln.Release{release(2, kiln.ReleaseLive), release(1, kiln.ReleaseParked)}, nil
}

func (fake) Events(ctx context.Context, q control.EventQuery, each func(kiln.Event) error) error {
	err := each(kiln.Event{Sequence: 9, At: time.Now(), Environment: "default", Kind: "release.live", Subject: "release 2", Message: "it has the traffic"})
	if q.Follow {
		<-ctx.Done()
	}
	return err
}

func (fake) Logs(_ context.Context, w io.Writer, q kiln.LogQuery) error {
	for _, l := range []kiln.LogLine{{Instance: "web-01aa", Text: "up"}, {Instance: "web-01bb", Text: "\x1b[31mred\x1b[0m"}} {
		if q.Instance != "" && q.Instance != l.Instance {
			continue
		}
		if err := json.NewEncoder(w).Encode(l); err != nil {
			return err
		}
	}
	return nil
}

func (fake) Verify(_ context.Context, tip string) (kiln.LedgerReport, error) {
	r := kiln.LedgerReport{Events: 100, Rows: 7, Tip: "100:" + strings.Repeat("ab", 32), Took: time.Second}
	switch tip {
	case "":
		r.Faults = []kiln.LedgerFault{{Record: "event 42", Problem: "its content is not what was written"}}
		r.Damage = image()
	case "bad":
		return r, kiln.Errorf(kiln.CodeInvalid, "", "it is no tip")
	}
	return r, nil
}

func (f fake) Accept(ctx context.Context, _ string, damage kiln.Digest) (kiln.LedgerReport, error) {
	if damage != image() {
		return kiln.LedgerReport{}, kiln.Errorf(kiln.CodeConflict, "", "another damage")
	}
	return f.Verify(ctx, "")
}

// sink takes every blob.
type sink struct{}

func (sink) Missing(digests []kiln.Digest) []kiln.Digest { return digests }
func (sink) NewBatch() server.Batch                      { return sink{} }
func (sink) Commit(context.Context) error                { return nil }
func (sink) Discard()                                    {}

func (sink) Put(_ context.Context, r io.Reader, want kiln.Digest) (kiln.Digest, int64, error) {
	n, err := io.Copy(io.Discard, r)
	return want, n, err
}
