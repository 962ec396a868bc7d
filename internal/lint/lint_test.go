package lint_test

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/lint"
)

const (
	base = kiln.Digest("sha256:bb")
	own  = kiln.Digest("sha256:aa")
)

// lines writes findings for a comparison.
func lines(l *lint.Lint) []string {
	var out []string
	for _, f := range l.Findings() {
		out = append(out, strings.TrimSpace(f.ID+" "+f.Path+": "+f.Title))
	}
	return out
}

func begun() *lint.Lint {
	l := lint.New()
	l.Layer(base, false)
	l.Layer(own, true)
	return l
}

func TestTree(t *testing.T) {
	tree := fstest.MapFS{
		"base/su":                         {Mode: 0o4755 | fs.ModeSetuid},
		"usr/bin/su":                      {Mode: 0o755 | fs.ModeSetuid},
		"usr/bin/wall":                    {Mode: 0o755 | fs.ModeSetgid},
		"usr/bin/locked":                  {Mode: 0o644 | fs.ModeSetgid}, // mandatory locking, not a right
		"var/mail":                        {Mode: 0o775 | fs.ModeDir | fs.ModeSetgid},
		"usr/sbin/sshd":                   {Mode: 0o755},
		"opt/ssh/dropbear":                {Mode: 0o755},
		"etc/sshd":                        {Mode: 0o644},
		"bin/bash":                        {Mode: 0o755},
		"bin/sh":                          {Mode: 0o777 | fs.ModeSymlink, Data: []byte("bash")},
		"app/bash":                        {Mode: 0o755},
		"usr/bin/apt-get":                 {Mode: 0o755},
		"usr/local/bin/pip3.12":           {Mode: 0o755},
		"usr/bin/x86_64-linux-gnu-gcc-12": {Mode: 0o755},
		"usr/local/go/bin/go":             {Mode: 0o755},
		"usr/share/bash/bin/notes":        {Mode: 0o644},
		"tmp":                             {Mode: 0o777 | fs.ModeDir | fs.ModeSticky},
		"app/cache":                       {Mode: 0o777 | fs.ModeDir},
		"app/log":                         {Mode: 0o666},
	}
	l := begun()
	err := l.Tree(tree, func(at string) kiln.Digest {
		if strings.HasPrefix(at, "/base") || at == "/" {
			return base
		}
		return own
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"lint/compiler /usr/bin/x86_64-linux-gnu-gcc-12: a compiler",
		"lint/compiler /usr/local/go/bin/go: a compiler",
		"lint/package-manager /usr/bin/apt-get: a package manager",
		"lint/package-manager /usr/local/bin/pip3.12: a package manager",
		"lint/setuid /usr/bin/su: a set-user-id file",
		"lint/setuid /usr/bin/wall: a set-group-id file",
		"lint/shell /bin/bash: a shell",
		"lint/sshd /opt/ssh/dropbear: an SSH daemon",
		"lint/sshd /usr/sbin/sshd: an SSH daemon",
		"lint/world-writable /app/cache: a folder that everybody may write to, without the sticky bit",
		"lint/world-writable /app/log: a file that everybody may write to",
	}
	if diff := cmp.Diff(want, lines(l)); diff != "" {
		t.Error(diff)
	}
	for _, f := range l.Findings() {
		fails := f.ID == lint.SSHD || f.ID == lint.Secret
		if fails != (f.Severity.Rank() >= kiln.SeverityHigh.Rank()) || f.Change == "" || f.Layer != own || f.Kind != kiln.FindingLint {
			t.Errorf("got %+v", f)
		}
	}
}

// random returns so many characters of a set, the same every time.
func random(set string, n int) string {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = set[r.IntN(len(set))]
	}
	return string(b)
}

const (
	alnum = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	hex   = "0123456789abcdef"
)

func token(claims string) string {
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(`{"alg":"RS256","kid":"x"}`)) + "." + e.EncodeToString([]byte(claims)) + "." + random(alnum, 64)
}

