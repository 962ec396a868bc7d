package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/notify"
	"github.com/kilnproject/kiln/internal/tracing"
)

// secretFile is a file that only its owner may read.
func secretFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhereTracesGo(t *testing.T) {
	headers := secretFile(t, "X-Team: ops\n")
	file := config.Traces{Endpoint: "http://127.0.0.1:4318"}
	secret := config.Traces{Endpoint: file.Endpoint, HeadersFile: headers}
	for _, c := range []struct {
		name string
		file config.Traces
		env  map[string]string
		want tracing.Settings
	}{
		{"nothing said", config.Traces{}, nil, tracing.Settings{}},
		{"the file", file, nil, tracing.Settings{Endpoint: file.Endpoint}},
		{"with headers", secret, nil, tracing.Settings{Endpoint: file.Endpoint, Headers: map[string]string{"X-Team": "ops"}}},
		{"the environment wins", secret, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, tracing.Settings{Environment: true}},
		{"that of traces, too", config.Traces{}, map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c"}, tracing.Settings{Environment: true}},
		{"headers alone are nowhere", config.Traces{}, map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "a=b"}, tracing.Settings{}},
		{"disabled", file, map[string]string{"OTEL_SDK_DISABLED": "true"}, tracing.Settings{}},
		{"no exporter", file, map[string]string{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, tracing.Settings{}},
	} {
		got, err := traces(c.file, func(name string) string { return c.env[name] })
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", c.name, err, diff)
		}
	}
	if _, err := traces(config.Traces{Endpoint: "http://c", HeadersFile: headers + "x"}, noEnvironment); err == nil {
		t.Error("headers that are not there were taken")
	}
}

func TestReceiversHaveTheirKeys(t *testing.T) {
	key := secretFile(t, "whsec_MDEyMzQ1Njc4OWFiY2RlZg==\n")
	list := []config.Notify{
		{Name: "a", URL: "https://a", Events: []string{"*"}},
		{Name: "b", URL: "https://b", Events: []string{"release.*"}, Environments: []string{"production"}, SecretFile: key},
	}
	got, err := receivers(list)
	want := []notify.Receiver{
		{Name: "a", URL: "https://a", Events: []string{"*"}},
		{Name: "b", URL: "https://b", Events: []string{"release.*"}, Environments: []string{"production"}, Key: []byte("0123456789abcdef")},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(diff, err)
	}
	list[0].SecretFile = key + "x"
	if _, err := receivers(list); err == nil {
		t.Error("a key that is not there was taken")
	}
}

// TestURLsAreNotShown: their path or query may be a secret.
func TestURLsAreNotShown(t *testing.T) {
	for text, want := range map[string]string{"https://hooks.test/T0/secret?x=1": "https://hooks.test", "": "", "%": ""} {
		if got := place(text); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
	s := settings{}
	next := settings{file: config.Config{Notify: []config.Notify{{Name: "ops", URL: "https://hooks.test/secret", Events: []string{"*"}, Environments: []string{"production"}}}}}
	want := []string{"notify: [] -> [ops at https://hooks.test of * in production]"}
	if diff := cmp.Diff(want, s.changes(next)); diff != "" {
		t.Error(diff)
	}
}
