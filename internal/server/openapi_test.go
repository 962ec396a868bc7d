package server

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	schema "github.com/invopop/jsonschema"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/kilnproject/kiln"
)

var update = flag.Bool("update", false, "rewrite openapi.json, here and in docs/reference")

type object = map[string]any

// TestDescriptionIsCurrent keeps the OpenAPI description equal to the routes
// and the Go types. `go test ./internal/server -run Description -update`
// rewrites it.
func TestDescriptionIsCurrent(t *testing.T) {
	here, reference := "openapi.json", filepath.Join("..", "..", "docs", "reference", "openapi.json")
	want := describe(t)
	if *update {
		for _, path := range []string{here, reference} {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, path := range []string{here, reference} {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is not what routes and types say; run with -update\n%s", path, diff)
		}
	}
}

// describe makes the description.
func describe(t *testing.T) []byte {
	t.Helper()
	d := newDescriber(t)
	paths := object{}
	for _, r := range newAPI(Options{}).routes() {
		item, _ := paths[r.path].(object)
		if item == nil {
			item = object{}
			paths[r.path] = item
		}
		item[strings.ToLower(r.method)] = d.operation(r)
	}
	d.refer(reflect.TypeFor[Frame]())
	out, err := json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Kiln", "version": "1", "license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
			"description": "The API of a Kiln control plane. docs/reference/api.md says how it is used.",
		},
		"servers":  []any{object{"url": "https://{host}", "variables": object{"host": object{"default": "localhost:9443"}}}},
		"security": []any{object{"token": []any{}}},
		"paths":    paths,
		"components": object{
			"schemas":         d.schemas,
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer", "description": "A token of kilnd.hcl. Over the Unix socket none is needed."}},
			"responses": object{"Error": object{
				"description": "It was not done; error says why.", "content": object{typeJSON: object{"schema": d.refer(reflect.TypeFor[Frame]())}},
			}},
		},
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

// describer collects the schemas of Go types.
type describer struct {
	t         *testing.T
	reflector *schema.Reflector
	types     map[string]reflect.Type
	schemas   object
}

func newDescriber(t *testing.T) *describer {
	d := &describer{t: t, types: map[string]reflect.Type{}, schemas: object{}}
	d.reflector = &schema.Reflector{Anonymous: true, Mapper: mapped, Namer: d.name}
	// A folder of the sources whose types the API has: all others take long.
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	sources := t.TempDir()
	for _, dir := range []string{".", "internal/control", "internal/server"} {
		copySources(t, filepath.Join(wd, "..", "..", dir), filepath.Join(sources, dir))
	}
	t.Chdir(sources)
	if err := d.reflector.AddGoComments("github.com/kilnproject/kiln", "./"); err != nil {
		t.Fatal(err)
	}
	t.Chdir(wd)
	return d
}

func copySources(t *testing.T, from, to string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(from, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources in %s: %v", from, err)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err == nil && !strings.HasSuffix(file, "_test.go") {
			err = os.WriteFile(filepath.Join(to, filepath.Base(file)), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// name is a schema's name; two types may not share one.
func (d *describer) name(t reflect.Type) string {
	name := t.Name()
	if name == "" {
		return "" // a list, a map: no schema of its own
	}
	if base, of, ok := strings.Cut(name, "["); ok { // Page[github.com/kilnproject/kiln.Release]
		name = strings.TrimSuffix(of[strings.LastIndex(of, ".")+1:], "]") + base
	}
	if other := d.types[name]; other != nil && other != t {
		d.t.Fatalf("%s and %s would both be the schema %s", other, t, name)
	}
	d.types[name] = t
	return name
}

// mapped are the schemas of types that JSON writes in a way of their own.
func mapped(t reflect.Type) *schema.Schema {
	switch t {
	case reflect.TypeFor[kiln.Digest]():
		return &schema.Schema{Type: "string", Pattern: "^(sha256:[0-9a-f]{64})?$"}
	case reflect.TypeFor[time.Duration]():
		return &schema.Schema{Type: "integer", Format: "nanoseconds"}
	case reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.Prefix]():
		return &schema.Schema{Type: "string"}
	case reflect.TypeFor[fs.FileMode]():
		return &schema.Schema{Type: "integer"}
	case reflect.TypeFor[json.RawMessage]():
		return &schema.Schema{}
	}
	return nil
}

// refer returns a reference to a type's schema, and keeps it.
func (d *describer) refer(t reflect.Type) any {
	d.t.Helper()
	if t == reflect.TypeFor[struct{}]() || t.Kind() != reflect.Struct {
		return object{"type": "object"}
	}
	b, err := json.Marshal(d.reflector.ReflectFromType(t))
	if err != nil {
		d.t.Fatal(err)
	}
	b = bytes.ReplaceAll(b, []byte(`"#/$defs/`), []byte(`"#/components/schemas/`))
	var s object
	if err := json.Unmarshal(b, &s); err != nil {
		d.t.Fatal(err)
	}
	for name, one := range s["$defs"].(object) {
		d.schemas[name] = nullable(one.(object))
	}
	return object{"$ref": "#/components/schemas/" + d.name(t)}
}

// nullable lets required lists and maps be null, which is how Go writes empty
// ones.
func nullable(s object) object {
	required, _ := s["required"].([]any)
	for name, property := range s["properties"].(object) {
		p, ok := property.(object)
		if !ok || !slices.Contains(required, any(name)) {
			continue
		}
		if _, isMap := p["additionalProperties"]; p["type"] == "array" || isMap {
			p["type"] = []any{p["type"], "null"}
		}
	}
	return s
}

func (d *describer) operation(r route) object {
	op := object{
		"operationId": operationID(r), "summary": r.summary, "description": "Needs role `" + string(r.role) + "`.", "x-role": r.role,
		"responses": object{"200": d.response(r), "default": object{"$ref": "#/components/responses/Error"}},
	}
	parameters := []any{}
	for _, p := range r.query {
		parameters = append(parameters, object{"name": p.name, "in": "query", "description": p.doc, "schema": kind(p.kind)})
	}
	if slices.Contains(r.formats, typeSSE) {
		parameters = append(parameters, object{"name": "Last-Event-ID", "in": "header", "description": "as after", "schema": kind("integer")})
	}
	if len(parameters) > 0 {
		op["parameters"] = parameters
	}
	switch {
	case r.tar:
		op["requestBody"] = object{"required": true, "content": object{typeTar: object{}}}
	case r.file != "":
		op["requestBody"] = object{"required": true, "content": object{r.file: object{}}}
	case r.body != nil:
		op["requestBody"] = object{"required": true, "content": object{typeJSON: object{"schema": d.refer(reflect.TypeOf(r.body))}}}
	}
	return op
}

func operationID(r route) string {
	words := strings.FieldsFunc(strings.TrimPrefix(r.path, "/v1"), func(c rune) bool { return c == '/' || c == '.' })
	return strings.ToLower(r.method) + "_" + strings.Join(words, "_")
}

func kind(k string) object {
	if k == "time" {
		return object{"type": "string", "format": "date-time"}
	}
	return object{"type": k}
}

func (d *describer) response(r route) object {
	if r.text {
		return object{"description": "It was done.", "content": object{"text/plain": object{"schema": object{"type": "string"}}}}
	}
	if slices.Contains(r.formats, typeBackup) {
		return object{"description": "The file. When it breaks off, the trailer Kiln-Error has the error.", "content": object{typeBackup: object{}}}
	}
	result := d.refer(reflect.TypeOf(r.result))
	if !r.frames {
		return object{"description": "It was done.", "content": object{typeJSON: object{"schema": result}}}
	}
	content := object{}
	if slices.Contains(r.formats, typeSSE) {
		content[typeSSE] = object{"schema": object{"type": "string"}}
	}
	if slices.Contains(r.formats, typeJSON) {
		content[typeJSON] = object{"schema": result}
		result = object{"type": "object"}
	}
	properties := object{"result": result}
	if r.path == "/v1/logs" {
		properties["log"] = d.refer(reflect.TypeFor[kiln.LogLine]())
	}
	content[typeStream] = object{"schema": object{"allOf": []any{d.refer(reflect.TypeFor[Frame]()), object{"properties": properties}}}}
	return object{"description": "A stream of frames, one a line; the last has the result, or the error.", "content": content}
}

// TestAnswersAreAsDescribed compares what JSON makes of every type of the API,
// with all fields set and with none, with what is served as its description.
func TestAnswersAreAsDescribed(t *testing.T) {
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(openapi))
	if err != nil {
		t.Fatal(err)
	}
	if err := compiler.AddResource("kiln.json", document); err != nil {
		t.Fatal(err)
	}
	d := &describer{t: t, types: map[string]reflect.Type{}}
	checked := 0
	check := func(v any) {
		typ := reflect.TypeOf(v)
		if v == nil || typ.Kind() != reflect.Struct || typ == reflect.TypeFor[struct{}]() {
			return
		}
		name := d.name(typ)
		s, err := compiler.Compile("kiln.json#/components/schemas/" + name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		for _, value := range []reflect.Value{reflect.Zero(typ), filled(typ, 4)} {
			checked++
			text, err := json.Marshal(value.Interface())
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Validate(instance); err != nil {
				t.Errorf("%s is described otherwise: %v\n%s", name, err, text)
			}
		}
	}
	for _, r := range newAPI(Options{}).routes() {
		check(r.body)
		check(r.result)
	}
	check(Frame{})
	check(kiln.LogLine{})
	if checked < 20 {
		t.Errorf("only %d values were checked", checked)
	}
}

// filled is a value of a type in which every field is set.
func filled(t reflect.Type, depth int) reflect.Value {
	v := reflect.New(t).Elem()
	switch t {
	case reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)))
		return v
	case reflect.TypeFor[kiln.Digest]():
		v.Set(reflect.ValueOf(kiln.DigestOf(nil)))
		return v
	case reflect.TypeFor[netip.Addr]():
		v.Set(reflect.ValueOf(netip.MustParseAddr("192.0.2.1")))
		return v
	case reflect.TypeFor[netip.Prefix]():
		v.Set(reflect.ValueOf(netip.MustParsePrefix("192.0.2.0/24")))
		return v
	case reflect.TypeFor[json.RawMessage]():
		v.Set(reflect.ValueOf(json.RawMessage(`{"any":1}`)))
		return v
	}
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); f.IsExported() && f.Tag.Get("json") != "-" {
				v.Field(i).Set(filled(f.Type, depth))
			}
		}
	case reflect.Pointer:
		if depth > 0 {
			v.Set(reflect.New(t.Elem()))
			v.Elem().Set(filled(t.Elem(), depth-1))
		}
	case reflect.Slice:
		v.Set(reflect.Append(v, filled(t.Elem(), depth-1)))
	case reflect.Map:
		v.Set(reflect.MakeMap(t))
		v.SetMapIndex(filled(t.Key(), depth-1), filled(t.Elem(), depth-1))
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Float32, reflect.Float64:
		v.SetFloat(0.5)
	default: // no type of the API
	}
	return v
}

