package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/backup"
	"github.com/kilnproject/kiln/internal/durable"
	"github.com/kilnproject/kiln/internal/server"
)

// backedUp is what kiln backup made.
type backedUp struct {
	File    string      `json:"file"`
	Digest  kiln.Digest `json:"digest"`
	Host    string      `json:"host"`
	At      time.Time   `json:"at"`
	Bytes   int64       `json:"bytes"` // of the file
	Keys    bool        `json:"keys"`
	Missing int64       `json:"missing,omitempty"` // bytes of blobs that it only refers to
}

func (a *app) backupCommand() *cobra.Command {
	var request server.BackupRequest
	var recipients string
	command := &cobra.Command{
		Use: "backup FILE", Short: "Write all that cannot be made anew into one file", GroupID: groupMachine,
		Long: `Writes the ledger, the configuration, the store and the keys of the control plane
into one file, while everything goes on; - is standard output. The file is read
again while it is written, and has its name once it is whole. kiln restore makes
a data directory of it.

Keys are encrypted to recipients of age (age-keygen makes one); without any they
are left out. All else in the file can be read by whoever has it: values of
releases, images, the history. The digest that is printed stands for the whole
file: kept elsewhere, it tells kiln restore whether the file was changed.

With --store reference the file has bundles, and only the digests of all else in
the store: it is small, and kiln restore needs a copy of the store, or the images
are baked again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			if err := addRecipients(&request, recipients); err != nil {
				return err
			}
			out, err := a.backUp(command.Context(), request, args[0])
			if err != nil {
				return err
			}
			return a.printBackup(out, len(request.Recipients) > 0)
		},
	}
	flags := command.Flags()
	flags.StringVar(&request.Store, "store", server.StoreWhole, `how much of the store: "whole" or "reference"`)
	flags.StringArrayVar(&request.Recipients, "recipient", nil, "recipient that keys are encrypted to, age1...; may be repeated")
	flags.StringVar(&recipients, "recipients-file", "", "file with recipients, one a line")
	return command
}

// addRecipients reads the recipients' file, and refuses early what the control
// plane would.
func addRecipients(request *server.BackupRequest, file string) error {
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return fileError(err)
		}
		defer func() { _ = f.Close() }()
		text, err := io.ReadAll(io.LimitReader(f, 1<<20))
		if err != nil {
			return fileError(err)
		}
		request.Recipients = append(request.Recipients, string(text))
	}
	_, err := backup.ParseRecipients(request.Recipients)
	return err
}

// backUp writes a backup to a file, or to standard output.
func (a *app) backUp(ctx context.Context, request server.BackupRequest, file string) (backedUp, error) {
	client, err := a.client()
	if err != nil {
		return backedUp{}, err
	}
	out := backedUp{File: file}
	if file == "-" {
		if a.style(a.Out).terminal {
			return out, kiln.Errorf(kiln.CodeInvalid, "name a file, or send it into a pipe", "a backup is not for a terminal")
		}
		err := a.download(ctx, client, request, a.Out, &out)
		return out, err
	}
	temporary := file + ".tmp"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return out, fileError(err)
	}
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return out, fileError(err)
	}
	err = a.download(ctx, client, request, f, &out)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temporary, file)
	}
	if err != nil {
		_ = os.Remove(temporary)
		return out, fileError(err)
	}
	return out, durable.SyncFolder(filepath.Dir(file))
}

// download reads a backup while it is written, so that what is not whole is no
// success.
func (a *app) download(ctx context.Context, client *server.Client, request server.BackupRequest, to io.Writer, out *backedUp) error {
	p := a.newProgress()
	defer p.close()
	step := kiln.Progress{Stage: "backup", Step: "copying the ledger"}
	p.show(step)
	from, err := client.Backup(ctx, request)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	written := &counted{w: to, each: func(n int64) { p.update(step, size(n)) }}
	m, err := backup.Verify(ctx, io.TeeReader(from, written))
	if written.err != nil {
		return notWritten(written.err)
	}
	if err != nil {
		if cause := from.Cause(); cause != nil {
			return cause
		}
		return brokeOff(ctx, err)
	}
	*out = backedUp{File: out.File, Digest: m.Digest(), Host: m.Host, At: m.At, Bytes: written.n, Keys: m.Keys(), Missing: m.Missing()}
	return nil
}

// brokeOff says why no whole backup came, when the server did not.
func brokeOff(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return kiln.Errorf(kiln.CodeUnavailable, "run it again; kilnd.log in the data directory may say why", "the backup did not come whole, and is not kept: %w", err)
}

func notWritten(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return kiln.Errorf(kiln.CodeNoRoom, "free some space, or write it to another disk", "the backup cannot be written: %w", err)
	}
	return kiln.Errorf(kiln.CodeFailed, "", "the backup cannot be written: %w", err)
}

// counted is a writer that counts.
type counted struct {
	w    io.Writer
	n    int64
	each func(n int64)
	err  error
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	if c.err = err; err == nil {
		c.each(c.n)
	}
	return n, err
}

// printBackup says what was made: on standard error when the file itself is
// standard output.
func (a *app) printBackup(out backedUp, wanted bool) error {
	say := func(text string) error { return a.print("%s\n", text) }
	if out.File == "-" {
		say = func(text string) error { a.say("%s", text); return nil }
	} else if a.json {
		return a.printJSON(out)
	}
	s := a.style(a.Out)
	err := say(fmt.Sprintf("%s of %s, %s, %s\ndigest %s", size(out.Bytes), s.safe(out.Host), out.At.Local().Format("2006-01-02 15:04:05"), out.File, out.Digest))
	switch {
	case out.Keys:
	case wanted:
		a.say("there are no keys to back up")
	default:
		a.say("%s keys are left out: --recipient age1... encrypts and adds them", a.style(a.Err).paint(cyan+";"+bold, "hint:"))
	}
	if out.Missing > 0 {
		a.say("%s of the store are referred to, and not in it", size(out.Missing))
	}
	return err
}
