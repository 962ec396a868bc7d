package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/server"
)

// Bundled is what kiln db bundle made.
type Bundled struct {
	File       string    `json:"file"`
	Dated      time.Time `json:"dated"`
	Ecosystems []string  `json:"ecosystems"`
}

func (a *app) dbCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "db", Short: "The database of vulnerabilities that gates ask", GroupID: groupMachine,
		Long: `The control plane keeps the public OSV database, as far as it was told to, and
asks it without a network. Where it has none, or what an image is made of is not
in it, the image does not pass its gate, unless the gate says so.`,
	}
	command.AddCommand(a.dbStatusCommand(), a.dbUpdateCommand(), a.dbImportCommand(), a.dbBundleCommand())
	return command
}

func (a *app) dbStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "What is in the database, from where, and how old it is",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			d, err := client.Database(command.Context())
			if err != nil {
				return err
			}
			return a.printDatabase(d)
		},
	}
}

func (a *app) dbUpdateCommand() *cobra.Command {
	var request server.DatabaseUpdate
	command := &cobra.Command{
		Use: "update [ECOSYSTEM...]", Short: "Get newer advisories from the public OSV database",
		Long: `The control plane gets the zip of each ecosystem, if there is a newer one, checks
every record, and takes them all or, when one is broken, none. Without ecosystems
it is those that are in the database already. An ecosystem is named as OSV does:
Go, npm, PyPI, Maven, crates.io, Debian, Alpine, Red Hat; all releases of a
distribution are one.`,
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			request.Ecosystems = args
			p := a.newProgress()
			d, err := client.UpdateDatabase(command.Context(), request, p.show)
			p.close()
			if err != nil {
				return a.ended(err, p, "the update")
			}
			return a.printDatabase(d)
		},
	}
	command.Flags().StringVar(&request.Server, "from", "", "URL of a server with URL/ECOSYSTEM/all.zip; the public one when not said")
	return command
}

func (a *app) dbImportCommand() *cobra.Command {
	var request server.DatabaseImport
	var key string
	command := &cobra.Command{
		Use: "import FILE", Short: "Import advisories from a file, where there is no internet",
		Long: `FILE is a bundle of kiln db bundle, with --key, the public key of who made it:
every digest in it is checked, and it replaces the ecosystems that it has. Or it
is the zip of one ecosystem of the OSV database, all.zip, with --ecosystem: nobody
signed that, and whoever could change it can hide vulnerabilities.

The file is sent to the control plane, and is imported whole or not at all.`,
		Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			if (key == "") == (request.Ecosystem == "") {
				return kiln.Errorf(kiln.CodeInvalid, "--key PUBLIC_KEY for a bundle, --ecosystem Go for a zip of OSV records", "it must be said what the file is: one of --key and --ecosystem")
			}
			if key != "" {
				text, err := readSmall(key)
				if err != nil {
					return err
				}
				request.Key = string(text)
			}
			d, err := a.importDatabase(command.Context(), request, args[0])
			if err != nil {
				return err
			}
			if request.Ecosystem != "" {
				a.say("%s the file is not signed: that it is what OSV published, nobody has checked", a.style(a.Err).paint(yellow, "warning:"))
			}
			return a.printDatabase(d)
		},
	}
	command.Flags().StringVar(&key, "key", "", "file with the public key that the bundle is signed by, in PEM")
	command.Flags().StringVar(&request.Ecosystem, "ecosystem", "", "ecosystem of a zip that is not signed")
	return command
}

// readSmall reads a file of at most 64 KiB.
func readSmall(path string) ([]byte, error) {
	f, n, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	if n > 64<<10 {
		return nil, kiln.Errorf(kiln.CodeInvalid, "name the file with the key", "%s has %d bytes, which is no key", path, n)
	}
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	return text, fileError(err)
}

