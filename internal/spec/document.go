package spec

import (
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/kilnproject/kiln/internal/hclfile"
)

// document is a parsed definition whose blocks fit the schema.
type document struct {
	schema *hclfile.Block
	blocks map[string][]*hclsyntax.Block // by kind, in the order of files and lines
	locals map[string]*hclsyntax.Attribute
	// broken is true when a file could not be read: what others refer to may
	// be in it.
	broken bool
}

// readDocument parses the definition's files. It returns nil where there is
// none, or none that could be read.
func readDocument(f *folder, r *hclfile.Report) *document {
	names, err := Files(f.fsys)
	if err != nil {
		r.Error(hcl.Range{}, "Cannot read the definition", "%s", hclfile.Sentence(err))
		return nil
	}
	if len(names) > maxFiles {
		r.Error(hcl.Range{}, "Too many files", "The folder has %d *.hcl files; a definition has at most %d.", len(names), maxFiles)
		return nil
	}
	doc := &document{
		schema: rootSchema(),
		blocks: map[string][]*hclsyntax.Block{},
		locals: map[string]*hclsyntax.Attribute{},
	}
	for _, name := range names {
		src, err := f.file(name)
		if err != nil {
			r.Error(hcl.Range{}, "Cannot read "+name, "%s", hclfile.Sentence(err))
			doc.broken = true
			continue
		}
		body := hclfile.Parse(name, src, r)
		if body == nil {
			doc.broken = true
			continue
		}
		doc.add(body, r)
	}
	doc.checkNames(r)
	if len(names) == 0 {
		return nil
	}
	return doc
}

// add takes a file's blocks that fit the schema and reports the others.
func (d *document) add(body *hclsyntax.Body, r *hclfile.Report) {
	hclfile.Check(body, d.schema, badName, r)
	for _, b := range body.Blocks {
		if s, ok := d.schema.Block(b.Type); !ok || len(b.Labels) != len(s.Labels) {
			continue // reported
		}
		d.blocks[b.Type] = append(d.blocks[b.Type], b)
		if len(d.blocks[b.Type]) == maxBlocks+1 {
			r.Error(b.DefRange(), "Too many blocks", "A definition has at most %d blocks of a kind.", maxBlocks)
		}
		if b.Type != "locals" {
			continue
		}
		for _, a := range hclfile.Arguments(b.Body) {
			if first, ok := d.locals[a.Name]; ok {
				r.Error(a.NameRange, "Duplicate local", "local.%s is defined at %s already.", a.Name, hclfile.Place(first.NameRange))
				continue
			}
			d.locals[a.Name] = a
		}
	}
}

// checkNames reports blocks of one kind with the same name.
func (d *document) checkNames(r *hclfile.Report) {
	for kind, blocks := range d.blocks {
		if kind != "locals" {
			hclfile.CheckUnique(kind, blocks, r)
		}
	}
}

// named returns the block of a kind with a name.
func (d *document) named(kind, name string) *hclsyntax.Block {
	for _, b := range d.blocks[kind] {
		if len(b.Labels) > 0 && b.Labels[0] == name {
			return b
		}
	}
	return nil
}

// names returns the names of a kind's blocks, sorted.
func (d *document) names(kind string) []string {
	var out []string
	for _, b := range d.blocks[kind] {
		if len(b.Labels) > 0 {
			out = append(out, b.Labels[0])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
