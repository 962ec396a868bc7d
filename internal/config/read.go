package config

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

// tokenText is what a token looks like, whole or in part.
const tokenText = `kiln_[a-z2-7]{8,}` //nolint:gosec // a pattern, and no token

// reader is one run over a file.
type reader struct {
	name   string
	src    []byte
	opt    Options
	report *hclfile.Report
	body   *hclsyntax.Body
}

func newReader(name string, src []byte, o Options) *reader {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	// Who wrote a token into the file must not find it in a log as well.
	return &reader{name: name, src: src, opt: o, report: &hclfile.Report{Hide: regexp.MustCompile(tokenText)}}
}

// read returns what the file says; the report says whether that is of use.
func (r *reader) read() Config {
	r.body = hclfile.Parse(r.name, r.src, r.report)
	if r.body == nil {
		return Config{}
	}
	hclfile.Check(r.body, rootSchema(), badName, r.report)
	for _, kind := range []string{"token", "notify", "registry", "source"} {
		hclfile.CheckUnique(kind, r.blocks(kind), r.report)
	}
	c := Config{Path: r.name, Digest: kiln.DigestOf(r.src), Data: r.data()}
	if d := r.single("listen"); d != nil {
		c.Listen = Listen{HTTP: r.addresses(d, "http"), HTTPS: r.addresses(d, "https"), Metrics: r.metrics(d)}
	}
	if d := r.single("api"); d != nil {
		c.API = r.api(d)
	}
	if d := r.single("storage"); d != nil {
		c.Storage = Storage{
			Max:        d.Size("max", 0, 256*hclfile.MiB, 1024*hclfile.TiB),
			KeepEvents: d.Number("keep_events", 0, 1000, 100_000_000),
			Logs:       d.Size("logs", 0, hclfile.MiB, hclfile.TiB),
		}
	}
	if d := r.single("log"); d != nil {
		c.LogLevel = oneOf(d, "level", "debug", "info", "warn", "error")
	}
	if d := r.single("traces"); d != nil {
		c.Traces = Traces{Endpoint: r.target(d, "endpoint", "https://traces.example.com", "Traces"), HeadersFile: d.Checked("headers_file", "Not a file", badPath)}
	}
	if d := r.single("signing"); d != nil {
		c.Signing = r.signing(d)
	}
	if d := r.single("debian"); d != nil {
		c.Debian.Keyring = d.Checked("keyring", "Not a file", badPath)
	}
	c.Tokens, c.Notify, c.Registries, c.Sources = r.tokens(), r.notifications(), r.registries(), r.sources()
	r.checkTogether(c)
	return c
}

func (r *reader) blocks(kind string) []*hclsyntax.Block {
	d := r.decoder(r.body)
	labels := 0
	if s, ok := rootSchema().Block(kind); ok {
		labels = len(s.Labels)
	}
	return d.Blocks(kind, labels)
}

// single returns a decoder of the first block of a kind, or nil.
func (r *reader) single(kind string) *hclfile.Decoder {
	if found := r.blocks(kind); len(found) > 0 {
		return r.decoder(found[0].Body)
	}
	return nil
}

func (r *reader) decoder(body *hclsyntax.Body) *hclfile.Decoder {
	return &hclfile.Decoder{Body: body, Report: r.report, Eval: r.constant}
}

// constant evaluates what is written out: nothing here refers to anything or
// computes.
func (r *reader) constant(e hclsyntax.Expression) (cty.Value, bool) {
	if odd := firstOdd(e); odd != nil {
		r.report.Error(odd.Range(), "Only values here", "The configuration has no variables and no functions: write the value out. Text is in double quotes.")
		return cty.DynamicVal, false
	}
	v, diags := e.Value(nil)
	r.report.HCL(diags)
	return v, !diags.HasErrors()
}

// firstOdd returns the first part of an expression that is more than a value.
func firstOdd(e hclsyntax.Expression) hclsyntax.Expression {
	var odd hclsyntax.Expression
	_ = hclsyntax.VisitAll(e, func(n hclsyntax.Node) hcl.Diagnostics {
		switch n := n.(type) {
		case *hclsyntax.LiteralValueExpr, *hclsyntax.TemplateExpr, *hclsyntax.TupleConsExpr, *hclsyntax.ParenthesesExpr, *hclsyntax.UnaryOpExpr:
		case hclsyntax.Expression:
			if odd == nil {
				odd = n
			}
		}
		return nil
	})
	return odd
}

