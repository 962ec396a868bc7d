package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// document is a parsed definition whose blocks fit the schema.
type document struct {
	schema *blockSchema
	blocks map[string][]*hclsyntax.Block // by kind, in the order of files and lines
	locals map[string]*hclsyntax.Attribute
	// broken is true when a file could not be read: what others refer to may
	// be in it.
	broken bool
}

// readDocument parses the definition's files. It returns nil where there is
// none, or none that could be read.
func readDocument(f *folder, r *report) *document {
	names, err := Files(f.fsys)
	if err != nil {
		r.error(hcl.Range{}, "Cannot read the definition", "%s", sentence(err))
		return nil
	}
	if len(names) > maxFiles {
		r.error(hcl.Range{}, "Too many files", "The folder has %d *.hcl files; a definition has at most %d.", len(names), maxFiles)
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
			r.error(hcl.Range{}, "Cannot read "+name, "%s", sentence(err))
			doc.broken = true
			continue
		}
		body := parseBounded(name, src, r)
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
func (d *document) add(body *hclsyntax.Body, r *report) {
	checkBody(body, d.schema, r)
	for _, b := range body.Blocks {
		if s, ok := d.schema.block(b.Type); !ok || len(b.Labels) != len(s.Labels) {
			continue // reported
		}
		d.blocks[b.Type] = append(d.blocks[b.Type], b)
		if len(d.blocks[b.Type]) == maxBlocks+1 {
			r.error(b.DefRange(), "Too many blocks", "A definition has at most %d blocks of a kind.", maxBlocks)
		}
		if b.Type != "locals" {
			continue
		}
		for _, a := range attributes(b.Body) {
			if first, ok := d.locals[a.Name]; ok {
				r.error(a.NameRange, "Duplicate local", "local.%s is defined at %s already.", a.Name, place(first.NameRange))
				continue
			}
			d.locals[a.Name] = a
		}
	}
}

// checkNames reports blocks of one kind with the same name.
func (d *document) checkNames(r *report) {
	for kind, blocks := range d.blocks {
		if kind == "locals" {
			continue
		}
		seen := map[string]*hclsyntax.Block{}
		for _, b := range blocks {
			if first, ok := seen[b.Labels[0]]; ok {
				r.error(b.LabelRanges[0], "Duplicate "+kind, "%s %q is defined at %s already.", kind, b.Labels[0], place(first.DefRange()))
				continue
			}
			seen[b.Labels[0]] = b
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

// attributes returns a body's arguments in the order of their lines.
func attributes(body *hclsyntax.Body) []*hclsyntax.Attribute {
	var out []*hclsyntax.Attribute
	for _, a := range body.Attributes {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *hclsyntax.Attribute) int { return a.NameRange.Start.Byte - b.NameRange.Start.Byte })
	return out
}

// checkBody compares a body with its schema: what is unknown, missing,
// repeated, or of a later version.
func checkBody(body *hclsyntax.Body, s *blockSchema, r *report) {
	for _, a := range attributes(body) {
		if !s.Free && !s.hasArgument(a.Name) {
			unknownArgument(a, s, r)
		}
	}
	for _, want := range s.Arguments {
		if _, ok := body.Attributes[want.Name]; want.Required && !ok {
			r.error(body.MissingItemRange(), "Missing argument", "The argument %q is required here.", want.Name)
		}
	}
	first := map[string]*hclsyntax.Block{}
	for _, b := range body.Blocks {
		inner, ok := s.block(b.Type)
		if !ok {
			unknownBlock(b, s, r)
			continue
		}
		if before, ok := first[b.Type]; ok && inner.Single {
			r.error(b.DefRange(), "Duplicate block", "There is a %s block at %s already; one is allowed here.", b.Type, place(before.DefRange()))
		}
		first[b.Type] = b
		if checkLabels(b, inner, r) {
			checkBody(b.Body, inner, r)
		}
	}
}

func unknownArgument(a *hclsyntax.Attribute, s *blockSchema, r *report) {
	_, isBlock := s.block(a.Name)
	switch {
	case slices.Contains(s.Later, a.Name):
		later(a.NameRange, a.Name, r)
	case isBlock:
		r.error(a.NameRange, "Unsupported argument", "%q is a block: write it as %s { ... }, without the equals sign.", a.Name, a.Name)
	case len(s.Arguments) == 0:
		r.error(a.NameRange, "Unsupported argument", "Arguments belong inside of blocks; for a name of your own, write it into locals { ... }.")
	default:
		r.error(a.NameRange, "Unsupported argument", "There is no argument %q here.%s", a.Name, suggest(a.Name, s.argumentNames()))
	}
}

func unknownBlock(b *hclsyntax.Block, s *blockSchema, r *report) {
	switch {
	case slices.Contains(s.Later, b.Type):
		later(b.TypeRange, b.Type, r)
	case s.hasArgument(b.Type):
		r.error(b.TypeRange, "Unsupported block", "%q is an argument: write it as %s = ..., with an equals sign.", b.Type, b.Type)
	default:
		r.error(b.TypeRange, "Unsupported block", "There is no block %q here.%s", b.Type, suggest(b.Type, s.blockNames()))
	}
}

func later(at hcl.Range, what string, r *report) {
	r.error(at, "Not supported yet", "%s is not supported yet by this version. Remove it, or use a version of Kiln that knows it.", what)
}

// checkLabels says whether the block's labels are what its kind wants.
func checkLabels(b *hclsyntax.Block, s *blockSchema, r *report) bool {
	if len(b.Labels) != len(s.Labels) {
		var example strings.Builder
		example.WriteString(s.Name)
		for _, l := range s.Labels {
			fmt.Fprintf(&example, " %q", strings.ToUpper(l))
		}
		r.error(b.DefRange(), "Wrong labels", "It has %d, and is written %s { ... }.", len(b.Labels), example.String())
		return false
	}
	if len(b.Labels) == 0 {
		return true
	}
	label, at := b.Labels[0], b.LabelRanges[0]
	switch {
	case slices.Contains(s.LaterKinds, label):
		later(at, s.Name+` "`+label+`"`, r)
		return false
	case s.Kinds != nil && !slices.Contains(s.Kinds, label):
		r.error(at, "Unknown "+s.Labels[0], "There is no %s %q.%s", s.Labels[0], label, suggest(label, s.Kinds))
		return false
	case s.Kinds != nil:
		return true
	}
	if problem := badName(s.Labels[0], label); problem != "" {
		r.error(at, "Invalid name", "%s", problem)
		return false
	}
	return true
}
