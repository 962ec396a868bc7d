package cli

import (
	"io"
	"strings"
	"unicode/utf8"
)

// table aligns columns. The last one is never padded, and columns that are
// empty in every row are left out.
type table struct {
	head []string
	rows [][]cell
}

type cell struct {
	text string
	sgr  string // empty for the terminal's own colour
}

func plain(text string) cell { return cell{text: text} }

func newTable(head ...string) *table { return &table{head: head} }

func (t *table) row(cells ...cell) { t.rows = append(t.rows, cells) }

// write prints the table, each line after indent.
func (t *table) write(w io.Writer, s style, indent string) error {
	widths := make([]int, len(t.head))
	last := 0
	for i := range t.head {
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
		if widths[i] > 0 {
			widths[i] = max(widths[i], len(t.head[i]))
			last = i
		}
	}
	head := make([]cell, len(t.head))
	for i, text := range t.head {
		head[i] = cell{text, dim}
	}
	var b strings.Builder
	for _, row := range append([][]cell{head}, t.rows...) {
		b.WriteString(indent)
		for i, c := range row {
			if widths[i] == 0 {
				continue
			}
			b.WriteString(s.paint(c.sgr, c.text))
			if i < last {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