// oneOf reads one of some words.
func oneOf(d *hclfile.Decoder, name string, words ...string) string {
	a, s, ok := d.Text(name)
	if !ok || slices.Contains(words, s) {
		return s
	}
	d.Report.Error(a.At, "Unknown "+name, "%s is not possible.%s", a.Show(s), hclfile.Suggest(s, words))
	return ""
}

// data reads the data directory, which neither moves nor is elsewhere than the
// file that lies in one.
func (r *reader) data() string {
	d := r.decoder(r.body)
	dir := d.Checked("data", "Not a data directory", badPath)
	switch {
	case dir == "" || r.opt.Data == "" || dir == r.opt.Data:
	case filepath.Dir(r.name) == r.opt.Data:
		r.report.Error(d.At("data"), "Another data directory", "This file is the configuration of %s. To choose another data directory, start kilnd with --data, or say it in %s.", r.opt.Data, SystemFile)
	default:
		r.report.Error(d.At("data"), "The data directory cannot change",
			"The control plane is that of %s: what it runs and remembers is there. End it with kiln shutdown, move the directory, and start it on the other one.", r.opt.Data)
	}
	return dir
}

func badPath(s string) string {
	if !filepath.IsAbs(s) || filepath.Clean(s) != s || strings.ContainsRune(s, 0) {
		return "is not an absolute path without \"..\" and without a slash at the end."
	}
	return ""
}

// addresses reads a list of addresses to listen on: nil when the file does not
// say it.
func (r *reader) addresses(d *hclfile.Decoder, name string) []string {
	if !d.Has(name) {
		return nil
	}
	out := []string{}
	for _, i := range d.List(name) {
		address, problem := Address(i.Text)
		switch {
		case problem != "":
			r.report.Error(i.At, "Not an address to listen on", "%s %s", i.Whole.Show(i.Text), problem)
		case slices.Contains(out, address):
			r.report.Error(i.At, "Duplicate address", "%s is in the list already.", i.Whole.Show(i.Text))
		default:
			out = append(out, address)
		}
	}
	return out
}

// metrics reads where metrics are served, which is on this machine alone where
// no address is said.
func (r *reader) metrics(d *hclfile.Decoder) []string {
	out := r.addresses(d, "metrics")
	for i, address := range out {
		host, port, _ := net.SplitHostPort(address)
		switch {
		case host == "":
			out[i] = net.JoinHostPort("127.0.0.1", port)
		case !local(host):
			r.report.Warn(d.At("metrics"), "Metrics for anybody",
				"Whoever reaches %s can read the names of environments and services, and how they do. To serve them by TLS to those with a token alone, leave the address out: the API has them at /metrics.", address)
		}
	}
	return out
}

// Address reads "address:port" or ":port" in its canonical form, or says what
// is wrong with it.
func Address(text string) (address, problem string) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", "is not an address and a port. Write it like \"127.0.0.1:8080\", \"[::1]:8080\" or \":8080\"."
	}
	if host != "" {
		a, err := netip.ParseAddr(host)
		if err != nil || a.Zone() != "" {
			return "", fmt.Sprintf("has %q, which is not an address of this machine. Write a number such as 127.0.0.1.", host)
		}
		host = a.String()
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Sprintf("has %q, which is not a port: a number from 1 to 65535.", port)
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), ""
}

func (r *reader) api(d *hclfile.Decoder) API {
	out := API{
		Listen: r.addresses(d, "listen"),
		Cert:   d.Checked("cert", "Not a file", badPath), Key: d.Checked("key", "Not a file", badPath),
	}
	if d.Has("cert") != d.Has("key") {
		written := "cert"
		if d.Has("key") {
			written = "key"
		}
		r.report.Error(d.At(written), "Half a certificate", "cert and key belong together: write both, or neither for a certificate of the control plane's own authority.")
	}
	if d.Has("names") && d.Has("cert") {
		r.report.Error(d.At("names"), "Unsupported argument", "names are for a certificate of the control plane's own authority; the one of cert has its names in it.")
	}
	for _, i := range d.List("names") {
		if problem := badHost(i.Text); problem != "" {
			r.report.Error(i.At, "Not a name", "%s %s", i.Whole.Show(i.Text), problem)
			continue
		}
		out.Names = append(out.Names, strings.ToLower(i.Text))
	}
	return out
}

