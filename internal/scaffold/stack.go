package scaffold

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// stack is a definition before it is written.
type stack struct {
	header    []string // paragraphs
	variables []variable
	images    []image
	services  []service
	routes    []route
}

type variable struct {
	name, doc string
}

type image struct {
	name      string
	notes     []string
	reference string // or context and the rest
	context   string
	file      string
	target    string
	args      map[string]string
	contexts  map[string]string
	platform  string
	debian    []string // packages
}

type port struct {
	name     string
	number   int
	protocol string
}

type service struct {
	name         string
	notes        []string
	image        string
	count        int
	ports        []port
	entrypoint   []string
	command      []string
	env          map[string]string // expressions
	user         string
	workingDir   string
	writable     map[string]int64 // MiB
	capabilities []string
	stopSignal   string
	grace        string
	startTimeout string
	ready        []setting
	limits       []setting
}

// setting is an argument and its expression.
type setting struct{ name, value string }

type route struct {
	name    string
	notes   []string
	host    string
	listen  string
	service string
	port    string // empty for the first
}

// bytes writes the definition in its canonical form.
func (s stack) bytes() []byte {
	w := &writer{}
	for i, paragraph := range s.header {
		if i > 0 && !strings.HasPrefix(paragraph, "| ") {
			w.line("#")
		}
		w.comment(paragraph)
	}
	for _, v := range s.variables {
		w.block("variable", v.name, func() {
			w.set("type", "string")
			w.set("default", `""`)
			w.set("description", quote(v.doc))
		})
	}
	w.block("gate", "", func() {
		w.comments([]string{
			"What an image must be to run: findings of severity high fail.",
			"Without a database of vulnerabilities there is nothing to judge by. `kiln db update` brings one; take this line out then:",
		})
		w.set("no_database", quote("warn"))
	})
	for _, i := range s.images {
		w.image(i)
	}
	for _, one := range s.services {
		w.service(one)
	}
	for _, r := range s.routes {
		w.route(r)
	}
	return canonical([]byte(w.String()))
}

// canonical is what `kiln fmt` writes.
func canonical(src []byte) []byte {
	for range 4 {
		out := hclwrite.Format(src)
		if string(out) == string(src) {
			break
		}
		src = out
	}
	return src
}

// writer builds a definition's text. Everything that comes from files goes
// through quote or comment.
type writer struct{ strings.Builder }

func (w *writer) line(s string) { w.WriteString(s + "\n") }

// comment writes a paragraph, in lines of about 80 columns. One that begins
// with "| " is code, which stays as it is.
func (w *writer) comments(notes []string) {
	for _, n := range notes {
		w.comment(n)
	}
}

func (w *writer) comment(text string) {
	if code, ok := strings.CutPrefix(text, "| "); ok && !strings.ContainsAny(code, "\r\n") {
		w.line("#   " + code)
		return
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' || r == 0x85 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > 78 && line != "#" {
			w.line(line)
			line = "#"
		}
		line += " " + word
	}
	w.line(line)
}

func (w *writer) set(name, value string) { w.line(name + " = " + value) }

// text sets a string that is not empty.
func (w *writer) text(name, value string) {
	if value != "" {
		w.set(name, quote(value))
	}
}

func (w *writer) list(name string, values []string) {
	if len(values) > 0 {
		w.set(name, quoteList(values))
	}
}

// table sets a map of expressions, one line an entry when there are several.
func (w *writer) table(name string, values map[string]string) {
	if len(values) == 0 {
		return
	}
	w.line(name + " = {")
	for _, k := range slices.Sorted(maps.Keys(values)) {
		w.line(key(k) + " = " + values[k])
	}
	w.line("}")
}

func (w *writer) block(kind, label string, body func()) {
	w.line("")
	w.inner(kind, label, body)
}

func (w *writer) inner(kind, label string, body func()) {
	if label != "" {
		kind += " " + quote(label)
	}
	w.line(kind + " {")
	body()
	w.line("}")
}

func (w *writer) image(i image) {
	w.block("image", i.name, func() {
		w.comments(i.notes)
		w.text("reference", i.reference)
		w.text("platform", i.platform)
		if i.debian != nil {
			w.inner("debian", "", func() {
				w.text("suite", "bookworm")
				w.list("packages", i.debian)
			})
		}
		if i.context != "" {
			w.inner("dockerfile", "", func() {
				w.text("context", i.context)
				w.text("file", i.file)
				w.text("target", i.target)
				w.table("args", i.args)
				w.table("contexts", i.contexts)
			})
		}
	})
}

func (w *writer) service(s service) {
	w.block("service", s.name, func() {
		w.comments(s.notes)
		w.set("image", "image."+s.image)
		if s.count != 1 {
			w.set("count", strconv.Itoa(s.count))
		}
		w.list("entrypoint", s.entrypoint)
		w.list("command", s.command)
		w.text("user", s.user)
		w.text("working_dir", s.workingDir)
		w.table("env", s.env)
		sizes := map[string]string{}
		for path, size := range s.writable {
			sizes[path] = quote(mebibytes(size))
		}
		w.table("writable", sizes)
		w.list("capabilities", s.capabilities)
		w.text("stop_signal", s.stopSignal)
		w.text("grace", s.grace)
		w.text("start_timeout", s.startTimeout)
		for _, p := range s.ports {
			w.line("")
			w.inner("port", p.name, func() {
				w.set("number", strconv.Itoa(p.number))
				w.text("protocol", p.protocol)
			})
		}
		w.settings("ready", s.ready)
		w.settings("limits", s.limits)
	})
}

func (w *writer) settings(kind string, settings []setting) {
	if len(settings) == 0 {
		return
	}
	w.line("")
	w.inner(kind, "", func() {
		for _, s := range settings {
			w.set(s.name, s.value)
		}
	})
}

func (w *writer) route(r route) {
	w.block("route", r.name, func() {
		w.comments(r.notes)
		w.text("host", r.host)
		w.text("listen", r.listen)
		w.set("to", "service."+r.service)
		w.text("port", r.port)
	})
}

// quote writes a string as HCL reads it back, templates included.
func quote(s string) string {
	return string(hclwrite.TokensForValue(cty.StringVal(strings.ToValidUTF8(s, "?"))).Bytes())
}

func quoteList(values []string) string {
	var out []string
	for _, v := range values {
		out = append(out, quote(v))
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// key writes a key of a map, bare where it can be.
func key(s string) string {
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return quote(s)
		}
	}
	if s == "" || s == "for" || s == "null" || s == "true" || s == "false" {
		return quote(s)
	}
	return s
}

// toMebibytes rounds bytes up.
func toMebibytes(n int64) int64 { return (min(n, 1<<40) + 1<<20 - 1) >> 20 }

func mebibytes(n int64) string { return fmt.Sprintf("%dMiB", n) }
