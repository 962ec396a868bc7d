package hclfile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// Argument is one argument of a block. Type, Default and Range are the words
// that the reference shows.
type Argument struct {
	Name     string
	Type     string
	Default  string // empty means none
	Range    string
	Doc      string
	Required bool
}

// Block is one kind of block, or the file as a whole.
type Block struct {
	Name   string
	Labels []string // what each label is; labels are names unless Kinds is set
	Free   bool     // the block's arguments may have any name
	// Single blocks stand at most once in their parent.
	Single bool
	// Kinds are the values that the label may have; nil for any name.
	Kinds []string
	// Later are argument and block names that a later version understands.
	Later []string
	// LaterKinds are labels that a later version understands.
	LaterKinds []string
	Doc        string
	Arguments  []Argument
	Blocks     []Block
}

// HasArgument says whether the block has an argument of a name.
func (s *Block) HasArgument(name string) bool {
	return slices.ContainsFunc(s.Arguments, func(a Argument) bool { return a.Name == name })
}

// Block returns the kind of block that may stand inside.
func (s *Block) Block(name string) (*Block, bool) {
	for i := range s.Blocks {
		if s.Blocks[i].Name == name {
			return &s.Blocks[i], true
		}
	}
	return nil, false
}

func (s *Block) argumentNames() []string {
	var names []string
	for _, a := range s.Arguments {
		names = append(names, a.Name)
	}
	return names
}

func (s *Block) blockNames() []string {
	var names []string
	for i := range s.Blocks {
		names = append(names, s.Blocks[i].Name)
	}
	return names
}

// Arguments returns a body's arguments in the order of their lines.
func Arguments(body *hclsyntax.Body) []*hclsyntax.Attribute {
	var out []*hclsyntax.Attribute
	for _, a := range body.Attributes {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *hclsyntax.Attribute) int { return a.NameRange.Start.Byte - b.NameRange.Start.Byte })
	return out
}

// BadName returns what is wrong with a label that names what kind says, or
// nothing.
type BadName func(kind, label string) string

// Check compares a body with its schema: what is unknown, missing, repeated,
// or of a later version.
func Check(body *hclsyntax.Body, s *Block, bad BadName, r *Report) {
	for _, a := range Arguments(body) {
		if !s.Free && !s.HasArgument(a.Name) {
			unknownArgument(a, s, r)
		}
	}
	for _, want := range s.Arguments {
		if _, ok := body.Attributes[want.Name]; want.Required && !ok {
			r.Error(body.MissingItemRange(), "Missing argument", "The argument %q is required here.", want.Name)
		}
	}
	first := map[string]*hclsyntax.Block{}
	for _, b := range body.Blocks {
		inner, ok := s.Block(b.Type)
		if !ok {
			unknownBlock(b, s, r)
			continue
		}
		if before, ok := first[b.Type]; ok && inner.Single {
			r.Error(b.DefRange(), "Duplicate block", "There is a %s block at %s already; one is allowed here.", b.Type, Place(before.DefRange()))
		}
		first[b.Type] = b
		if checkLabels(b, inner, bad, r) {
			Check(b.Body, inner, bad, r)
		}
	}
}

func unknownArgument(a *hclsyntax.Attribute, s *Block, r *Report) {
	_, isBlock := s.Block(a.Name)
	switch {
	case slices.Contains(s.Later, a.Name):
		later(a.NameRange, a.Name, r)
	case isBlock:
		r.Error(a.NameRange, "Unsupported argument", "%q is a block: write it as %s { ... }, without the equals sign.", a.Name, a.Name)
	case len(s.Arguments) == 0 && slices.Contains(s.blockNames(), "locals"):
		r.Error(a.NameRange, "Unsupported argument", "Arguments belong inside of blocks; for a name of your own, write it into locals { ... }.")
	case len(s.Arguments) == 0:
		r.Error(a.NameRange, "Unsupported argument", "Arguments belong inside of blocks.")
	default:
		r.Error(a.NameRange, "Unsupported argument", "There is no argument %q here.%s", a.Name, Suggest(a.Name, s.argumentNames()))
	}
}

func unknownBlock(b *hclsyntax.Block, s *Block, r *Report) {
	switch {
	case slices.Contains(s.Later, b.Type):
		later(b.TypeRange, b.Type, r)
	case s.HasArgument(b.Type):
		r.Error(b.TypeRange, "Unsupported block", "%q is an argument: write it as %s = ..., with an equals sign.", b.Type, b.Type)
	default:
		r.Error(b.TypeRange, "Unsupported block", "There is no block %q here.%s", b.Type, Suggest(b.Type, s.blockNames()))
	}
}

func later(at hcl.Range, what string, r *Report) {
	r.Error(at, "Not supported yet", "%s is not supported yet by this version. Remove it, or use a version of Kiln that knows it.", what)
}

// checkLabels says whether the block's labels are what its kind wants.
func checkLabels(b *hclsyntax.Block, s *Block, bad BadName, r *Report) bool {
	if len(b.Labels) != len(s.Labels) {
		var example strings.Builder
		example.WriteString(s.Name)
		for _, l := range s.Labels {
			fmt.Fprintf(&example, " %q", strings.ToUpper(l))
		}
		r.Error(b.DefRange(), "Wrong labels", "It has %d, and is written %s { ... }.", len(b.Labels), example.String())
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
		r.Error(at, "Unknown "+s.Labels[0], "There is no %s %q.%s", s.Labels[0], label, Suggest(label, s.Kinds))
		return false
	case s.Kinds != nil:
		return true
	}
	if problem := bad(s.Labels[0], label); problem != "" {
		r.Error(at, "Invalid name", "%s", problem)
		return false
	}
	return true
}

// CheckUnique reports blocks of one kind whose labels are the same.
func CheckUnique(kind string, blocks []*hclsyntax.Block, r *Report) {
	seen := map[string]*hclsyntax.Block{}
	for _, b := range blocks {
		if len(b.Labels) == 0 {
			continue
		}
		if first, ok := seen[b.Labels[0]]; ok {
			r.Error(b.LabelRanges[0], "Duplicate "+kind, "%s %q is defined at %s already.", kind, b.Labels[0], Place(first.DefRange()))
			continue
		}
		seen[b.Labels[0]] = b
	}
}

// Table is a block's part of a reference: what it is, a table of its
// arguments, and the blocks inside.
func (s *Block) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", s.Doc)
	if len(s.Arguments) > 0 {
		b.WriteString("| argument | type | default | range | meaning |\n|---|---|---|---|---|\n")
	}
	for _, a := range s.Arguments {
		def := a.Default
		if a.Required {
			def = "required"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", a.Name, a.Type, def, a.Range, a.Doc)
	}
	for i := range s.Blocks {
		many := "any number"
		if s.Blocks[i].Single {
			many = "at most one"
		}
		label := ""
		for _, l := range s.Blocks[i].Labels {
			label = ` "` + strings.ToUpper(l) + `"`
		}
		if i == 0 {
			b.WriteString("\nBlocks inside: ")
		} else {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "`%s%s` (%s)", s.Blocks[i].Name, label, many)
	}
	if len(s.Blocks) > 0 {
		b.WriteString(".\n")
	}
	return b.String()
}

// Paths lists the blocks inside by their names from the outermost, such as
// "image dockerfile".
func (s *Block) Paths() []string { return s.paths("") }

func (s *Block) paths(prefix string) []string {
	var out []string
	for i := range s.Blocks {
		path := strings.TrimSpace(prefix + " " + s.Blocks[i].Name)
		out = append(out, path)
		out = append(out, s.Blocks[i].paths(path)...)
	}
	return out
}
