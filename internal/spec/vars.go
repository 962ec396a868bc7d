package spec

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

// variablePrefix begins the names of process environment variables that give
// values.
const variablePrefix = "KILN_VAR_"

// ParseVars collects variables' values for Options.Values. Flags are
// "name=value" and win over files, which win over KILN_VAR_name=value of
// environ. A file whose name ends in .json is a JSON object; any other is lines
// of `name = value` with constants. Two files may not disagree.
func ParseVars(flags []string, files map[string][]byte, environ []string) (map[string]json.RawMessage, error) {
	out := map[string]json.RawMessage{}
	for _, one := range environ {
		name, value, ok := strings.Cut(one, "=")
		if name, found := strings.CutPrefix(name, variablePrefix); ok && found {
			out[name] = quote(value)
		}
	}
	fromFiles := map[string]string{}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		values, err := parseVarFile(file, files[file])
		if err != nil {
			return nil, err
		}
		for name, value := range values {
			if before, ok := fromFiles[name]; ok && string(out[name]) != string(value) {
				return nil, kiln.Errorf(kiln.CodeInvalid, "keep one of the two", "variable %q has different values in %s and %s", name, before, file)
			}
			fromFiles[name], out[name] = file, value
		}
	}
	given := map[string]bool{}
	for _, flag := range flags {
		name, value, ok := strings.Cut(flag, "=")
		if !ok || badName("variable", name) != "" {
			return nil, kiln.Errorf(kiln.CodeInvalid, "write --var name=value", "--var %q does not name a variable and its value", flag)
		}
		if given[name] {
			return nil, kiln.Errorf(kiln.CodeInvalid, "keep one of them", "--var %s is given twice", name)
		}
		given[name] = true
		out[name] = quote(value)
	}
	return out, nil
}

func quote(s string) json.RawMessage {
	b, err := json.Marshal(s)
	if err != nil { // a string can always be encoded
		panic(err)
	}
	return b
}

func parseVarFile(name string, src []byte) (map[string]json.RawMessage, error) {
	if strings.HasSuffix(name, ".json") {
		var out map[string]json.RawMessage
		if err := json.Unmarshal(src, &out); err != nil {
			return nil, kiln.Errorf(kiln.CodeInvalid, "write an object: {\"name\": value}", "read %s: %w", name, err)
		}
		return out, nil
	}
	r := &hclfile.Report{}
	out := map[string]json.RawMessage{}
	if body := hclfile.Parse(name, src, r); body != nil {
		varAttributes(body, r, out)
	}
	if r.Failed() {
		err := invalid(r.List())
		err.Message = "the variables' file " + name + " has errors"
		return nil, err
	}
	return out, nil
}

func varAttributes(body *hclsyntax.Body, r *hclfile.Report, out map[string]json.RawMessage) {
	for _, b := range body.Blocks {
		r.Error(b.DefRange(), "Unsupported block", "A file of variables holds lines of name = value only.")
	}
	s := newScope(&document{schema: rootSchema()}, newFolder(nil), r)
	for _, a := range hclfile.Arguments(body) {
		v, ok := s.literal(a)
		if !ok {
			continue
		}
		raw, err := ctyjson.Marshal(v, v.Type())
		if err != nil {
			r.HCL(hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "Unsuitable value", Detail: err.Error(), Subject: a.Expr.Range().Ptr()}})
			continue
		}
		out[a.Name] = raw
	}
}
