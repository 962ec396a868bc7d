package plan

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"

	"github.com/kilnproject/kiln"
)

// Reasons are the differences of two templates, one a field, in the order of
// the fields: "image: 3fa92c01bd77 -> 91c0ffee12ab". Two templates with
// different digests have at least one.
func Reasons(from, to kiln.Template) []string {
	var out []string
	if from.Image != to.Image {
		out = append(out, fmt.Sprintf("image: %s -> %s", from.Image.Short(), to.Image.Short()))
	}
	if from.Platform != to.Platform {
		out = append(out, fmt.Sprintf("platform: %s -> %s", from.Platform, to.Platform))
	}
	if len(from.Ports)+len(to.Ports) > 0 && !reflect.DeepEqual(from.Ports, to.Ports) {
		out = append(out, fmt.Sprintf("ports: %s -> %s", ports(from.Ports), ports(to.Ports)))
	}
	a, b := reflect.ValueOf(from.Config), reflect.ValueOf(to.Config)
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		out = append(out, differences(name, a.Field(i), b.Field(i))...)
	}
	if len(out) == 0 && from.Digest() != to.Digest() {
		out = append(out, "template: "+from.Digest().Short()+" -> "+to.Digest().Short())
	}
	return out
}

// differences compares one field; structs and maps are compared by their own
// fields and keys.
func differences(name string, a, b reflect.Value) []string {
	if same(a, b) {
		return nil
	}
	switch {
	case name == "env":
		return environmentReasons(a.Interface().(map[string]string), b.Interface().(map[string]string))
	case a.Kind() == reflect.Struct:
		var out []string
		for i := range a.NumField() {
			field, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
			out = append(out, differences(name+"."+field, a.Field(i), b.Field(i))...)
		}
		return out
	case name == "no_init": // a definition says it the other way round
		return []string{fmt.Sprintf("init: %t -> %t", !a.Bool(), !b.Bool())}
	case name == "limits.umask":
		return []string{fmt.Sprintf("%s: %04o -> %04o", name, a.Uint(), b.Uint())}
	case name == "limits.log_bytes":
		return []string{fmt.Sprintf("limits.log: %s -> %s", kiln.Size(a.Int()), kiln.Size(b.Int()))}
	case name == "limits.memory":
		return []string{fmt.Sprintf("%s: %s -> %s", name, kiln.Size(a.Int()), kiln.Size(b.Int()))}
	case name == "limits.core_size" || name == "limits.file_size":
		return []string{fmt.Sprintf("%s: %s -> %s", name, bytes(a.Uint()), bytes(b.Uint()))}
	default:
		return []string{fmt.Sprintf("%s: %s -> %s", name, show(a), show(b))}
	}
}

// bytes is a size that is unlimited when it is 0.
func bytes(n uint64) string {
	if n == 0 || n > math.MaxInt64 {
		return "none"
	}
	return kiln.Size(int64(n))
}

// same compares as the template's digest does: by JSON, so that an empty list
// is no list.
func same(a, b reflect.Value) bool {
	if reflect.DeepEqual(a.Interface(), b.Interface()) {
		return true
	}
	switch a.Kind() {
	case reflect.Slice, reflect.Map:
		return a.Len() == 0 && b.Len() == 0
	default:
		return false
	}
}

// environmentReasons compares variables; values that look like secrets are not
// shown.
func environmentReasons(a, b map[string]string) []string {
	var out []string
	for _, name := range names(a, b) {
		from, had := a[name]
		to, has := b[name]
		switch {
		case had && has && from == to:
		case sensitive(name):
			out = append(out, "env "+name+": changed")
		case !had:
			out = append(out, fmt.Sprintf("env %s: added %q", name, clip(to)))
		case !has:
			out = append(out, fmt.Sprintf("env %s: removed", name))
		default:
			out = append(out, fmt.Sprintf("env %s: %s -> %s", name, word(from), word(to)))
		}
	}
	return out
}

// sensitive says whether a variable's name is that of a secret.
func sensitive(name string) bool {
	upper := strings.ToUpper(name)
	for _, part := range []string{"PASSWORD", "PASSWD", "SECRET", "TOKEN", "CREDENTIAL", "PRIVATE", "KEY", "AUTH", "DSN", "COOKIE"} {
		if strings.Contains(upper, part) {
			return true
		}
	}
	return false
}

// show writes a value for a reason.
func show(v reflect.Value) string {
	if v.Kind() == reflect.String {
		return word(v.String())
	}
	if s, ok := v.Interface().(fmt.Stringer); ok {
		return s.String()
	}
	if (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0 {
		return "none"
	}
	switch list := v.Interface().(type) {
	case []kiln.Writable:
		return joined(list, func(w kiln.Writable) string { return w.Path + " " + kiln.Size(w.Size) })
	case []kiln.Egress:
		return joined(list, destination)
	}
	b, err := json.Marshal(v.Interface())
	if err != nil {
		return fmt.Sprint(v.Interface())
	}
	return string(b)
}

func joined[T any](list []T, text func(T) string) string {
	var out []string
	for _, one := range list {
		out = append(out, text(one))
	}
	return strings.Join(out, ", ")
}

// destination is egress as a definition says it.
func destination(e kiln.Egress) string {
	to := e.Host
	switch {
	case to != "":
	case e.Prefix.Addr().Is6():
		to = "[" + e.Prefix.String() + "]"
	default:
		to = e.Prefix.String()
	}
	to = fmt.Sprintf("%s:%d", to, e.Port)
	if e.Protocol == "udp" {
		to += "/udp"
	}
	return to
}

// longest is how much of a value a reason shows, in characters.
const longest = 60

func clip(s string) string {
	if r := []rune(s); len(r) > longest {
		return string(r[:longest]) + "..."
	}
	return s
}

// word writes a string, shortened where it is long, and bare where that reads
// well.
func word(s string) string {
	s = clip(s)
	if s == "" || strings.ContainsAny(s, " \t\n\"") {
		return fmt.Sprintf("%q", s)
	}
	return s
}

func ports(list []kiln.Port) string {
	if len(list) == 0 {
		return "none"
	}
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = fmt.Sprintf("%s %d/%s", p.Name, p.Number, p.Protocol)
	}
	return strings.Join(out, ", ")
}
