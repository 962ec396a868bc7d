package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/doctor"
)

// testApp is a command line whose output is kept.
func testApp() (*app, *bytes.Buffer, *bytes.Buffer) {
	var out, errs bytes.Buffer
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	return &app{Options: Options{Out: &out, Err: &errs}, dir: ".", now: func() time.Time { return now }}, &out, &errs
}

func TestExitCodes(t *testing.T) {
	codes := []kiln.Code{
		kiln.CodeInvalid, kiln.CodeNotFound, kiln.CodeConflict, kiln.CodeRefused,
		kiln.CodeFailed, kiln.CodeUnavailable, kiln.CodeNoRoom, kiln.CodeInternal,
	}
	seen := map[int]kiln.Code{}
	for _, code := range codes {
		exit := exitCode(fmt.Errorf("outer: %w", &kiln.Error{Code: code, Message: "m"}))
		if other, taken := seen[exit]; taken || exit == 0 || exit == ExitChanges || exit == ExitInterrupted {
			t.Errorf("%s exits %d, like %q", code, exit, other)
		}
		seen[exit] = code
		if !strings.Contains(exitCodesText(), fmt.Sprintf("%5d  ", exit)) {
			t.Errorf("exit code %d is not documented", exit)
		}
	}
	if got := exitCode(context.Canceled); got != ExitInterrupted {
		t.Errorf("interrupted exits %d", got)
	}
	if got := exitCode(errors.New("plain")); got != ExitFailed {
		t.Errorf("a plain error exits %d", got)
	}
}

func TestErrorsSayWhatAndWhatToDo(t *testing.T) {
	a, _, errs := testApp()
	a.dir = "shop"
	a.printError(fmt.Errorf("release 4: %w", &kiln.Error{
		Code: kiln.CodeFailed, Message: "web was never ready", Hint: "kiln logs web", Evidence: []string{"GET /healthz: 503", "last line\x1b[2J"},
		Diagnostics: []kiln.Diagnostic{
			{
				Severity: "error", Summary: "Unsupported argument", Detail: `Did you mean "image"?`, File: "kiln.hcl",
				Line: 12, Column: 3, EndColumn: 8, Snippet: "\timgae = image.web",
			},
			{Severity: "warning", Summary: "No limits", File: "kiln.hcl"},
		},
	}))
	want := `error: Unsupported argument
  --> shop/kiln.hcl:12:3
  12 |  imgae = image.web
     |   ^^^^^
  Did you mean "image"?

warning: No limits
  --> shop/kiln.hcl

error: release 4: web was never ready
  GET /healthz: 503
  last line` + "\x1b[2J" + `
hint: kiln logs web
`
	if diff := cmp.Diff(want, errs.String()); diff != "" {
		t.Error(diff)
	}
}

func TestCaretsStayBelowWhatTheyMark(t *testing.T) {
	long := strings.Repeat("x", 400)
	for name, c := range map[string]struct {
		d              kiln.Diagnostic
		snippet, caret string
	}{
		"one character": {kiln.Diagnostic{Snippet: "a = 1", Column: 5}, "a = 1", "    ^"},
		"accents":       {kiln.Diagnostic{Snippet: "ä = ö", Column: 5, EndColumn: 6}, "ä = ö", "    ^"},
		"beyond":        {kiln.Diagnostic{Snippet: "a", Column: 9}, "a", ""},
		"at the end":    {kiln.Diagnostic{Snippet: "a", Column: 2}, "a", " ^"},
		"too wide":      {kiln.Diagnostic{Snippet: "abc", Column: 2, EndColumn: 90}, "abc", " ^^"},
		"long":          {kiln.Diagnostic{Snippet: long, Column: 1, EndColumn: 3}, long[:157] + "...", "^^"},
		"far":           {kiln.Diagnostic{Snippet: long, Column: 390, EndColumn: 392}, "..." + long[350:], strings.Repeat(" ", 42) + "^^"},
	} {
		if snippet, caret := mark(c.d); snippet != c.snippet || caret != c.caret {
			t.Errorf("%s:\n%q\n%q", name, snippet, caret)
		}
	}
}

