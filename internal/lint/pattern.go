package lint

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math"
	"regexp"
	"slices"
	"strings"
)

// secretRule finds one kind of secret: a fixed text that costs nothing to look
// for, and what must follow it.
type secretRule struct {
	what  string   // "a GitHub token"
	texts []string // of at least minText bytes; one of them begins a match
	// form is what the match must look like, from its beginning. Its last
	// group, where it has one, is the secret itself.
	form string
	// least is the least entropy of the secret, in bits per byte; 0 for any.
	least float64
	// word wants that no letter or digit stands before the match.
	word bool
	// only says which files a rule of fileRules is for.
	only func(path string) bool
	// check, where set, looks at the secret itself.
	check func(secret []byte) bool
}

// maxMatch is how many bytes of a match are looked at.
const maxMatch = 4096

// secretRules are what is known to be secret by its form. Tokens that say
// themselves what they are, and values behind a name that says so; nothing that
// only looks random.
func secretRules() []secretRule {
	return []secretRule{
		{what: "a private key", texts: []string{"-----BEGIN "}, form: `-----BEGIN (?:[A-Z0-9]{2,10} )*PRIVATE KEY(?: BLOCK)?-----(?:\s|\\r|\\n){1,8}(?:[A-Za-z-]{3,30}: [^\n\\]{0,200}(?:\s|\\r|\\n){1,8}){0,5}([A-Za-z0-9+/=]{24,})`, least: 2.5},
		{what: "a PuTTY private key", texts: []string{"PuTTY-User-Key-File-"}, form: `PuTTY-User-Key-File-[23]: [a-z0-9-]+\r?\nEncryption: `},
		{what: "an age identity", texts: []string{"AGE-SECRET-KEY-1"}, form: `AGE-SECRET-KEY-1([QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58})`, least: 3},

		{what: "an AWS access key", texts: []string{"AKIA", "ASIA", "ABIA", "ACCA"}, form: `(A[KSBC][IC]A[A-Z2-7]{16})(?:[^A-Za-z0-9+/=]|$)`, least: 3, word: true, check: mixed},
		{
			what:  "an AWS secret access key",
			texts: []string{"aws_secret_access_key", "AWS_SECRET_ACCESS_KEY", "SecretAccessKey", "secretAccessKey", "aws_secret_key", "AWS_SECRET_KEY"},
			form:  `[A-Za-z_]+["']?\s{0,5}[:=]{1,2}>?\s{0,5}["']?([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+=]|$)`, least: 4,
		},
		{what: "a Google API key", texts: []string{"AIza"}, form: `(AIza[0-9A-Za-z_-]{35})(?:[^0-9A-Za-z_-]|$)`, least: 4, word: true},
		{what: "a Google OAuth client secret", texts: []string{"GOCSPX-"}, form: `GOCSPX-([0-9A-Za-z_-]{28})(?:[^0-9A-Za-z_-]|$)`, least: 3.5},
		{what: "an Azure storage key", texts: []string{"AccountKey="}, form: `AccountKey=([A-Za-z0-9+/]{86}==)`, least: 4.5},
		{what: "an Azure shared access key", texts: []string{"SharedAccessKey="}, form: `SharedAccessKey=([A-Za-z0-9+/]{43}=)`, least: 4},
		{
			what:  "an Azure client secret",
			texts: []string{"AZURE_CLIENT_SECRET", "azure_client_secret", "ARM_CLIENT_SECRET", "arm_client_secret"},
			form:  `[A-Za-z_]+["']?\s{0,5}[:=]\s{0,5}["']?([A-Za-z0-9_~.-]{30,44})(?:[^A-Za-z0-9_~.-]|$)`, least: 3.5,
		},

		{what: "a GitHub token", texts: []string{"ghp_", "gho_", "ghu_", "ghs_", "ghr_"}, form: `gh[pousr]_([0-9A-Za-z]{36,251})(?:[^0-9A-Za-z]|$)`, least: 3.5},
		{what: "a GitHub token", texts: []string{"github_pat_"}, form: `github_pat_([0-9A-Za-z]{22}_[0-9A-Za-z]{59})`, least: 3.5},
		{what: "a GitLab token", texts: []string{"glpat-", "glptt-", "gldt-", "glrt-", "glsoat-"}, form: `gl[a-z]{2,4}-([0-9A-Za-z_.-]{20,64})`, least: 3},
		{what: "a Slack token", texts: []string{"xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-", "xoxe-"}, form: `xox[abeprs]-([0-9A-Za-z]{1,20}-[0-9A-Za-z-]{10,240})`, least: 2.8},
		{what: "a Slack token", texts: []string{"xapp-"}, form: `xapp-\d-([A-Z0-9]{8,}-\d{8,}-[a-z0-9]{40,})`, least: 3},
		{what: "a Slack webhook", texts: []string{"hooks.slack.com/services/"}, form: `hooks\.slack\.com/services/(T[A-Z0-9]{8,12}/B[A-Z0-9]{8,12}/[A-Za-z0-9]{20,26})`, least: 3.2},
		{what: "a Stripe key", texts: []string{"sk_live_", "rk_live_"}, form: `[sr]k_live_([0-9A-Za-z]{16,247})`, least: 3},
		{what: "a Stripe webhook secret", texts: []string{"whsec_"}, form: `whsec_([0-9A-Za-z+/]{32,64})`, least: 3.8},
		{what: "an npm token", texts: []string{"npm_"}, form: `npm_([0-9A-Za-z]{36})(?:[^0-9A-Za-z]|$)`, least: 3.5},
		{what: "an npm token", texts: []string{"_authToken="}, form: `_authToken=\s?["']?([0-9A-Za-z_-][0-9A-Za-z_.=-]{19,})`, least: 3},
		{what: "a PyPI token", texts: []string{"pypi-AgEIcHlwaS5vcmc", "pypi-AgENdGVzdC5weXBpLm9yZw"}, form: `pypi-([0-9A-Za-z_-]{50,})`, least: 3.5},
		{what: "a Docker Hub token", texts: []string{"dckr_pat_", "dckr_oat_"}, form: `dckr_[po]at_([0-9A-Za-z_-]{27,32})`, least: 3.5},
		{what: "a Vault token", texts: []string{"hvs.", "hvb."}, form: `hv[sb]\.([0-9A-Za-z_-]{90,300})`, least: 4},
		{what: "an Anthropic key", texts: []string{"sk-ant-"}, form: `sk-ant-[a-z]+\d\d-([0-9A-Za-z_-]{80,120})`, least: 4},
		{what: "an OpenAI key", texts: []string{"sk-proj-", "sk-svcacct-", "sk-admin-"}, form: `sk-[a-z]+-([0-9A-Za-z_-]{40,200})`, least: 4},
		{what: "a DigitalOcean token", texts: []string{"dop_v1_", "doo_v1_", "dor_v1_"}, form: `do[por]_v1_([a-f0-9]{64})`, least: 3},
		{what: "a Shopify token", texts: []string{"shpat_", "shpca_", "shppa_", "shpss_"}, form: `shp[a-z]{2}_([a-fA-F0-9]{32})`, least: 3},
		{what: "a token of a Kubernetes service account", texts: []string{"eyJhbGciOi", "eyJ0eXAiOi", "eyJraWQiOi"}, form: `(eyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{32,})`, check: serviceAccount},
	}
}