func (a *app) importDatabase(ctx context.Context, request server.DatabaseImport, path string) (control.Advisories, error) {
	client, err := a.client()
	if err != nil {
		return control.Advisories{}, err
	}
	f, total, err := openFile(path)
	if err != nil {
		return control.Advisories{}, err
	}
	defer func() { _ = f.Close() }() // it was only read
	p := a.newProgress()
	defer p.close()
	step := kiln.Progress{Stage: stageSend, Step: fmt.Sprintf("sending %s, %s", filepath.Base(path), size(total))}
	p.show(step)
	began := time.Now()
	sent := &counted{w: io.Discard, each: func(n int64) {
		p.update(step, fmt.Sprintf("%s of %s", size(n), size(total)))
		if n == total {
			step.Done, step.Took = true, time.Since(began)
			p.show(step)
		}
	}}
	// Not a file by type: the length is not said, and it is sent piece by piece.
	d, err := client.ImportDatabase(ctx, request, io.TeeReader(f, sent), p.show)
	if err != nil {
		return d, a.ended(err, p, "the import")
	}
	return d, nil
}

func (a *app) dbBundleCommand() *cobra.Command {
	var key, from string
	command := &cobra.Command{
		Use: "bundle FILE ECOSYSTEM...", Short: "Make a signed bundle of advisories for machines without internet; needs no control plane",
		Long: `Gets the zip of each ECOSYSTEM from the public OSV database, or takes the file of
ECOSYSTEM=FILE, and writes them into one FILE, signed with a private key. It runs
where it is typed, with the kilnd that is installed there. On the other machine,
kiln db import FILE --key PUBLIC_KEY takes it. A pair of keys is made by

  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out bundle.key
  openssl pkey -in bundle.key -pubout -out bundle.pub`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(command *cobra.Command, args []string) error {
			if key == "" {
				return kiln.Errorf(kiln.CodeInvalid, "--key bundle.key; kiln db bundle --help says how one is made", "a bundle is signed, and no key is named")
			}
			p := a.newProgress()
			step := kiln.Progress{Stage: "database", Subject: filepath.Base(args[0]), Step: "getting and signing " + strings.Join(args[1:], ", ")}
			p.show(step)
			call := append([]string{"bundle", "--key", key, "--from", from, "--"}, args...)
			made, err := offline[Bundled](command.Context(), a, "database", call...)
			p.close()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(made)
			}
			return a.print("%s has the advisories for %s, as of %s\n", escape(made.File), escape(strings.Join(made.Ecosystems, ", ")), made.Dated.Local().Format("2006-01-02 15:04:05"))
		},
	}
	command.Flags().StringVar(&key, "key", "", "file with the private key, in PEM: ECDSA on the curve P-256")
	command.Flags().StringVar(&from, "from", "", "URL of a server with URL/ECOSYSTEM/all.zip; the public one when not said")
	return command
}

func (a *app) printDatabase(d control.Advisories) error {
	if a.json {
		return a.printJSON(d)
	}
	s := a.style(a.Out)
	if d.Failed != "" {
		if err := a.print("%s the last update, %s ago, did not work: %s\n", s.paint(red, "problem:"), age(a.now(), d.FailedAt), s.safe(d.Failed)); err != nil {
			return err
		}
	}
	if len(d.Ecosystems) == 0 {
		a.say("there is no database yet; kiln db update Go Debian npm gets one, kiln db import FILE takes one where there is no internet")
		return nil
	}
	if err := a.print("database %s, %s old\n", d.Digest, age(a.now(), d.Dated)); err != nil {
		return err
	}
	t := newTable("ECOSYSTEM", "RECORDS", "WITHDRAWN", "AGE", "FROM")
	for _, e := range d.Ecosystems {
		t.row(plain(s.safe(e.Name)), plain(fmt.Sprint(e.Records)), plain(fmt.Sprint(e.Withdrawn)), plain(age(a.now(), e.Dated)), plain(s.safe(e.From)))
	}
	return t.write(a.Out, s, "  ")
}
