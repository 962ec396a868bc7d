package spec

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// newFunctions returns what expressions may call. All are pure but file,
// fileexists and filesha256, which read the definition's folder.
func newFunctions(f *folder, m *meter) map[string]function.Function {
	all := map[string]function.Function{
		"abs": stdlib.AbsoluteFunc, "ceil": stdlib.CeilFunc, "floor": stdlib.FloorFunc, "log": stdlib.LogFunc,
		"max": stdlib.MaxFunc, "min": stdlib.MinFunc, "parseint": stdlib.ParseIntFunc, "pow": stdlib.PowFunc,
		"signum": stdlib.SignumFunc, "int": stdlib.IntFunc,

		"chomp": stdlib.ChompFunc, "endswith": textTest(strings.HasSuffix), "format": stdlib.FormatFunc,
		"formatlist": stdlib.FormatListFunc, "indent": stdlib.IndentFunc, "join": stdlib.JoinFunc,
		"lower": stdlib.LowerFunc, "regex": stdlib.RegexFunc, "regexall": stdlib.RegexAllFunc,
		"regexreplace": stdlib.RegexReplaceFunc, "replace": stdlib.ReplaceFunc, "split": stdlib.SplitFunc,
		"startswith": textTest(strings.HasPrefix), "strlen": stdlib.StrlenFunc, "strrev": stdlib.ReverseFunc,
		"substr": stdlib.SubstrFunc, "title": stdlib.TitleFunc, "trim": stdlib.TrimFunc,
		"trimprefix": stdlib.TrimPrefixFunc, "trimspace": stdlib.TrimSpaceFunc, "trimsuffix": stdlib.TrimSuffixFunc,
		"upper": stdlib.UpperFunc,

		"chunklist": stdlib.ChunklistFunc, "coalesce": stdlib.CoalesceFunc, "coalescelist": stdlib.CoalesceListFunc,
		"compact": stdlib.CompactFunc, "concat": stdlib.ConcatFunc, "contains": stdlib.ContainsFunc,
		"distinct": stdlib.DistinctFunc, "element": stdlib.ElementFunc, "flatten": stdlib.FlattenFunc,
		"hasindex": stdlib.HasIndexFunc, "keys": stdlib.KeysFunc, "length": stdlib.LengthFunc,
		"lookup": stdlib.LookupFunc, "merge": stdlib.MergeFunc, "range": stdlib.RangeFunc,
		"reverse": stdlib.ReverseListFunc, "setintersection": stdlib.SetIntersectionFunc,
		"setproduct": stdlib.SetProductFunc, "setsubtract": stdlib.SetSubtractFunc,
		"setsymmetricdifference": stdlib.SetSymmetricDifferenceFunc, "setunion": stdlib.SetUnionFunc,
		"slice": stdlib.SliceFunc, "sort": stdlib.SortFunc, "values": stdlib.ValuesFunc, "zipmap": stdlib.ZipmapFunc,

		"base64decode": base64Decode(), "base64encode": text(func(s string) (string, error) {
			return base64.StdEncoding.EncodeToString([]byte(s)), nil
		}),
		"csvdecode": stdlib.CSVDecodeFunc, "jsondecode": stdlib.JSONDecodeFunc, "jsonencode": stdlib.JSONEncodeFunc,
		"sha256": text(func(s string) (string, error) { return sum([]byte(s)), nil }),

		"tobool": stdlib.MakeToFunc(cty.Bool), "tolist": stdlib.MakeToFunc(cty.List(cty.DynamicPseudoType)),
		"tomap": stdlib.MakeToFunc(cty.Map(cty.DynamicPseudoType)), "tonumber": stdlib.MakeToFunc(cty.Number),
		"toset": stdlib.MakeToFunc(cty.Set(cty.DynamicPseudoType)), "tostring": stdlib.MakeToFunc(cty.String),
		"can": tryfunc.CanFunc, "try": tryfunc.TryFunc,

		"file": fileText(f), "fileexists": fileExists(f), "filesha256": fileSum(f),
	}
	for name, cost := range costs() {
		all[name] = guarded(all[name], cost, m)
	}
	return all
}

// tooDear is what nobody can afford.
const tooDear = bytesPerUnit * (fuel + 1)

// costs are those of functions whose result or work can be much larger than
// their arguments, by name, in bytes.
func costs() map[string]func(args []cty.Value) int {
	return map[string]func(args []cty.Value) int{
		"distinct":     func(args []cty.Value) int { return bytesPerUnit * (product(elements(args[0]), elements(args[0])) / 10) },
		"format":       formatCost,
		"formatlist":   formatCost,
		"indent":       indentCost,
		"join":         joinCost,
		"jsondecode":   jsonCost,
		"regexreplace": func(args []cty.Value) int { return product(length(args[0])+1, length(args[2])+1) },
		"replace":      func(args []cty.Value) int { return product(length(args[0])+1, length(args[2])+1) },
		"setproduct": func(args []cty.Value) int {
			n := 1
			for _, a := range args {
				n = product(n, elements(a))
			}
			return min(tooDear, bytesPerUnit*product(n, len(args)))
		},
	}
}