// fileRules find secrets that only a file's name tells from other text. They
// look at the beginning of such a file.
func fileRules() []secretRule {
	return []secretRule{
		{what: "a password of a registry", form: `(?s)"auths"\s*:\s*\{.*?"(?:auth|identitytoken|registrytoken|password)"\s*:\s*"([^"]{6,})"`, only: dockerConfig},
		{what: "a password of .netrc", form: `(?:machine\s+\S+|default)\s+(?:(?:login|account)\s+\S+\s+){0,2}password\s+(\S{3,})`, only: named(".netrc", "_netrc")},
		{what: "a password of .pgpass", form: `(?m)^[^:\n#]+:(?:\d+|\*):[^:\n]+:[^:\n]+:([^\n]{3,})`, only: named(".pgpass")},
		{what: "a password of Git", form: `https?://[^:/@\s]{1,200}:([^@/\s]{3,})@`, only: named(".git-credentials")},
		{what: "a password of .pypirc", form: `(?m)^\s*password\s*[:=]\s*(\S{3,})`, only: named(".pypirc")},
		{what: "a password hash of a user", form: `(?m)^[^:\n]{1,64}:(\$(?:[1-7]|2[aby]|y|gy|sm3)\$[^:\n]{20,})`, only: named("shadow")},
	}
}

