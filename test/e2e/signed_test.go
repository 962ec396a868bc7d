package e2e

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/kilnproject/kiln/test/rig"
)

// pulled is a definition whose image comes from a registry.
func pulled(ref, version, gate string) string {
	text := strings.Replace(one(version, 1, ""), `dockerfile { context = "app" }`, fmt.Sprintf("reference = %q", ref), 1)
	return strings.Replace(text, `gate { no_database = "warn" }`, "gate {\n  no_database = \"warn\"\n"+gate+"\n}", 1)
}

// metric is the line of a metric of a control plane, by its beginning.
func metric(address, begins string) (string, error) {
	answer, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if strings.HasPrefix(line, begins) {
			return line, nil
		}
	}
	return "", nil
}

// TestAGateAsksWhoSignedAnImage: one Kiln builds and signs, another one runs what
// that one signed, and nothing else.
func TestAGateAsksWhoSignedAnImage(t *testing.T) {
	builder, r := newRig(t), newRig(t)
	server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/team/app:v1"
	builder.Write("kiln.hcl", one("v1", 1, ""))
	up(builder)
	builder.Kiln("push", "app", ref)

	keys := t.TempDir()
	write := func(name string, texts ...string) string {
		path := filepath.Join(keys, name)
		if err := os.WriteFile(path, []byte(strings.Join(texts, "")), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	theirs, mine := builder.Kiln("key", "show", "--pem"), r.Kiln("key", "show", "--pem")
	builder.Kiln("key", "rotate", "--yes")
	later := builder.Kiln("key", "show", "--pem")
	metrics := free(t)
	trust := func(path string) {
		t.Helper()
		text := fmt.Sprintf("listen {\n  metrics = [%q]\n}\n", metrics)
		if path != "" {
			text += fmt.Sprintf("signing {\n  trust \"ci\" {\n    key = %q\n  }\n}\n", path)
		}
		configure(t, r, text)
		r.Kiln("reload")
	}
	signed := func(version string) string { return pulled(ref, version, `  signed_by = ["ci"]`) }

	trust("")
	r.Write("kiln.hcl", signed("v1"))
	said, code := r.Refused("up")
	if code != 6 {
		t.Errorf("up without a key exits %d", code)
	}
	wantAll(t, "up without a key", said, "by ci, of whom no key is known here", `trust "ci"`)
	trust(write("later.pub", later))
	said, _ = r.Refused("up")
	wantAll(t, "up of what another key signed", said, "not signed by ci", "cosign sign --key")
	if got := instances(r); len(got) > 0 {
		t.Errorf("what does not pass runs: %v", ids(got))
	}
	configure(t, r, fmt.Sprintf("signing {\n  trust \"ci\" {\n    key = %q\n  }\n}\n", write("mine.pub", mine)))
	if said, _ = r.Refused("reload"); !strings.Contains(said, "is a key of this control plane itself") {
		t.Errorf("its own key as somebody else's: %s", said)
	}

	trust(write("both.pub", later, theirs))
	got := up(r)
	if v := got.Verdicts["app"]; got.Release.Number != 1 || !slices.Equal(v.SignedBy, []string{"ci"}) {
		t.Fatalf("%+v", got.Verdicts)
	}
	if _, _, body := r.Get("web.test", "/"); body != "v1" {
		t.Errorf("GET: %q", body)
	}
	// What was kept counts, also when the registry is away.
	server.Close()
	r.Write("kiln.hcl", signed("v2"))
	up(r)
	wantAll(t, "scan", r.Kiln("scan", "default"), "pass")
	judged := func(outcome string, n int) {
		t.Helper()
		r.Eventually(rig.Longest, "it is judged "+outcome, func() error {
			line, err := metric(metrics, `kiln_services_judged{environment="default",outcome="`+outcome+`"}`)
			if err == nil && !strings.HasSuffix(line, fmt.Sprintf("} %d", n)) {
				err = fmt.Errorf("it says %q", line)
			}
			return err
		})
	}
	judged("pass", 1)

	// A key that does not count any more: what runs goes on, and nothing new comes.
	trust(write("later.pub", later))
	judged("fail", 1)
	r.Write("kiln.hcl", signed("v3"))
	said, _ = r.Refused("up")
	wantAll(t, "up while the registry is away", said, "could not be told whether the image is signed by ci", "try again when the registry answers")
	before := instances(r)
	if err := syscall.Kill(before[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.Eventually(rig.Longest, "it is replaced", func() error {
		for _, i := range instances(r) {
			if !slices.Contains(ids(before), i.ID) && i.State == "ready" {
				return nil
			}
		}
		return fmt.Errorf("there are %v", ids(instances(r)))
	})
	if _, _, body := r.Get("web.test", "/"); body != "v2" {
		t.Errorf("GET: %q", body)
	}
}
