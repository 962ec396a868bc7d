package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/gate"
)

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff [RELEASE] RELEASE", Short: "Show what two releases differ in", GroupID: groupLook,
		Long: `Shows what the second release changes of the first: the definition's files, and
of each image the packages, the findings of today's database, the files and the
size. A release is ENVIRONMENT, whose live one is meant, or ENVIRONMENT/NUMBER.
A single one is compared with the one before it.`,
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			from, to := "", args[len(args)-1]
			if len(args) == 2 {
				from = args[0]
			}
			diff, err := client.Diff(command.Context(), from, to)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(diff)
			}
			return a.printDiff(diff)
		},
	}
}

func (a *app) printDiff(d kiln.ReleaseDiff) error {
	s := a.style(a.Out)
	title := fmt.Sprintf("%s/%d to %s/%d", d.From.Environment, d.From.Release, d.To.Environment, d.To.Release)
	if d.Same() {
		return a.print("%s\n", s.paint(bold, title+": the definition's files and the images are the same"))
	}
	if err := a.print("%s\n", s.paint(bold, title)); err != nil {
		return err
	}
	for _, f := range d.Definition {
		if err := a.printFileChange(f); err != nil {
			return err
		}
	}
	for _, image := range d.Images {
		if err := a.printImageChange(image, 0); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printFileChange(f kiln.FileChange) error {
	s := a.style(a.Out)
	if err := a.print("  %s %s\n", f.Change, s.safe(f.Path)); err != nil {
		return err
	}
	for _, line := range f.Lines {
		color := ""
		switch {
		case strings.HasPrefix(line, "+"):
			color = green
		case strings.HasPrefix(line, "-"):
			color = red
		case strings.HasPrefix(line, "@@"):
			color = dim
		}
		if err := a.print("    %s\n", s.paint(color, s.safe(line))); err != nil {
			return err
		}
	}
	if f.More == 0 {
		return nil
	}
	return a.print("    and %s more\n", plural(f.More, "line"))
}

// printImageChange says what changes in an image; most bounds the lines of a
// list, 0 does not.
func (a *app) printImageChange(image kiln.ImageChange, most int) error {
	s := a.style(a.Out)
	head := fmt.Sprintf("  image %s: %s to %s, %s to %s", s.safe(image.Name), image.From.Short(), image.To.Short(), size(image.FromSize), size(image.ToSize))
	switch {
	case image.From == "":
		head = fmt.Sprintf("  image %s: new, %s, %s", s.safe(image.Name), image.To.Short(), size(image.ToSize))
	case image.To == "":
		head = fmt.Sprintf("  image %s: gone, was %s", s.safe(image.Name), image.From.Short())
	}
	if err := a.print("%s\n", head); err != nil {
		return err
	}
	var lines []cell
	for _, p := range image.Packages {
		lines = append(lines, packageLine(p))
	}
	lines = bounded(lines, most, "package")
	var findings []cell
	for _, f := range image.Introduced {
		findings = append(findings, cell{fmt.Sprintf("+ finding %s %s, %s", f.Severity, f.ID, gate.Where(f)), red})
	}
	for _, f := range image.Fixed {
		findings = append(findings, cell{fmt.Sprintf("- finding %s %s, %s", f.Severity, f.ID, gate.Where(f)), green})
	}
	lines = append(lines, bounded(findings, most, "finding")...)
	for _, note := range image.Notes {
		lines = append(lines, cell{note, dim})
	}
	for _, line := range lines {
		if err := a.print("    %s\n", s.paint(line.sgr, s.safe(line.text))); err != nil {
			return err
		}
	}
	if image.Files == nil {
		return nil
	}
	return a.printEntries(*image.Files, "    ")
}

func packageLine(p kiln.PackageChange) cell {
	switch {
	case p.From == "":
		return cell{"+ package " + p.Name + " " + p.To, green}
	case p.To == "":
		return cell{"- package " + p.Name + " " + p.From, red}
	}
	return cell{"  package " + p.Name + " " + p.From + " to " + p.To, ""}
}

// bounded leaves out what is more than most lines, and says how many.
func bounded(lines []cell, most int, noun string) []cell {
	if most == 0 || len(lines) <= most {
		return lines
	}
	return append(lines[:most:most], cell{"and " + plural(len(lines)-most, noun) + " more", dim})
}