// formatCost multiplies the longest list with all the text, and refuses widths
// of five digits and more.
func formatCost(args []cty.Value) int {
	if known(args[0]) && regexp.MustCompile(`%[^a-zA-Z%]*[0-9]{5}`).MatchString(args[0].AsString()) {
		return tooDear
	}
	n, size := 1, length(args[0])
	for _, a := range args[1:] {
		n = max(n, elements(a))
		size += length(a)
	}
	return product(n, size)
}

func indentCost(args []cty.Value) int {
	if !known(args[0]) || !known(args[1]) {
		return 1
	}
	spaces, _ := args[0].AsBigFloat().Int64()
	if spaces < 0 || spaces > 10_000 {
		return tooDear
	}
	return product(int(spaces), strings.Count(args[1].AsString(), "\n"))
}

// jsonCost refuses JSON that is nested too deep to decode on a stack.
func jsonCost(args []cty.Value) int {
	if !known(args[0]) || args[0].Type() != cty.String {
		return 1
	}
	depth, deepest := 0, 0
	for _, b := range []byte(args[0].AsString()) {
		switch b {
		case '[', '{':
			depth++
			deepest = max(deepest, depth)
		case ']', '}':
			depth--
		}
	}
	if deepest > 1000 {
		return tooDear
	}
	return length(args[0])
}

func joinCost(args []cty.Value) int {
	n := 0
	for _, a := range args[1:] {
		n += elements(a)
	}
	return product(n, length(args[0])+1)
}

func known(v cty.Value) bool { return v.IsKnown() && !v.IsNull() }

// elements counts a collection's; other values have none.
func elements(v cty.Value) int {
	if !known(v) || !v.CanIterateElements() {
		return 0
	}
	return v.LengthInt()
}

// length is a string's in bytes; other values have none.
func length(v cty.Value) int {
	if !known(v) || v.Type() != cty.String {
		return 0
	}
	return len(v.AsString())
}

// product multiplies without overflow; what nobody can afford is tooDear.
func product(a, b int) int {
	if a > 0 && b > (fuel+1)/a {
		return tooDear
	}
	return a * b
}

// guarded makes a function refuse what would cost more than is left.
func guarded(f function.Function, cost func([]cty.Value) int, m *meter) function.Function {
	return function.New(&function.Spec{
		Description: f.Description(), Params: f.Params(), VarParam: f.VarParam(),
		Type: func(args []cty.Value) (cty.Type, error) {
			if !m.afford(cost(args) / bytesPerUnit) {
				return cty.DynamicPseudoType, errors.New("the result would be too large")
			}
			return f.ReturnTypeForValues(args)
		},
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) { return f.Call(args) },
	})
}

// text makes a function of one string.
func text(apply func(string) (string, error)) function.Function { return textOf("str", apply) }

func textOf(parameter string, apply func(string) (string, error)) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: parameter, Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			s, err := apply(args[0].AsString())
			if err != nil {
				return cty.UnknownVal(cty.String), function.NewArgError(0, err)
			}
			return cty.StringVal(s), nil
		},
	})
}

func textTest(test func(s, part string) bool) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "str", Type: cty.String}, {Name: "part", Type: cty.String}},
		Type:   function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			return cty.BoolVal(test(args[0].AsString(), args[1].AsString())), nil
		},
	})
}

func base64Decode() function.Function {
	return text(func(s string) (string, error) {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return "", errors.New("it is not base64")
		}
		if !utf8.Valid(b) {
			return "", errors.New("what it encodes is not UTF-8 text")
		}
		return string(b), nil
	})
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func fileText(f *folder) function.Function {
	return textOf("path", func(name string) (string, error) {
		b, err := f.file(name)
		if err != nil {
			return "", fmt.Errorf("cannot read %q: %w", name, err)
		}
		if !utf8.Valid(b) {
			return "", fmt.Errorf("cannot read %q: it is not UTF-8 text", name)
		}
		return string(b), nil
	})
}

func fileSum(f *folder) function.Function {
	return textOf("path", func(name string) (string, error) {
		b, err := f.file(name)
		if err != nil {
			return "", fmt.Errorf("cannot read %q: %w", name, err)
		}
		return sum(b), nil
	})
}

// fileExists is true for what file can read.
func fileExists(f *folder) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}},
		Type:   function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			_, err := f.file(args[0].AsString())
			if errors.Is(err, fs.ErrNotExist) {
				return cty.False, nil
			}
			if err != nil {
				return cty.UnknownVal(cty.Bool), function.NewArgError(0, err)
			}
			return cty.True, nil
		},
	})
}
