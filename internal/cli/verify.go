package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

func (a *app) verifyCommand() *cobra.Command {
	var rebuild bool
	command := &cobra.Command{
		Use: "verify ENVIRONMENT[/NUMBER]", Short: "Check all that was signed of a release, and exit 1 when something does not hold", GroupID: groupLook,
		Long: `Checks the signature of a release's bundle, and of each image the signature, the
provenance, the newest verdict and the inventory, hashes all of it, and checks the
sealed files that instances run from against their signed records. Without a
number the live release is meant. A damaged blob is dropped: kiln up brings it
again.

With --rebuild the images are baked again from nothing: from the definition in
the bundle, and from the files, packages and bases that they were made from, as
long as the store has them. Where a digest differs it says which file of which
layer does.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			asked, err := control.ParseRelease(args[0])
			if err != nil {
				return err
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			p := a.newProgress()
			proof, err := client.Verify(command.Context(), control.ProofRequest{Environment: asked.Environment, Release: asked.Release, Rebuild: rebuild}, p.show)
			p.close()
			if err != nil {
				return a.ended(err, p, "the verification")
			}
			if err := a.printProof(proof); err != nil {
				return err
			}
			if !proof.Holds {
				return exitStatus(ExitFailed)
			}
			return nil
		},
	}
	command.Flags().BoolVar(&rebuild, "rebuild", false, "bake the images again from nothing, and compare")
	return command
}

func (a *app) printProof(proof kiln.ReleaseProof) error {
	if a.json {
		return a.printJSON(proof)
	}
	s := a.style(a.Out)
	t := newTable("SUBJECT", "DIGEST", "CHECK", "HOLDS", "DETAIL")
	failed := 0
	for _, c := range proof.Checks {
		holds := cell{"yes", green}
		switch c.Outcome {
		case kiln.OutcomeFail:
			holds = cell{"NO", red}
			failed++
		case kiln.OutcomeUnknown:
			holds = cell{"-", dim}
		case kiln.OutcomePass:
		}
		t.row(plain(escape(c.Subject)), plain(c.Digest.Short()), plain(string(c.Kind)), holds, plain(escape(c.Detail)))
	}
	if err := t.write(a.Out, s, ""); err != nil {
		return err
	}
	for _, image := range proof.Rebuilt {
		if err := a.printEntries(image, ""); err != nil {
			return err
		}
	}
	for _, c := range proof.Checks {
		if c.Outcome == kiln.OutcomeFail && c.Hint != "" {
			a.say("%s %s of %s: %s", a.style(a.Err).paint(cyan+";"+bold, "hint:"), c.Kind, s.safe(c.Subject), s.safe(c.Hint))
		}
	}
	name := fmt.Sprintf("release %d of %s", proof.Release, proof.Environment)
	if failed > 0 {
		return a.print("%s\n", s.paint(bold+";"+red, fmt.Sprintf("%s: %s not hold", name, does(failed))))
	}
	return a.print("%s\n", s.paint(bold, name+": all holds"))
}

// does is how many checks do something.
func does(n int) string {
	if n == 1 {
		return "1 check does"
	}
	return fmt.Sprintf("%d checks do", n)
}

// differing is how many entries of layers differ.
func differing(n int) string {
	if n == 1 {
		return "1 file or folder differs"
	}
	return fmt.Sprintf("%d files and folders differ", n)
}

// printEntries says what differs between the layers of two images.
func (a *app) printEntries(image kiln.ImageEntries, indent string) error {
	s := a.style(a.Out)
	if err := a.print("%s%s %s and %s: %s\n", indent, s.safe(image.Name), image.From.Short(), image.To.Short(), differing(image.Total)); err != nil {
		return err
	}
	for _, e := range image.Entries {
		if err := a.print("%s  layer %d  %s  %s\n", indent, e.Layer, s.safe(e.Path), s.paint(dim, s.safe(e.Change))); err != nil {
			return err
		}
	}
	if more := image.Total - len(image.Entries); more > 0 {
		if err := a.print("%s  and %d more\n", indent, more); err != nil {
			return err
		}
	}
	if image.Note == "" {
		return nil
	}
	return a.print("%s  %s\n", indent, s.paint(dim, s.safe(image.Note)))
}
