package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/backup"
)

func (a *app) restoreCommand() *cobra.Command {
	var o restoring
	command := &cobra.Command{
		Use: "restore FILE", Short: "Make a data directory of a backup; needs no control plane", GroupID: groupMachine,
		Long: `Makes the data directory (--data), which must be empty, of what kiln backup
wrote; - is standard input. It needs root, and no control plane may run on the
directory. All of the backup is read and verified before any of it is in place.
The directory is this machine's then, and the next kilnd serves the releases
that were live.

End Kiln for good on the machine of the backup before: two would serve the same.`,
		Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			switch remote, err := a.remote(); {
			case err != nil:
				return err
			case remote:
				return kiln.Errorf(kiln.CodeInvalid, "run it there, as root", "kiln restore works on a data directory of this machine")
			}
			o.file = args[0]
			out, err := a.restore(command.Context(), o)
			if err != nil {
				return err
			}
			return a.printRestored(out)
		},
	}
	flags := command.Flags()
	flags.StringVar(&o.identity, "identity", "", "file with the identity of age that decrypts the keys; without it they are not restored")
	flags.StringVar(&o.digest, "digest", "", "digest that kiln backup printed: any other backup is refused")
	flags.StringVar(&o.store, "store-from", "", "folder of a store, for a backup that only refers to blobs")
	return command
}

// restoring is what kilnd restore is told.
type restoring struct{ file, identity, digest, store string }

// restore has kilnd do it, which knows the ledger and the lock of the directory.
func (a *app) restore(ctx context.Context, o restoring) (backup.Restored, error) {
	return offline[backup.Restored](ctx, a, "restore", "--identity", o.identity, "--digest", o.digest, "--store-from", o.store, "--", o.file)
}

func (a *app) printRestored(r backup.Restored) error {
	if a.json {
		return a.printJSON(r)
	}
	s := a.style(a.Out)
	err := a.print("%s has the backup of %s from %s: %s, %s\ndigest %s\n",
		s.safe(r.Data), s.safe(r.Host), r.At.Local().Format("2006-01-02 15:04:05"), plural(int(r.Events), "event"), plural(r.Releases, "release"), r.Digest)
	if r.KeysLeft {
		a.say("%s the keys of the backup were left out: --identity FILE decrypts them", a.style(a.Err).paint(cyan+";"+bold, "hint:"))
	}
	if r.Missing > 0 {
		a.say("%s %s of the store, %s, are not here: copy them to %s/store/blobs/sha256, or bake again with kiln up",
			a.style(a.Err).paint(cyan+";"+bold, "hint:"), plural(r.Missing, "blob"), size(r.MissingBytes), s.safe(r.Data))
	}
	a.say("%s start it: kilnd --data %s", a.style(a.Err).paint(cyan+";"+bold, "hint:"), s.safe(r.Data))
	return err
}
