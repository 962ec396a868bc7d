package bake_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake"
)

// file reads one file out of an image's layers, the uppermost first.
func (s *shop) file(manifest kiln.Digest, name string) (string, *tar.Header) {
	s.t.Helper()
	m, err := s.store.Manifest(s.t.Context(), manifest)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := len(m.Layers) - 1; i >= 0; i-- {
		f, err := s.store.Open(kiln.Digest(m.Layers[i].Digest))
		if err != nil {
			s.t.Fatal(err)
		}
		content, h := find(s.t, f, name)
		if err := f.Close(); err != nil {
			s.t.Fatal(err)
		}
		if h != nil {
			return content, h
		}
	}
	return "", nil
}

func find(t *testing.T, f io.Reader, name string) (string, *tar.Header) {
	t.Helper()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return "", nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.Trim(strings.TrimPrefix(h.Name, "./"), "/") == name {
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return string(b), h
		}
	}
}

const features = `# syntax=docker/dockerfile:1
ARG FLAVOUR=plain
FROM base AS build
ARG FLAVOUR
ENV GREETING="hello $FLAVOUR"
RUN --mount=type=cache,target=/cache echo "$GREETING" > /cache/out && cp /cache/out /out
RUN <<EOF
set -e
echo heredoc > /heredoc
EOF
COPY <<inline.txt /inline.txt
written here
inline.txt

FROM scratch AS data
COPY data/ /data/

FROM base
COPY --from=build /out /heredoc /inline.txt /
COPY --from=data /data /data
COPY --from=base /etc/debian_version /copied
COPY tool.sh /usr/local/bin/tool
RUN tool > /tool.out && stat -c '%u:%g %Y' /data/kept > /stat
USER nobody
HEALTHCHECK CMD tool
CMD ["tool"]
`