func badHost(s string) string {
	if _, err := netip.ParseAddr(s); err == nil {
		return ""
	}
	label := `[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?`
	if len(s) > 253 || !regexp.MustCompile(`\A`+label+`(\.`+label+`)*\z`).MatchString(s) {
		return "is neither a host name nor an IP address."
	}
	return ""
}

// tokens reads who may use the API, by name.
func (r *reader) tokens() []kiln.Token {
	var out []kiln.Token
	first := map[kiln.Digest]*hclsyntax.Block{}
	for _, b := range r.blocks("token") {
		d := r.decoder(b.Body)
		t := kiln.Token{
			Name: b.Labels[0], Role: kiln.Role(oneOf(d, "role", "read", "deploy", "admin")),
			Digest: r.digest(d), Reach: r.reach(d), Expires: r.expires(d),
		}
		if t.Role == kiln.RoleAdmin && d.Has("environments") {
			r.report.Error(d.At("environments"), "Not with this role", "An admin may change all of Kiln, so environments would bound nothing. Remove it, or use role \"deploy\".")
		}
		if before, ok := first[t.Digest]; ok && t.Digest != "" {
			r.report.Error(d.At("sha256"), "Duplicate token", "%s has the same at %s: nobody could tell who calls. Make another one: kiln token create %s", before.Labels[0], hclfile.Place(before.DefRange()), t.Name)
		}
		first[t.Digest] = b
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b kiln.Token) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// digest reads the hash of a token.
func (r *reader) digest(d *hclfile.Decoder) kiln.Digest {
	a, s, ok := d.Text("sha256")
	if !ok {
		return ""
	}
	if regexp.MustCompile(tokenText).MatchString(s) {
		r.report.Error(a.At, "A token in the clear", "This is the token itself, and who reads the file has it. Do not use it any more: make another with kiln token create, and write its SHA-256 here.")
		return ""
	}
	digest, err := kiln.ParseDigest("sha256:" + s)
	if err != nil {
		r.report.Error(a.At, "Not a SHA-256", "It has %d characters and must be 64 lower-case hex digits: what kiln token create prints, or printf %%s TOKEN | sha256sum.", len(s))
		return ""
	}
	return digest
}

func (r *reader) reach(d *hclfile.Decoder) kiln.Reach {
	var out kiln.Reach
	for _, i := range d.List("environments") {
		if _, err := path.Match(i.Text, ""); err != nil || !regexp.MustCompile(`\A[a-z0-9*?\[\]-]+\z`).MatchString(i.Text) {
			r.report.Error(i.At, "Not an environment", "%s is not the name of an environment, or a pattern such as \"preview-*\".", i.Whole.Show(i.Text))
			continue
		}
		out = append(out, i.Text)
	}
	if d.Has("environments") && len(out) == 0 && !r.report.Failed() {
		r.report.Error(d.At("environments"), "No environment", "With an empty list the block would be of no use. Name environments, or remove the argument for all of them.")
	}
	return out
}

func (r *reader) expires(d *hclfile.Decoder) time.Time {
	a, s, ok := d.Text("expires")
	if !ok {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		r.report.Error(a.At, "Not a time", "%s is not a time. Write it like \"2027-01-31T12:00:00Z\".", a.Show(s))
		return time.Time{}
	}
	if at.Before(r.opt.Now) {
		r.report.Warn(a.At, "Token has expired", "It is refused since then. Remove the block, or make another token.")
	}
	return at
}

// notifications reads whom to tell, by name.
func (r *reader) notifications() []Notify {
	var out []Notify
	for _, b := range r.blocks("notify") {
		d := r.decoder(b.Body)
		n := Notify{
			Name: b.Labels[0], URL: r.target(d, "url", "https://hooks.example.com/kiln", "Notifications"),
			SecretFile: d.Checked("secret_file", "Not a file", badPath), Environments: r.reach(d),
		}
		for _, i := range d.List("events") {
			if _, err := path.Match(i.Text, ""); err != nil || !regexp.MustCompile(`\A[a-z_*]+(\.[a-z_*]+)?\z`).MatchString(i.Text) {
				r.report.Error(i.At, "Not a kind of event", "%s is not a kind of event such as \"release.live\", or a pattern such as \"release.*\".", i.Whole.Show(i.Text))
				continue
			}
			n.Events = append(n.Events, i.Text)
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b Notify) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// target reads a URL that can be posted to; what is posted.
func (r *reader) target(d *hclfile.Decoder, name, example, what string) string {
	a, s, ok := d.Text(name)
	if !ok {
		return ""
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		r.report.Error(a.At, "Not a URL", "%s is not a URL such as %q.", a.Show(s), example)
	case u.User != nil:
		r.report.Error(a.At, "A password in the clear", "Who reads the file has it. What is secret is in a file of its own: secret_file, or headers_file.")
	case u.Scheme == "http" && !local(u.Hostname()):
		r.report.Warn(a.At, what+" in the clear", "Who is on the way to %s can read them. Use https.", u.Host)
		return s
	default:
		return s
	}
	return ""
}

// local says whether a host is this machine.
func local(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// checkTogether looks at what is odd about several arguments.
func (r *reader) checkTogether(c Config) {
	type use struct {
		where   string
		address string
	}
	var seen []use
	for _, l := range []struct {
		block, name string
		addresses   []string
	}{
		{"listen", "http", c.Listen.HTTP},
		{"listen", "https", c.Listen.HTTPS},
		{"listen", "metrics", c.Listen.Metrics},
		{"api", "listen", c.API.Listen},
	} {
		for _, address := range l.addresses {
			where := l.block + "." + l.name
			for _, other := range seen {
				if overlap(address, other.address) {
					r.report.Error(r.single(l.block).At(l.name), "Address used twice", "%s of %s and %s of %s cannot both be listened on.", address, where, other.address, other.where)
				}
			}
			seen = append(seen, use{where, address})
		}
	}
	if len(c.API.Listen) > 0 && len(c.Tokens) == 0 {
		r.report.Warn(r.single("api").At("listen"), "Nobody may call", "The file has no token, and over TCP the API answers callers with a token only. Make one: kiln token create NAME --role deploy")
	}
}

// overlap says whether two addresses cannot be listened on at once.
func overlap(a, b string) bool {
	hostA, portA, _ := net.SplitHostPort(a)
	hostB, portB, _ := net.SplitHostPort(b)
	all := func(host string) bool { return host == "" || host == "::" || host == "0.0.0.0" }
	return portA == portB && (hostA == hostB || all(hostA) || all(hostB))
}

// registryHost is a host of a reference, with a port or without; mirrorPlace is
// one with a path behind it.
var (
	registryHost = regexp.MustCompile(`\A[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?\z`)
	mirrorPlace  = regexp.MustCompile(`\A[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*\z`)
)

// registries reads how registries of others are asked, by host.
func (r *reader) registries() []Registry {
	var out []Registry
	for _, b := range r.blocks("registry") {
		one := Registry{Host: b.Labels[0]}
		for _, i := range r.decoder(b.Body).List("mirrors") {
			if !mirrorPlace.MatchString(i.Text) || !strings.ContainsAny(i.Text, ".:") && !strings.HasPrefix(i.Text, "localhost") {
				r.report.Error(i.At, "Not a mirror", "%s is not the host of a registry such as \"mirror.example.com\" or \"cache.example.com:5000/docker\". It is asked by HTTPS, this machine itself by HTTP, too.", i.Whole.Show(i.Text))
				continue
			}
			one.Mirrors = append(one.Mirrors, i.Text)
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b Registry) int { return cmp.Compare(a.Host, b.Host) })
	return out
}

// badName returns what is wrong with the name of a token, a notification or a
// source, or with the host of a registry.
func badName(kind, name string) string {
	if kind == "registry" {
		if len(name) > 255 || !registryHost.MatchString(name) {
			return fmt.Sprintf("%q is not the host of a registry such as \"docker.io\" or \"registry.example.com:5000\".", name)
		}
		return ""
	}
	if len(name) > 40 || !regexp.MustCompile(`\A[a-z0-9]([a-z0-9._-]*[a-z0-9])?\z`).MatchString(name) {
		return fmt.Sprintf("%q is not a name: up to 40 lower-case letters, digits, dots, dashes and underscores, beginning and ending with a letter or digit.", name)
	}
	return ""
}
