package hclfile

import (
	"bytes"

	"github.com/hashicorp/hcl/v2"
)

// ConflictMarker finds the first line that Git writes into a file with a
// merge conflict.
func ConflictMarker(name string, src []byte) (hcl.Range, bool) {
	offset := 0
	for n, l := range bytes.Split(src, []byte("\n")) {
		if bytes.HasPrefix(l, []byte("<<<<<<< ")) || bytes.HasPrefix(l, []byte(">>>>>>> ")) {
			start := hcl.Pos{Line: n + 1, Column: 1, Byte: offset}
			end := hcl.Pos{Line: n + 1, Column: 8, Byte: offset + 7}
			return hcl.Range{Filename: name, Start: start, End: end}, true
		}
		offset += len(l) + 1
	}
	return hcl.Range{}, false
}
