package metrics

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
)

var update = flag.Bool("update", false, "rewrite the table of docs/observability.md")

const (
	referencePage = "../../docs/observability.md"
	dashboard     = "../../deploy/grafana/kiln.json"
)

// families are all metrics by name.
func families(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	all, err := everything(t).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*dto.MetricFamily{}
	for _, f := range all {
		out[f.GetName()] = f
	}
	return out
}

func labels(f *dto.MetricFamily) []string {
	var out []string
	for _, l := range f.GetMetric()[0].GetLabel() {
		out = append(out, l.GetName())
	}
	return out
}

// TestReferencePage keeps the table of the page equal to what is served.
// `go test ./internal/metrics -run Reference -update` rewrites it.
func TestReferencePage(t *testing.T) {
	all := families(t)
	var names []string
	for name := range all {
		if strings.HasPrefix(name, "kiln_") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var table strings.Builder
	table.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, name := range names {
		f := all[name]
		of := ""
		if l := labels(f); len(l) > 0 {
			of = "`" + strings.Join(l, "`, `") + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", name, strings.ToLower(f.GetType().String()), of, f.GetHelp())
	}
	page, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	marked := regexp.MustCompile(`(?s)<!-- metrics -->\n.*?<!-- end -->`)
	if !marked.Match(page) {
		t.Fatal("the page has no place for the table")
	}
	want := marked.ReplaceAllLiteralString(string(page), "<!-- metrics -->\n"+table.String()+"<!-- end -->")
	if *update {
		if err := os.WriteFile(referencePage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(page)); diff != "" {
		t.Errorf("the page is not what is served; run with -update\n%s", diff)
	}
}

// TestEverythingIsThere: a metric that the tests do not count would be in no
// table, and not be linted.
func TestEverythingIsThere(t *testing.T) {
	all := families(t)
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range sources {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		for _, found := range regexp.MustCompile(`"(kiln_[a-z_]+)"`).FindAllStringSubmatch(string(text), -1) {
			if name := found[1]; all[name] == nil && name != "kiln_gateway_" {
				t.Errorf("%s has %s, and the tests do not", path, name)
			}
		}
	}
}

// TestDashboard: every expression of the dashboard can be parsed, and has only
// metrics and labels that there are. (The parser is of a language that PromQL
// is a part of: Prometheus' own would bring all of Prometheus into go.sum.)
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile(dashboard)
	if err != nil {
		t.Fatal(err)
	}
	var board any
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	all, used := families(t), map[string]bool{}
	expressions := 0
	walk(board, func(key, value string) {
		switch {
		case key == "expr":
			expressions++
			checkExpression(t, all, used, value)
		case key == "query" && strings.HasPrefix(value, "label_values("):
			inner, label, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(value, "label_values("), ")"), ", ")
			checkExpression(t, all, used, fmt.Sprintf("sum by (%s) (%s)", label, inner))
		}
	})
	if expressions < 40 {
		t.Errorf("only %d expressions were found", expressions)
	}
	for name := range all {
		if strings.HasPrefix(name, "kiln_") && !used[name] {
			t.Errorf("no panel shows %s", name)
		}
	}
}

// TestAlerts: the same of the alerts that the page proposes.
func TestAlerts(t *testing.T) {
	page, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`(?m)^ +expr: (.+)$`).FindAllStringSubmatch(string(page), -1)
	if len(alerts) == 0 {
		t.Fatal("the page has no alert")
	}
	for _, alert := range alerts {
		checkExpression(t, families(t), map[string]bool{}, alert[1])
	}
}

// walk calls f for every text in a document, with its key.
func walk(v any, f func(key, value string)) {
	switch v := v.(type) {
	case map[string]any:
		for key, inner := range v {
			if text, ok := inner.(string); ok {
				f(key, text)
			}
			walk(inner, f)
		}
	case []any:
		for _, inner := range v {
			walk(inner, f)
		}
	}
}

func checkExpression(t *testing.T, all map[string]*dto.MetricFamily, used map[string]bool, text string) {
	t.Helper()
	e, err := metricsql.Parse(strings.ReplaceAll(text, "$__rate_interval", "5m"))
	if err != nil {
		t.Errorf("%s: %v", text, err)
		return
	}
	metricsql.VisitAll(e, func(e metricsql.Expr) {
		switch e := e.(type) {
		case *metricsql.MetricExpr:
			checkSelector(t, all, used, text, e)
		case *metricsql.AggrFuncExpr:
			for _, by := range e.Modifier.Args {
				if !slices.Contains(labelsWithin(all, e), by) {
					t.Errorf("%s: nothing has a label %q", text, by)
				}
			}
		}
	})
}

func checkSelector(t *testing.T, all map[string]*dto.MetricFamily, used map[string]bool, text string, e *metricsql.MetricExpr) {
	t.Helper()
	family, have := find(all, nameOf(e))
	if family == nil {
		t.Errorf("%s: there is no metric %q", text, nameOf(e))
		return
	}
	used[family.GetName()] = true
	for _, filters := range e.LabelFilterss {
		for _, filter := range filters {
			if filter.Label != "__name__" && !slices.Contains(have, filter.Label) {
				t.Errorf("%s: %s has no label %q", text, family.GetName(), filter.Label)
			}
		}
	}
}

func nameOf(e *metricsql.MetricExpr) string {
	for _, filters := range e.LabelFilterss {
		for _, filter := range filters {
			if filter.Label == "__name__" {
				return filter.Value
			}
		}
	}
	return ""
}

// find is a metric by the name of one of its series, and the labels that those
// have: a scrape adds two.
func find(all map[string]*dto.MetricFamily, name string) (*dto.MetricFamily, []string) {
	if f := all[name]; f != nil && f.GetType() != dto.MetricType_HISTOGRAM {
		return f, append(labels(f), "job", "instance")
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		base, ok := strings.CutSuffix(name, suffix)
		if f := all[base]; ok && f != nil && f.GetType() == dto.MetricType_HISTOGRAM {
			have := append(labels(f), "job", "instance")
			if suffix == "_bucket" {
				have = append(have, "le")
			}
			return f, have
		}
	}
	return nil, nil
}

// labelsWithin are those of the metrics in an expression.
func labelsWithin(all map[string]*dto.MetricFamily, e metricsql.Expr) []string {
	var out []string
	metricsql.VisitAll(e, func(e metricsql.Expr) {
		if m, ok := e.(*metricsql.MetricExpr); ok {
			_, have := find(all, nameOf(m))
			out = append(out, have...)
		}
	})
	return out
}

// TestDashboardCheckBites: what is wrong in each way is found.
func TestDashboardCheckBites(t *testing.T) {
	all := families(t)
	for text, want := range map[string]bool{
		`sum by (code) (rate(kiln_gateway_requests_total{environment="a"}[5m]))`: true,
		`sum(rate(kiln_gateway_requests[5m]))`:                                   false,
		`sum(kiln_rollout_duration_seconds)`:                                     false,
		`sum(kiln_environments{environment="a"})`:                                false,
		`sum by (cod) (kiln_gateway_requests_total)`:                             false,
		`sum(kiln_environments`:                                                  false,
	} {
		inner := &testing.T{}
		checkExpression(inner, all, map[string]bool{}, text)
		if inner.Failed() == want {
			t.Errorf("%s is good: %v", text, !want)
		}
	}
}