// TestEveryRouteHasARole is the table of who may ask for what. It is written
// here a second time, so that a route that is new, or that less is needed for
// than before, is a decision.
func TestEveryRouteHasARole(t *testing.T) {
	want := map[string]kiln.Role{
		"GET /v1/version":          kiln.RoleRead,
		"GET /v1/openapi.json":     kiln.RoleRead,
		"GET /v1/status":           kiln.RoleRead,
		"GET /v1/instances":        kiln.RoleRead,
		"GET /v1/releases":         kiln.RoleRead,
		"GET /v1/events":           kiln.RoleRead,
		"GET /v1/logs":             kiln.RoleRead,
		"GET /v1/config":           kiln.RoleAdmin,
		"GET /v1/diff":             kiln.RoleRead,
		"GET /metrics":             kiln.RoleRead,
		"POST /v1/blobs/missing":   kiln.RoleDeploy,
		"POST /v1/blobs":           kiln.RoleDeploy,
		"POST /v1/plan":            kiln.RoleDeploy,
		"POST /v1/push":            kiln.RoleDeploy,
		"POST /v1/verify":          kiln.RoleDeploy,
		"POST /v1/up":              kiln.RoleDeploy,
		"POST /v1/bake":            kiln.RoleDeploy,
		"POST /v1/rollback":        kiln.RoleDeploy,
		"POST /v1/down":            kiln.RoleDeploy,
		"POST /v1/backup":          kiln.RoleAdmin,
		"POST /v1/ledger/verify":   kiln.RoleAdmin,
		"POST /v1/ledger/accept":   kiln.RoleAdmin,
		"POST /v1/reload":          kiln.RoleAdmin,
		"POST /v1/notify/test":     kiln.RoleAdmin,
		"POST /v1/shutdown":        kiln.RoleAdmin,
		"GET /v1/keys":             kiln.RoleRead,
		"POST /v1/keys/rotate":     kiln.RoleAdmin,
		"POST /v1/keys/distrust":   kiln.RoleAdmin,
		"GET /v1/scan":             kiln.RoleRead,
		"GET /v1/sbom":             kiln.RoleRead,
		"GET /v1/database":         kiln.RoleRead,
		"POST /v1/database/update": kiln.RoleAdmin,
		"POST /v1/database/import": kiln.RoleAdmin,
		"POST /v1/repave":          kiln.RoleDeploy,
	}
	got := map[string]kiln.Role{}
	for _, r := range newAPI(Options{}).routes() {
		got[r.method+" "+r.path] = r.role
		if !kiln.RoleAdmin.Includes(r.role) {
			t.Errorf("%s %s needs role %q, which is none", r.method, r.path, r.role)
		}
		if r.method != http.MethodGet && r.role == kiln.RoleRead {
			t.Errorf("%s %s can be asked by who may only look", r.method, r.path)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func ExamplePage() {
	b, _ := json.Marshal(pageOf([]string{"a", "b", "c"}, 2, func(s string) any { return s }))
	fmt.Println(string(b))
	// Output: {"items":["a","b"],"next":"ImIi"}
}