// secrets are one of every kind; made here, so that none stands in this file.
func secrets() map[string]string {
	pem := "-----BEGIN %PRIVATE KEY-----\n" + random(alnum+"+/", 64) + "\n" + random(alnum+"+/", 63) + "\n-----END"
	return map[string]string{
		"RSA":        strings.Replace(pem, "%", "RSA ", 1),
		"PKCS8":      strings.Replace(pem, "%", "", 1),
		"OpenSSH":    strings.Replace(pem, "%", "OPENSSH ", 1),
		"CRLF":       strings.ReplaceAll(strings.Replace(pem, "%", "EC ", 1), "\n", "\r\n"),
		"encrypted":  strings.Replace(pem, "%PRIVATE KEY-----\n", "RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00FF\n\n", 1),
		"GCP":        `{"type": "service_account", "private_key": "` + strings.ReplaceAll(strings.Replace(pem, "%", "", 1), "\n", `\n`) + `"}`,
		"PGP":        "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: GnuPG v2\n\n" + random(alnum, 64),
		"age":        "AGE-SECRET-KEY-1" + random("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58),
		"AWS id":     "key: AKIA" + random("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16) + "\n",
		"AWS temp":   "ASIA" + random("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16),
		"AWS":        "[default]\naws_secret_access_key = " + random(alnum+"+/", 40) + "\n",
		"AWS env":    "export AWS_SECRET_ACCESS_KEY='" + random(alnum, 40) + "'",
		"AWS JSON":   `{"SecretAccessKey": "` + random(alnum, 40) + `"}`,
		"Google":     "AIza" + random(alnum, 35),
		"Azure":      "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=" + random(alnum, 86) + "==;",
		"Azure AD":   "AZURE_CLIENT_SECRET=" + random(alnum+"~", 40),
		"GitHub":     `"\nghp_` + random(alnum, 36) + `"`,
		"GitHub app": "ghs_" + random(alnum, 36),
		"GitHub PAT": "github_pat_" + random(alnum, 22) + "_" + random(alnum, 59),
		"GitLab":     "glpat-" + random(alnum, 20),
		"Slack":      "xoxb-" + random("0123456789", 12) + "-" + random("0123456789", 12) + "-" + random(alnum, 24),
		"Slack hook": "https://hooks.slack.com/services/T" + random("ABCDEFGH0123", 8) + "/B" + random("ABCDEFGH0123", 8) + "/" + random(alnum, 24),
		"Stripe":     "sk_live_" + random(alnum, 24),
		"npm":        "npm_" + random(alnum, 36),
		".npmrc":     "//registry.example/:_authToken=" + random(hex, 36),
		"PyPI":       "pypi-AgEIcHlwaS5vcmc" + random(alnum, 80),
		"Docker Hub": "dckr_pat_" + random(alnum, 27),
		"Vault":      "hvs." + random(alnum, 95),
		"Kubernetes": token(`{"iss":"kubernetes/serviceaccount","sub":"x"}`),
		"PuTTY":      "PuTTY-User-Key-File-3: ssh-ed25519\r\nEncryption: none\r\n",
		"OAuth":      "GOCSPX-" + random(alnum, 28),
		"Azure SAS":  "Endpoint=sb://x;SharedAccessKey=" + random(alnum, 43) + "=",
		"Slack app":  "xapp-1-" + random("ABCDEFGH0123", 11) + "-" + random("0123456789", 13) + "-" + random(hex, 64),
		"webhook":    "whsec_" + random(alnum, 32),
		"ocean":      "dop_v1_" + random(hex, 64),
		"Shopify":    "shpat_" + random(hex, 32),
		"Anthropic":  "sk-ant-" + "api03-" + random(alnum, 95),
		"OpenAI":     "sk-proj-" + random(alnum, 60),
	}
}

func entry(t *testing.T, l *lint.Lint, name, content string) {
	t.Helper()
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(content)), Mode: 0o644}
	if err := l.Entry(h, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// TestSecrets finds every kind wherever in a file it stands, and never says
// what it is.
func TestSecrets(t *testing.T) {
	noise := make([]byte, 1<<20)
	r := rand.NewChaCha8([32]byte{1})
	if _, err := io.ReadFull(r, noise); err != nil {
		t.Fatal(err)
	}
	for name, secret := range secrets() {
		for _, at := range []int{0, 1, 100, 256<<10 - 4096 - 1, 256<<10 - 4096, 256<<10 - 4096 + 1, 256<<10 - 20, 256<<10 - 1, 256 << 10, 700_000} {
			l := begun()
			entry(t, l, "app/"+name, string(noise[:at])+"\n"+secret+"\n"+string(noise[at:at+5000]))
			found := l.Findings()
			if len(found) == 0 {
				t.Errorf("%s at %d is not found", name, at)
				continue
			}
			for _, f := range found {
				if f.ID != lint.Secret || f.Path != "/app/"+name || f.Layer != own || strings.Contains(f.Title, secret[len(secret)-8:]) {
					t.Errorf("%s: got %+v", name, f)
				}
			}
		}
		l := begun()
		h := &tar.Header{Name: "slow", Typeflag: tar.TypeReg, Size: int64(len(secret))}
		if err := l.Entry(h, iotest.OneByteReader(strings.NewReader(secret))); err != nil || len(l.Findings()) == 0 {
			t.Errorf("%s byte by byte: %v, %v", name, l.Findings(), err)
		}
		l = lint.New()
		l.Layer(base, false)
		entry(t, l, "app/"+name, secret)
		if len(l.Findings()) > 0 {
			t.Errorf("%s of the base is found", name)
		}
	}
}

// TestEveryKind has an example of each.
func TestEveryKind(t *testing.T) {
	l := begun()
	for name, secret := range secrets() {
		entry(t, l, "app/"+name, secret)
	}
	titles := map[string]bool{}
	for _, f := range l.Findings() {
		titles[f.Title] = true
	}
	contents, _ := lint.Kinds()
	for _, kind := range contents {
		if !titles[kind] {
			t.Errorf("no example is %s", kind)
		}
	}
}

// TestHuge says that neither contents nor files are without end.
func TestHuge(t *testing.T) {
	l := begun()
	l.Bound(10, 3)
	for i, size := range []int{10, 1} {
		h := &tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: int64(size)}
		err := l.Entry(h, strings.NewReader(strings.Repeat("x", size)))
		if (err != nil) != (i == 1) {
			t.Errorf("%d bytes more: %v", size, err)
		}
	}
	nowhere := func(string) kiln.Digest { return "" }
	if err := l.Tree(fstest.MapFS{"a": {}, "b": {}}, nowhere); err != nil {
		t.Error(err)
	}
	if err := l.Tree(fstest.MapFS{"a": {}, "b": {}, "c": {}}, nowhere); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

// TestNoSecrets are texts that look like one.
func TestNoSecrets(t *testing.T) {
	s := secrets()
	for name, content := range map[string]string{
		"usr/share/doc/x/key.pem":                       s["RSA"],
		"usr/lib/python3.12/test/certdata/keycert.pem":  s["RSA"],
		"usr/local/go/src/crypto/tls/testdata/key.pem":  s["RSA"],
		"usr/local/go/src/crypto/tls/tls_test.go":       s["RSA"],
		"app/node_modules/x/test/fixtures/key.pem":      s["RSA"],
		"etc/ssl/private/ssl-cert-snakeoil.key":         s["PKCS8"],
		"usr/lib/x86_64-linux-gnu/libgnutls.so.30.34.3": s["PKCS8"],
		"usr/lib/libcrypto.so":                          "-----BEGIN RSA PRIVATE KEY-----\x00-----BEGIN PRIVATE KEY-----\x00ENCRYPTED",
		"usr/bin/ssh-keygen":                            "-----BEGIN OPENSSH PRIVATE KEY-----\n\x00-----END OPENSSH PRIVATE KEY-----\n",
		"etc/ssl/certs/ca.pem":                          "-----BEGIN CERTIFICATE-----\n" + random(alnum, 64),
		"etc/public.pem":                                "-----BEGIN PUBLIC KEY-----\n" + random(alnum, 64),
		"manual":                                        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\nAKIAIOSFODNN7EXAMPLE",
		"placeholder":                                   "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx npm_XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
		"one letter":                                    "ghp_" + strings.Repeat("a", 36),
		"a digest behind the name":                      "aws_secret_access_key_sha: " + random(hex, 40),
		"a variable":                                    "//registry.example/:_authToken=${NPM_TOKEN}\n",
		"any token":                                     token(`{"sub":"1234567890","name":"John Doe"}`),
		"within a word":                                 "XAKIA" + random("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16),
		"longer":                                        "AKIA" + random("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 17),
		"test key of Stripe":                            "sk_test_" + random(alnum, 24),
		"home/a/.docker/config.json":                    `{"auths": {"r.example": {}}, "credsStore": "pass"}`,
		"home/a/.netrc":                                 "machine r.example login a\n",
		"etc/shadow":                                    "root:*:19000:0:99999:7:::\nbin:!:1::\n",
		"app/machine.txt":                               "machine r.example login a password geheim\n",
	} {
		l := begun()
		entry(t, l, name, content)
		if got := lines(l); len(got) > 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestNamedFiles are secrets that a file's name tells.
func TestNamedFiles(t *testing.T) {
	found := map[string]bool{}
	for name, content := range map[string]string{
		"root/.netrc":              "machine r.example login a password geheim\n",
		"home/a/_netrc":            "default\n login a\n password geheim\n",
		"root/.docker/config.json": `{"auths": {"a.example": {}, "r.example": {"auth": "dXNlcjpnZWhlaW0="}}}`,
		"app/.dockerconfigjson":    `{"auths":{"r.example":{"username":"u","password":"geheim"}}}`,
		"root/.pgpass":             "# mine\n*:5432:db:user:geheim\n",
		"root/.git-credentials":    "https://user:geheim@git.example\n",
		"root/.pypirc":             "[pypi]\nusername = a\npassword = geheim\n",
		"etc/shadow":               "root:$y$j9T$" + random(alnum, 22) + "$" + random(alnum, 43) + ":19000:0:99999:7:::\n",
	} {
		l := begun()
		entry(t, l, name, content)
		if len(l.Findings()) != 1 {
			t.Errorf("%s: %v", name, lines(l))
			continue
		}
		found[l.Findings()[0].Title] = true
	}
	_, files := lint.Kinds()
	for _, kind := range files {
		if !found[kind] {
			t.Errorf("no example is %s", kind)
		}
	}
}

// TestDeleted finds what a later layer deletes, in the layer that has it.
func TestDeleted(t *testing.T) {
	l := lint.New()
	l.Layer(own, true)
	entry(t, l, "./root/.ssh/id", secrets()["OpenSSH"])
	l.Layer("sha256:cc", true)
	entry(t, l, "root/.ssh/.wh.id", "")
	if err := l.Tree(fstest.MapFS{}, func(string) kiln.Digest { return own }); err != nil {
		t.Fatal(err)
	}
	f := l.Findings()
	if len(f) != 1 || f[0].Layer != own || f[0].Path != "/root/.ssh/id" {
		t.Errorf("got %v", f)
	}
}

func TestConfig(t *testing.T) {
	s := secrets()
	of := v1.Image{
		Config:  v1.ImageConfig{Env: []string{"PATH=/bin", "BASE_TOKEN=of-the-base"}, Labels: map[string]string{"old": s["npm"]}},
		History: []v1.History{{CreatedBy: "RUN old " + s["GitHub"]}},
	}
	config := v1.Image{
		Config: v1.ImageConfig{
			Env: []string{
				"PATH=/bin", "BASE_TOKEN=of-the-base", "GH=" + strings.TrimPrefix(s["GitHub app"], `"\n`), "DB_PASSWORD=geheim7", "PASSWORD_FILE=/run/secrets/p",
				"API_TOKEN=/run/secrets/t", "GPG_KEY=" + random(hex, 40), "SECRET=true", "URL=postgres://u:geheim@db/x", "HOME_URL=https://example.com/@a:b", "AUTH_TOKEN=your-token-here",
			},
			Labels:     map[string]string{"old": s["npm"], "new": s["Stripe"]},
			Entrypoint: []string{"/app", "--token=" + s["GitLab"]},
		},
		History: []v1.History{{CreatedBy: "RUN old " + s["GitHub"]}, {CreatedBy: "RUN |1 K=" + s["AWS id"] + " /bin/sh"}, {Comment: s["Slack"]}},
	}
	l := begun()
	l.Config(config, of)
	want := []string{
		"lint/secret : a GitHub token in the variable GH",
		"lint/secret : a GitLab token in the command",
		"lint/secret : a Slack token in the history",
		"lint/secret : a Stripe key in the label new",
		"lint/secret : a password in the variable URL",
		"lint/secret : an AWS access key in the history",
		"lint/secret : what its name calls one in the variable DB_PASSWORD",
	}
	if diff := cmp.Diff(want, lines(l)); diff != "" {
		t.Error(diff)
	}
}

func TestReferences(t *testing.T) {
	l := begun()
	l.References([]string{"r.example/a:1", "r.example/b:1", "r.example/c@sha256:" + strings.Repeat("0", 64)},
		kiln.Lock{References: []kiln.LockedReference{{Reference: "r.example/b:1", Index: "sha256:x"}, {Reference: "r.example/a:2", Index: "sha256:x"}}})
	if diff := cmp.Diff([]string{"lint/mutable-base : r.example/a:1 is a tag that no lock pins"}, lines(l)); diff != "" {
		t.Error(diff)
	}
}

func TestService(t *testing.T) {
	tree := fstest.MapFS{
		"usr/bin/app":    {Mode: 0o755},
		"usr/bin/notes":  {Mode: 0o644},
		"usr/bin/folder": {Mode: 0o755 | fs.ModeDir},
		"bin":            {Mode: 0o777 | fs.ModeSymlink, Data: []byte("usr/bin")},
		"srv/run":        {Mode: 0o777 | fs.ModeSymlink, Data: []byte("../usr/bin/app")},
		"srv/gone":       {Mode: 0o777 | fs.ModeSymlink, Data: []byte("/usr/bin/gone")},
		"srv/loop":       {Mode: 0o777 | fs.ModeSymlink, Data: []byte("loop")},
	}
	config := v1.Image{Config: v1.ImageConfig{Entrypoint: []string{"app"}, WorkingDir: "/srv", Env: []string{"PATH=/usr/bin"}}}
	http := []kiln.Port{{Name: "http", Number: 80}}
	verify := func(image string, command ...string) kiln.Service {
		return kiln.Service{Name: "web", Ports: http, Rollout: kiln.Strategy{Verify: []kiln.Verify{{Name: "v", Image: image, Command: command}}}}
	}
	starts := func(c kiln.Config) kiln.Service { return kiln.Service{Name: "web", Ports: http, Config: c} }
	for name, c := range map[string]struct {
		service kiln.Service
		want    string
	}{
		"there":                 {starts(kiln.Config{}), ""},
		"by a link to a folder": {starts(kiln.Config{Entrypoint: []string{"/bin/app"}}), ""},
		"by a link":             {starts(kiln.Config{Entrypoint: []string{"./run"}}), ""},
		"a link to nothing":     {starts(kiln.Config{Entrypoint: []string{"./gone"}}), "service web starts ./gone, which the image has not"},
		"a link to itself":      {starts(kiln.Config{Entrypoint: []string{"./loop"}}), ""},
		"gone":                  {starts(kiln.Config{Entrypoint: []string{"/usr/bin/gone"}}), "service web starts /usr/bin/gone, which the image has not"},
		"not on the path":       {starts(kiln.Config{Env: map[string]string{"PATH": "/sbin"}}), "service web starts app, which the image has not"},
		"not to be run":         {starts(kiln.Config{Entrypoint: []string{"/usr/bin/notes"}}), "service web starts /usr/bin/notes, which the image has not"},
		"a folder":              {starts(kiln.Config{Entrypoint: []string{"/usr/bin/folder"}}), "service web starts /usr/bin/folder, which the image has not"},
		"in a tmpfs":            {starts(kiln.Config{Entrypoint: []string{"/tmp/x"}, Writable: []kiln.Writable{{Path: "/tmp"}}}), ""},
		"a port that is none":   {starts(kiln.Config{Ready: kiln.Probe{HTTP: "/", Port: "admin"}}), "service web is asked on port admin, which it has not"},
		"a worker over http":    {kiln.Service{Name: "web", Config: kiln.Config{Ready: kiln.Probe{HTTP: "/"}}}, "service web is asked over the network and has no port"},
		"a check":               {verify("", "curl", "x"), "check v of service web runs curl, which the image has not"},
		"a check that is there": {verify("web", "app"), ""},
		"a check elsewhere":     {verify("tools", "curl"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := begun()
			l.Service(c.service, "web", config, tree)
			var want []string
			if c.want != "" {
				want = []string{"lint/probe : " + c.want}
			}
			if diff := cmp.Diff(want, lines(l)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestBounds says that there is an end to what is listed, and that what is not
// listed cannot be allowed by a path.
func TestBounds(t *testing.T) {
	l := begun()
	tree := fstest.MapFS{}
	for i := range 150 {
		tree["d"+strings.Repeat("x", i)] = &fstest.MapFile{Mode: 0o666}
	}
	if err := l.Tree(tree, func(string) kiln.Digest { return own }); err != nil {
		t.Fatal(err)
	}
	f := l.Findings()
	if len(f) != 101 || f[0].Path != "" || f[0].Title != "and 50 more of the kind" {
		t.Errorf("got %d, %+v", len(f), f[0])
	}
	entry(t, l, "../../a\x1b[2J"+strings.Repeat("b", 10_000), secrets()["npm"])
	for _, f := range l.Findings() {
		if len(f.Path) > 4200 || strings.ContainsRune(f.Path, 0x1b) || strings.Contains(f.Path, "..") {
			t.Errorf("path %.20q of %d bytes", f.Path, len(f.Path))
		}
	}
}

func TestBrokenContent(t *testing.T) {
	h := &tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 9}
	if err := begun().Entry(h, iotest.ErrReader(io.ErrClosedPipe)); err == nil || !strings.Contains(err.Error(), "read /a") {
		t.Errorf("got %v", err)
	}
}

func TestRulesAreWhole(t *testing.T) {
	ids := []string{}
	for _, r := range lint.Rules() {
		ids = append(ids, r.ID)
		if r.Severity.Rank() <= 0 || !strings.HasSuffix(r.Why, ".") || r.Change == "" || strings.HasSuffix(r.Change, ".") {
			t.Errorf("rule %+v", r)
		}
	}
	if !slices.IsSorted(ids) {
		t.Errorf("not sorted: %v", ids)
	}
}

// TestPage keeps the table of the reference equal to the rules.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/lint.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	want.WriteString("| rule | severity | by default | why | what to change |\n|---|---|---|---|---|\n")
	for _, r := range lint.Rules() {
		effect := "warns"
		if r.Severity.Rank() >= kiln.SeverityHigh.Rank() {
			effect = "fails"
		}
		want.WriteString("| `" + r.ID + "` | " + string(r.Severity) + " | " + effect + " | " + r.Why + " | " + r.Change + " |\n")
	}
	if !strings.Contains(string(page), want.String()) {
		t.Errorf("docs/reference/lint.md has not this table:\n%s", want.String())
	}
}

func FuzzSecrets(f *testing.F) {
	for _, s := range secrets() {
		f.Add([]byte(s), uint16(0))
	}
	f.Fuzz(func(t *testing.T, content []byte, at uint16) {
		long := append(bytes.Repeat([]byte{'\n'}, 256<<10-int(at)), content...)
		one, two := begun(), begun()
		entry(t, one, ".netrc", string(content))
		entry(t, two, "a", string(long))
		_ = two.Findings()
		for _, f := range one.Findings() {
			if f.Title == "" || f.Path == "" {
				t.Errorf("got %+v", f)
			}
		}
	})
}

// BenchmarkEntry reads this test's own executable.
func BenchmarkEntry(b *testing.B) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(self)))
	h := &tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: int64(len(self))}
	for b.Loop() {
		if err := begun().Entry(h, bytes.NewReader(self)); err != nil {
			b.Fatal(err)
		}
	}
}
