package spec

import (
	"bytes"

	"github.com/hashicorp/hcl/v2/hclwrite"

	"github.com/kilnproject/kiln/internal/hclfile"
)

// Format returns a definition's file in its canonical form: the spacing and
// the alignment of the hcl library, one final newline, no carriage returns.
// What does not parse is refused with its diagnostics; name is used in them.
func Format(name string, src []byte) ([]byte, error) {
	r := &hclfile.Report{}
	if hclfile.Parse(name, src, r) == nil || r.Failed() {
		err := invalid(r.List())
		err.Message = name + " cannot be formatted: it does not parse"
		return nil, err
	}
	return format(src), nil
}

// format repeats until nothing moves: the alignment of comments may depend on
// what an earlier pass moved.
func format(src []byte) []byte {
	src = bytes.ReplaceAll(src, []byte("\r\n"), []byte("\n"))
	for range 4 {
		out := append(bytes.TrimRight(hclwrite.Format(src), "\n \t"), '\n')
		if bytes.Equal(out, src) {
			break
		}
		src = out
	}
	if len(bytes.TrimSpace(src)) == 0 {
		return nil
	}
	return src
}