// named is for files with one of these names.
func named(names ...string) func(string) bool {
	return func(p string) bool {
		return slices.Contains(names, p[strings.LastIndexByte(p, '/')+1:])
	}
}

// dockerConfig is for the files that hold a Docker client's passwords.
func dockerConfig(p string) bool {
	return strings.HasSuffix(p, "/.docker/config.json") || strings.HasSuffix(p, "/containers/auth.json") ||
		named(".dockerconfigjson", ".dockercfg", "config.json", "auth.json")(p)
}

// mixed wants letters and digits.
func mixed(secret []byte) bool {
	return bytes.ContainsAny(secret, "234567") && bytes.ContainsAny(secret[4:], "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
}

// serviceAccount says whether a JSON web token is one that Kubernetes gives to
// pods. Other tokens may be anything, examples above all.
func serviceAccount(token []byte) bool {
	parts := bytes.Split(token, []byte("."))
	if len(parts) != 3 {
		return false
	}
	payload, err := base64.RawURLEncoding.DecodeString(string(parts[1]))
	if err != nil {
		return false
	}
	var claims map[string]any
	if json.Unmarshal(payload, &claims) != nil {
		return false
	}
	if issuer, _ := claims["iss"].(string); issuer == "kubernetes/serviceaccount" {
		return true
	}
	_, ok := claims["kubernetes.io"]
	return ok
}

// shown are in values with which manuals and tests show what a secret looks like.
func shown() []string {
	return []string{
		"EXAMPLE", "example", strings.Repeat("x", 6), strings.Repeat("X", 6), strings.Repeat(".", 6), strings.Repeat("0", 12),
		"1234567890123456", "abcdefghijklmnop", "ABCDEFGHIJKLMNOP", "your", "YOUR", "<", "${", "{{", "$(",
	}
}

// secretive says whether a value may be a secret: not one that a manual shows,
// and of enough entropy.
func secretive(value []byte, least float64) bool {
	for _, p := range shown() {
		if bytes.Contains(value, []byte(p)) {
			return false
		}
	}
	return entropy(value) >= least
}

// entropy is Shannon's, of the bytes of b, in bits per byte.
func entropy(b []byte) float64 {
	var counts [256]int
	for _, c := range b {
		counts[c]++
	}
	sum := 0.0
	for _, n := range counts {
		if n > 0 {
			p := float64(n) / float64(len(b))
			sum -= p * math.Log2(p)
		}
	}
	return sum
}

// publicKey says whether a file is one whose keys everybody has: a package's
// documentation, examples and tests.
func publicKey(p string) bool {
	for _, part := range []string{"/usr/share/doc/", "/testdata/", "/test/certdata/", "/usr/local/go/src/", "/usr/lib/google-cloud-sdk/"} {
		if strings.Contains(p, part) {
			return true
		}
	}
	base := p[strings.LastIndexByte(p, '/')+1:]
	for _, begin := range []string{"ssl-cert-snakeoil", "libgnutls.so", "libgnutls.a"} { // GnuTLS tests itself when it starts
		if strings.HasPrefix(base, begin) {
			return true
		}
	}
	return strings.HasSuffix(p, "_test.go") || packages.MatchString(p) && tests.MatchString(p)
}

var (
	// packages are the folders where language package managers put what others
	// wrote.
	packages = regexp.MustCompile(`/(node_modules|site-packages|dist-packages|lib/python[0-9.]*|gems|pkg/mod|vendor)/`)
	// tests are the folders of a package's tests and examples.
	tests = regexp.MustCompile(`/(tests?|test[-_]?data|test[-_]?fixtures|testutils?|testonly|spec|fixtures|examples?)/`)
)