func TestDockerfileFeatures(t *testing.T) {
	needRoot(t)
	s := seeded(t)
	req := s.request(map[string]string{
		"web/Dockerfile":    features,
		"web/.dockerignore": "data/secret\n",
		"web/data/kept":     "kept\n",
		"web/data/link@":    "kept",
		"web/data/secret":   "secret\n",
		"web/tool.sh":       "#!/bin/sh\necho tool\n",
	})
	req.Images[1].Dockerfile.Args = map[string]string{"FLAVOUR": "salt"}
	web := s.mustBake(req).Images["web"]
	for name, want := range map[string]string{
		"out": "hello salt\n", "heredoc": "heredoc\n", "inline.txt": "written here\n",
		"tool.out": "tool\n", "data/kept": "kept\n", "stat": "0:0 946684800\n",
	} {
		got, h := s.file(web.Manifest, name)
		if h == nil || got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		} else if h.ModTime.Unix() > bake.Epoch {
			t.Errorf("%s is of %v, after the epoch", name, h.ModTime)
		}
	}
	if _, h := s.file(web.Manifest, "data/secret"); h != nil {
		t.Error("an ignored file is in the image")
	}
	if _, h := s.file(web.Manifest, "data/link"); h == nil || h.Linkname != "kept" {
		t.Errorf("link = %+v", h)
	}
	config, err := s.store.Config(t.Context(), web.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "nobody" || config.Created.Unix() != bake.Epoch {
		t.Errorf("config: user %q, created %v", config.Config.User, config.Created)
	}
	m, err := s.store.Manifest(t.Context(), web.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := s.store.Document(t.Context(), kiln.Digest(m.Config.Digest))
	if err != nil || !strings.Contains(string(raw), `"Healthcheck"`) {
		t.Errorf("the health check is lost: %s %v", raw, err)
	}
}

// TestSameDigestCold bakes in two stores without any cache in common.
func TestSameDigestCold(t *testing.T) {
	needRoot(t)
	files := map[string]string{
		"web/Dockerfile": "FROM base\nCOPY a /srv/a\nRUN mkdir -p /var/x && echo made > /var/x/y\n",
		"web/a":          "a\n",
	}
	a, b := seeded(t), seeded(t)
	one, two := a.mustBake(a.request(files)).Images["web"], b.mustBake(b.request(files)).Images["web"]
	if one.Cached || two.Cached {
		t.Fatal("a cache was used")
	}
	if one.Manifest != two.Manifest {
		t.Fatalf("the same inputs gave %s and %s", one.Manifest, two.Manifest)
	}
}

func TestKnownInputsSkipBuildKit(t *testing.T) {
	needRoot(t)
	s := seeded(t)
	files := map[string]string{"web/Dockerfile": "FROM base\nCOPY . /srv\n", "web/server.js": "1\n", "web/other": "1\n"}
	first := s.mustBake(s.request(files)).Images["web"]
	again := s.mustBake(s.request(files)).Images["web"]
	if !again.Cached || again.Manifest != first.Manifest {
		t.Fatalf("the second bake was not known: %+v", again)
	}
	files["web/server.js"] = "2\n" // of the same size: only the content tells
	_, reasons, err := s.baker.Lookup(t.Context(), s.request(files))
	if err != nil || reasons["web"] != "web/server.js changed" {
		t.Fatalf("reason %q, %v", reasons["web"], err)
	}
	start := time.Now()
	third := s.mustBake(s.request(files)).Images["web"]
	took := time.Since(start)
	if got, _ := s.file(third.Manifest, "srv/server.js"); got != "2\n" || third.Manifest == first.Manifest {
		t.Fatalf("the changed file is %q", got)
	}
	t.Logf("a changed line in a COPY source: baked in %v", took)
	if n, err := s.baker.Usage(t.Context()); err != nil || n < 10<<20 {
		t.Errorf("usage is %d, %v", n, err)
	}
	if err := s.baker.Prune(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

func TestFailedRun(t *testing.T) {
	needRoot(t)
	s := seeded(t)
	for name, c := range map[string]struct{ run, message, evidence string }{
		"exit":   {"for i in $(seq 1 40); do echo line $i; done; exit 7", "exit code 7", "line 40"},
		"killed": {"sh -c 'kill -9 $$'; exit $?", "killed by SIGKILL", ""},
		"flood":  {"timeout 2 yes; echo last words; exit 3", "exit code 3", ""},
		"absent": {"nonesuch", "exit code 127", "nonesuch"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.bake(s.request(map[string]string{"web/Dockerfile": "FROM base\nRUN " + c.run + "\n"}))
			var known *kiln.Error
			if !errors.As(err, &known) {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(known.Message, c.message) || known.Hint == "" {
				t.Errorf("message %q, hint %q", known.Message, known.Hint)
			}
			if len(known.Evidence) > 20 || !strings.Contains(strings.Join(known.Evidence, "\n"), c.evidence) {
				t.Errorf("evidence %q", known.Evidence)
			}
			if len(known.Diagnostics) != 1 || known.Diagnostics[0].Line != 2 || !strings.HasPrefix(known.Diagnostics[0].Snippet, "RUN ") {
				t.Errorf("diagnostics %+v", known.Diagnostics)
			}
		})
	}
}

func TestDeniedSources(t *testing.T) {
	needRoot(t)
	s := seeded(t)
	for name, c := range map[string]struct {
		add      string
		hermetic bool
		want     string
	}{
		"loopback": {"ADD http://127.0.0.1:1/x /x", false, "private address"},
		"metadata": {"ADD http://169.254.169.254/latest /x", false, "private address"},
		"git":      {"ADD https://example.com/x.git /x", false, "Git"},
		"hermetic": {"ADD https://example.com/x /x", true, "hermetic"},
	} {
		t.Run(name, func(t *testing.T) {
			req := s.request(map[string]string{"web/Dockerfile": "FROM base\n" + c.add + "\n"})
			req.Images[1].Hermetic = c.hermetic
			_, err := s.bake(req)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestADamagedBaseIsRemovedAndMadeAnew: BuildKit copies bases once, so it is
// found with a cold cache only.
func TestADamagedBaseIsRemovedAndMadeAnew(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s := openShop(t, dir)
	base := kiln.Image{Name: "base", Platform: platform, Dockerfile: &kiln.Dockerfile{Context: "base", File: "Dockerfile"}}
	request := func(line string) kiln.BakeRequest {
		return kiln.BakeRequest{Images: []kiln.Image{base, dockerfile(map[string]string{"base": "base"})}, Tree: s.tree(map[string]string{
			"base/Dockerfile": "FROM scratch\nCOPY data /data\n", "base/data": strings.Repeat("data", 1000),
			"web/Dockerfile": "FROM base\nCOPY --from=base /data /" + line + "\n",
		})}
	}
	before := s.mustBake(request("one")).Images["base"]
	if err := s.baker.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "bake", "buildkit")); err != nil {
		t.Fatal(err)
	}
	m, err := s.store.Manifest(t.Context(), before.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	layer := kiln.Digest(m.Layers[0].Digest)
	blob := filepath.Join(s.store.Dir(), "blobs", "sha256", layer.Hex())
	if err := os.Remove(blob); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(blob, make([]byte, m.Layers[0].Size), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openShop(t, dir)
	var known *kiln.Error
	if _, err := s.bake(request("two")); !errors.As(err, &known) || !strings.Contains(known.Message, "a base is damaged") || known.Hint == "" {
		t.Fatalf("baked on a damaged base: %v", err)
	}
	after := s.mustBake(request("two"))
	if got := after.Images["base"]; got.Cached || got.Manifest != before.Manifest {
		t.Errorf("the base: %+v, was %+v", got, before)
	}
	if err := s.store.Verify(t.Context(), layer); err != nil {
		t.Error(err)
	}
}

func TestCancel(t *testing.T) {
	needRoot(t)
	s := seeded(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req := s.request(map[string]string{"web/Dockerfile": "FROM base\nRUN echo begun; sleep 1000\n"})
	req.Progress = func(p kiln.Progress) {
		if p.Message == "begun" {
			cancel()
		}
	}
	start := time.Now()
	_, err := s.baker.Bake(ctx, req)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	t.Logf("ended after %v", time.Since(start))
}

// TestSweepAfterKill kills a baker in the middle of a RUN and opens its
// folder again.
func TestSweepAfterKill(t *testing.T) {
	needRoot(t)
	if dir := os.Getenv("KILN_TEST_BAKE_CHILD"); dir != "" {
		child(t, dir)
		return
	}
	dir := t.TempDir()
	link(t, goldenDir(t), dir)
	lock, err := json.Marshal(golden.lock)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSweepAfterKill$")
	cmd.Env = append(os.Environ(), "KILN_TEST_BAKE_CHILD="+dir, "KILN_TEST_BAKE_LOCK="+string(lock))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), "BEGUN") {
		n, err := out.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("the child ended: %s", seen.String())
		}
	}
	if _, err := bake.New(t.Context(), bake.Options{Dir: filepath.Join(dir, "bake")}); !errors.Is(err, kiln.ErrConflict) {
		t.Errorf("a second baker on the folder: %v, want a conflict", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	tag := kiln.DigestOf([]byte(filepath.Join(dir, "bake"))).Hex()[:6]
	checkLimit(t, tag)
	if left := leftovers(t, dir, tag); left == "" {
		t.Fatal("the kill left nothing: the test tests nothing")
	}
	s := openShop(t, dir)
	if left := leftovers(t, dir, tag); left != "" {
		t.Fatalf("after the sweep there is still:\n%s", left)
	}
	s.mustBake(s.request(map[string]string{"web/Dockerfile": "FROM base\nRUN true\n"}))
}

// checkLimit looks for the bound on processes, where the machine counts them.
func checkLimit(t *testing.T, tag string) {
	t.Helper()
	for _, group := range []string{"/sys/fs/cgroup/pids/kiln-bake-" + tag, "/sys/fs/cgroup/kiln-bake-" + tag} {
		b, err := os.ReadFile(filepath.Join(group, "pids.max"))
		if err == nil && strings.TrimSpace(string(b)) != "16384" {
			t.Errorf("%s: pids.max is %s", group, b)
		}
	}
}

func child(t *testing.T, dir string) {
	t.Helper()
	if err := json.Unmarshal([]byte(os.Getenv("KILN_TEST_BAKE_LOCK")), &golden.lock); err != nil {
		t.Fatal(err)
	}
	s := openShop(t, dir)
	req := s.request(map[string]string{"web/Dockerfile": "FROM base\nRUN echo BE''GUN; sleep 98765\n"})
	req.Progress = func(p kiln.Progress) {
		if p.Message == "BEGUN" {
			_, _ = os.Stdout.WriteString("BEGUN\n")
		}
	}
	_, err := s.baker.Bake(t.Context(), req)
	t.Fatal(err)
}

const leftoversScript = `
grep -F "$1/" /proc/self/mountinfo
find /sys/fs/cgroup -maxdepth 2 -name "kiln-bake-$2"
ip -o link | grep "kb$2"
nft list tables | grep "kiln_bake_$2"
true`

// leftovers lists what a bake of the tag has on the machine.
func leftovers(t *testing.T, dir, tag string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", "-c", leftoversScript, "sh", dir, tag).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