func TestHostileTextIsHarmlessOnATerminal(t *testing.T) {
	for in, want := range map[string]string{
		"plain ö\ttext":        "plain ö\ttext",
		"\x1b[2Jgone":          `\x1b[2Jgone`,
		"back\bspace\r":        `back\x08space\x0d`,
		"\u009b31mred":         `\x9b31mred`,
		"rtl\u202eoverride":    `rtl\u202eoverride`,
		"bad \xff byte \ufffd": `bad \xff byte ` + "\ufffd",
		"line\u2028separator":  `line\u2028separator`,
		"\x00":                 `\x00`,
	} {
		if got := (style{terminal: true}).safe(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		if got := (style{}).safe(in); got != in {
			t.Errorf("a program gets %q instead of %q", got, in)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("\x1b]0;title\a")
	f.Fuzz(func(t *testing.T, in string) {
		for _, r := range escape(in) {
			if hostile(r) {
				t.Fatalf("%q leaves %q", in, r)
			}
		}
	})
}

func TestAges(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", 3*time.Minute + 9*time.Second: "3m", 4*time.Hour + 10*time.Minute: "4h10m",
		5 * time.Hour: "5h", 51 * time.Hour: "2d3h", 48 * time.Hour: "2d",
	} {
		if got := span(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		1500 * time.Nanosecond: "2µs", 8200 * time.Microsecond: "8ms", 1240 * time.Millisecond: "1.24s",
		14249 * time.Millisecond: "14.2s", 125 * time.Second: "2m5s",
	} {
		if got := took(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{5: "5 B", 1536: "1.5 KiB", 5 << 20: "5.0 MiB", 3 << 30: "3.0 GiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestTablesAlignAndLeaveEmptyColumnsOut(t *testing.T) {
	table := newTable("NAME", "EMPTY", "STATE", "WHY")
	table.row(plain("wäb"), cell{}, cell{"ready", green}, plain("release 1"))
	table.row(plain("orders"), cell{}, cell{"dead", red}, plain(""))
	var b bytes.Buffer
	if err := table.write(&b, style{}, "  "); err != nil {
		t.Fatal(err)
	}
	want := "  NAME    STATE  WHY\n  wäb     ready  release 1\n  orders  dead   \n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestStatusSaysWhatMatters(t *testing.T) {
	a, out, _ := testApp()
	digest := kiln.DigestOf([]byte("image"))
	release := kiln.Release{
		Number: 4, Actor: "root (0)", CreatedAt: a.now().Add(-3 * time.Minute),
		Source: kiln.Source{Commit: strings.Repeat("ab", 20), Branch: "main", Dirty: true},
	}
	parked := release
	parked.Number, parked.Source = 3, kiln.Source{}
	err := a.printStatus(control.Status{Environments: []control.EnvironmentStatus{{
		Name: "production", Live: &release, Parked: &parked, ParkedUntil: a.now().Add(27 * time.Minute),
		Rollout:  &control.RolloutStatus{From: 4, To: 5, Step: "start", StartedAt: a.now().Add(-2 * time.Second)},
		Services: []control.ServiceStatus{{Name: "web", Image: digest, Desired: 3, Ready: 2, Deaths: 1}, {Name: "worker", Image: digest}},
		URLs:     []string{"http://shop.localhost:8080/"}, Problems: []string{"web: 1 of 3 is not ready"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	want := `production  release 4, main abababababab dirty, 3m ago by root (0)
  parked: release 3, 3m ago by root (0), for 27m more
  rollout: release 4 -> 5: start, for 2s
  SERVICE  READY  IMAGE         DEATHS
  web      2/3    6105d6cc76af  1
  worker   0/0    6105d6cc76af  
  http://shop.localhost:8080/
  problem: web: 1 of 3 is not ready
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestInstancesAndReleasesAreListed(t *testing.T) {
	a, out, _ := testApp()
	digest := kiln.DigestOf([]byte("image"))
	list := []kiln.Instance{
		{ID: "web-01", Environment: "p", Service: "web", State: kiln.InstanceReady, Image: digest, PID: 7, CreatedAt: a.now().Add(-time.Hour), Reason: "release 4"},
		{
			ID: "web-02", Environment: "p", Service: "web", State: kiln.InstanceDead, Image: digest, CreatedAt: a.now(),
			Cause: &kiln.Cause{Kind: kiln.CauseExited, ExitCode: 7, Detail: "at start"},
		},
		{ID: "web-03", Environment: "p", State: kiln.InstanceStarting, Image: digest, CreatedAt: a.now(), Note: "GET /: 503", Reason: "release 4"},
	}
	if err := a.printInstances(list); err != nil {
		t.Fatal(err)
	}
	if err := a.printReleases([]kiln.Release{
		{Environment: "p", Number: 1, State: kiln.ReleaseParked, Bundle: digest, CreatedAt: a.now().Add(-time.Hour), Actor: "root (0)"},
		{Environment: "p", Number: 2, State: kiln.ReleaseLive, Bundle: digest, CreatedAt: a.now(), Actor: "ann (1000)", Source: kiln.Source{Dirty: true}},
	}); err != nil {
		t.Fatal(err)
	}
	want := `INSTANCE  STATE     AGE  IMAGE         PID  WHY
web-01    ready     1h   6105d6cc76af  7    release 4
web-02    dead      0s   6105d6cc76af       exited with 7: at start
web-03    starting  0s   6105d6cc76af       GET /: 503
ENVIRONMENT  RELEASE  STATE   SOURCE  BUNDLE        AGE  BY
p            2        live    dirty   6105d6cc76af  0s   ann (1000)
p            1        parked          6105d6cc76af  1h   root (0)
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestUpSaysWhatWasDoneAndWhereTheTimeWent(t *testing.T) {
	a, out, _ := testApp()
	digest := kiln.DigestOf([]byte("image"))
	err := a.printUp(control.UpResult{
		Environment: "production", Release: kiln.Release{Number: 5, Source: kiln.Source{Branch: "main", Dirty: true}},
		Steps: []kiln.Step{
			{Verb: kiln.VerbReplace, Service: "web", Count: 3, Reasons: []string{"image: a -> b"}},
			{Verb: kiln.VerbCreate, Service: "orders", Count: 1, Reasons: []string{"new service"}},
		},
		Images: map[string]kiln.Baked{
			"web":  {Manifest: digest, Size: 5 << 20, Took: 2100 * time.Millisecond},
			"base": {Manifest: digest, Cached: true}, "api": {Manifest: digest, Cached: true},
		},
		URLs: []string{"http://shop.localhost:8080/"}, Took: 3 * time.Second,
		Phases: map[string]time.Duration{"switch": 12 * time.Millisecond, "bake": 2 * time.Second, "start": 900 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `production: release 5 is live (main dirty)
  replace  web     3 instances
           image: a -> b
  create   orders  1 instance
           new service
  baked   web 6105d6cc76af (5.0 MiB, 2.10s)
  cached  api, base
  http://shop.localhost:8080/
took 3.00s: bake 2.00s, start 900ms, switch 12ms
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestPlanSaysWhatStandsInTheWay(t *testing.T) {
	a, out, _ := testApp()
	result := control.PlanResult{Environment: "prod", Live: 3}
	if !nothing(result) {
		t.Error("nothing is something")
	}
	result.Release = "the definition's files changed"
	result.Refused = &kiln.Error{Code: kiln.CodeRefused, Message: "environment prod follows a branch", Hint: "git switch main"}
	if err := a.printPlan(result); err != nil || nothing(result) {
		t.Fatal(err)
	}
	want := `prod: release 3 is live; kiln up would
  release  the definition's files changed
  refuse   environment prod follows a branch
           git switch main
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestProgressInPlainLines(t *testing.T) {
	a, _, errs := testApp()
	p := a.newProgress()
	for _, n := range []kiln.Progress{
		{Stage: "bake", Subject: "web", Step: "[2/3] RUN make \\\n  all"},
		{Stage: "bake", Subject: "web", Step: "[2/3] RUN make \\\n  all", Message: "cc -o web"},
		{Stage: "bake", Subject: "web", Step: "[3/3] RUN apt-get update && apt-get install -y nginx", Message: "Get:1"},
		{Stage: "bake", Subject: "web", Step: "[1/3] FROM base", Cached: true, Done: true},
		{Stage: "bake", Subject: "web", Step: "[2/3] RUN make \\\n  all", Done: true, Took: 1200 * time.Millisecond},
	} {
		p.show(n)
	}
	if p.started() {
		t.Error("a bake has changed nothing that runs")
	}
	p.show(kiln.Progress{Stage: "start", Subject: "web", Message: "2 of 3 ready"})
	if !p.started() {
		t.Error("a start has")
	}
	p.show(kiln.Progress{Stage: "start", Subject: "web", Error: "exited with 7"})
	p.close()
	want := `bake web: [2/3] RUN make \ all
bake web: [2/3] RUN make \ all: cc -o web
bake web: [3/3] RUN apt-get update && apt-get...: Get:1
bake web: [1/3] FROM base (cached)
bake web: [2/3] RUN make \ all 1.20s
start web: 2 of 3 ready
start web: exited with 7
`
	if diff := cmp.Diff(want, errs.String()); diff != "" {
		t.Error(diff)
	}
}

func TestLiveProgressFitsItsTerminal(t *testing.T) {
	a, _, errs := testApp()
	p := a.newProgress()
	p.live = true // drawn as on a terminal of unknown width
	for i := range mostLines + 2 {
		p.show(kiln.Progress{Stage: "bake", Subject: fmt.Sprint(i), Step: "RUN", Message: strings.Repeat("ü", 200)})
	}
	p.draw("")
	if p.drawn != mostLines+1 {
		t.Errorf("%d lines drawn", p.drawn)
	}
	p.close()
	if p.drawn != 0 || !strings.HasSuffix(errs.String(), "\x1b[9A\x1b[J") {
		t.Errorf("the display is left on the screen: %q", errs.String()[max(0, errs.Len()-30):])
	}
}

func TestInterruptionSaysWhatGoesOn(t *testing.T) {
	a, _, _ := testApp()
	p := a.newProgress()
	defer p.close()
	if err := a.ended(context.Canceled, p, "the rollout"); err.Error() != "interrupted before anything was changed" || exitCode(err) != ExitInterrupted {
		t.Error(err)
	}
	p.show(kiln.Progress{Stage: "switch"})
	if err := a.ended(context.Canceled, p, "the rollout"); err.Error() != "the rollout goes on without this command" || exitCode(err) != ExitInterrupted {
		t.Error(err)
	}
	_, _, errs := testApp()
	if Explain(errs, a.ended(context.Canceled, p, "the rollout")) != ExitInterrupted || !strings.HasPrefix(errs.String(), "error: the rollout goes on without this command\nhint: kiln status") {
		t.Errorf("%s", errs)
	}
	failed := errors.New("failed")
	if err := a.ended(failed, p, "the rollout"); !errors.Is(err, failed) {
		t.Error(err)
	}
}

func TestFindingsAreListedWithTheirFix(t *testing.T) {
	a, out, _ := testApp()
	err := a.printFindings([]doctor.Finding{
		{Check: "kernel", State: doctor.OK, Message: "6.18"},
		{Check: "runtime", State: doctor.Blocks, Message: "neither", Fix: "apt-get install runc"},
	})
	want := "ok      kernel           6.18\nblocks  runtime          neither\n                         apt-get install runc\n"
	if out.String() != want || exitCode(err) != ExitFailed {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestUsageErrorsAreInvalid(t *testing.T) {
	for _, args := range [][]string{{"upp"}, {"up", "a", "b"}, {"ps", "--nope"}, {"status", "--json=perhaps"}} {
		var out, errs bytes.Buffer
		code := Run(t.Context(), Options{Args: args, Out: &out, Err: &errs})
		if code != ExitInvalid || !strings.HasPrefix(errs.String(), "error: ") || !strings.Contains(errs.String(), "hint: kiln") {
			t.Errorf("%v: %d\n%s", args, code, &errs)
		}
	}
}
