package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

func (a *app) upCommand() *cobra.Command {
	var d definitionFlags
	command := &cobra.Command{
		Use: "up [ENVIRONMENT]", Short: "Bake, release and switch to what the definition says", GroupID: groupChange,
		Long: `Bakes the images whose inputs changed, makes a release, starts it beside the live
one, checks it, and switches the traffic in one step. What did not change is not
touched; when nothing changed, nothing is replaced. A failure before the switch
leaves the live release as it was.

Where no control plane runs on the data directory, one is started.`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			p := a.newProgress()
			result, err := a.up(command, d, environmentArg(args), p)
			p.close()
			if err != nil {
				return a.ended(err, p, "the rollout")
			}
			a.printDiagnostics(result.Warnings)
			if a.json {
				return a.printJSON(result)
			}
			return a.printUp(result)
		},
	}
	d.register(command)
	command.Flags().BoolVar(&d.again, "again", false, "apply a release although it was rolled back")
	return command
}

func (a *app) up(command *cobra.Command, d definitionFlags, environment string, p *progress) (control.UpResult, error) {
	ctx := command.Context()
	request, client, err := a.prepare(ctx, d, environment, p)
	if err != nil {
		return control.UpResult{}, err
	}
	result, err := client.Up(ctx, request.UpRequest, p.show)
	if err != nil {
		return result, err
	}
	return result, a.writeLock(request.lock, result.Lock, result.Overlay)
}

func (a *app) printUp(r control.UpResult) error {
	s := a.style(a.Out)
	title := fmt.Sprintf("%s: release %d is live", r.Environment, r.Release.Number)
	if r.Nothing {
		title = fmt.Sprintf("%s: nothing to replace; release %d is live", r.Environment, r.Release.Number)
	}
	if o := origin(r.Release.Source); o != "" {
		title += " (" + o + ")"
	}
	if err := a.print("%s\n", s.paint(bold, title)); err != nil {
		return err
	}
	if err := a.printSteps(r.Steps); err != nil {
		return err
	}
	if err := a.printBaked(r.Images); err != nil {
		return err
	}
	if err := a.printVerdicts(r.Verdicts); err != nil {
		return err
	}
	if err := a.printURLs(r.URLs); err != nil {
		return err
	}
	return a.print("%s\n", s.paint(dim, timing(r.Took, r.Phases)))
}

// printSteps shows a plan: what is created, replaced and destroyed, and why.
func (a *app) printSteps(steps []kiln.Step) error {
	s := a.style(a.Out)
	colors := map[kiln.Verb]string{kiln.VerbCreate: green, kiln.VerbReplace: yellow, kiln.VerbDestroy: red}
	width := 0
	for _, one := range steps {
		width = max(width, len(one.Service))
	}
	for _, one := range steps {
		verb := s.paint(colors[one.Verb], fmt.Sprintf("%-7s", one.Verb))
		if err := a.print("  %s  %-*s  %s\n", verb, width, one.Service, plural(one.Count, "instance")); err != nil {
			return err
		}
		for _, reason := range one.Reasons {
			if err := a.print("           %s\n", s.paint(dim, s.safe(reason))); err != nil {
				return err
			}
		}
	}
	return nil
}

// printBaked says in one line which images were baked and which were known.
func (a *app) printBaked(images map[string]kiln.Baked) error {
	var baked, cached []string
	for _, name := range slices.Sorted(maps.Keys(images)) {
		one := images[name]
		if one.Cached {
			cached = append(cached, name)
			continue
		}
		baked = append(baked, fmt.Sprintf("%s %s (%s, %s)", name, one.Manifest.Short(), size(one.Size), took(one.Took)))
	}
	if len(baked) > 0 {
		if err := a.print("  baked   %s\n", strings.Join(baked, ", ")); err != nil {
			return err
		}
	}
	if len(cached) > 0 {
		return a.print("  cached  %s\n", strings.Join(cached, ", "))
	}
	return nil
}

func (a *app) printURLs(urls []string) error {
	s := a.style(a.Out)
	for _, u := range urls {
		if err := a.print("  %s\n", s.paint(cyan, s.safe(u))); err != nil {
			return err
		}
	}
	return nil
}

// timing says where the time went, in the order in which it went.
func timing(total time.Duration, phases map[string]time.Duration) string {
	order := []string{"bake", "prove", "seal", "start", "verify", "switch", "park", "undo"}
	names := slices.SortedFunc(maps.Keys(phases), func(x, y string) int {
		return cmp.Or(cmp.Compare(slices.Index(order, x), slices.Index(order, y)), strings.Compare(x, y))
	})
	var parts []string
	for _, name := range names {
		if phases[name] > 0 {
			parts = append(parts, name+" "+took(phases[name]))
		}
	}
	text := "took " + took(total)
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	return text
}
