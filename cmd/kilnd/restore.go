package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/backup"
	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/ledger"
	"github.com/kilnproject/kiln/internal/store"
)

// runRestore is "kilnd restore FILE", which kiln restore runs.
func runRestore(ctx context.Context, args []string, data, speech io.Writer) int {
	result, err := restoreAs(ctx, args)
	if err == nil {
		err = json.NewEncoder(data).Encode(result)
	}
	if err != nil {
		return cli.Explain(speech, err)
	}
	return cli.ExitOK
}

func restoreAs(ctx context.Context, args []string) (backup.Restored, error) {
	flags := pflag.NewFlagSet("kilnd restore", pflag.ContinueOnError)
	flags.Usage = func() {}
	var r restore
	flags.StringVar(&r.dir, "data", cli.DefaultData, "")
	flags.StringVar(&r.identity, "identity", "", "")
	digest := flags.String("digest", "", "")
	flags.StringVar(&r.store, "store-from", "", "")
	if err := flags.Parse(args); err != nil || flags.NArg() != 1 {
		return backup.Restored{}, invalid("kiln restore --help", "kilnd restore is for kiln restore")
	}
	if os.Geteuid() != 0 {
		return backup.Restored{}, kiln.Errorf(kiln.CodeRefused, "run it with sudo", "a data directory belongs to root: only root can restore one")
	}
	if r.unpacking.Want = kiln.Digest(*digest); *digest != "" {
		if _, err := kiln.ParseDigest(*digest); err != nil {
			return backup.Restored{}, invalid("kiln backup printed it", "%w", err)
		}
	}
	from := os.Stdin
	if file := flags.Arg(0); file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return backup.Restored{}, kiln.Errorf(kiln.CodeNotFound, "", "the backup cannot be read: %w", err)
		}
		defer func() { _ = f.Close() }()
		from = f
	}
	return r.run(ctx, from)
}

// restore makes a data directory of a backup.
type restore struct {
	dir       string
	identity  string // file; empty for none
	store     string // folder; empty for none
	unpacking backup.Unpacking
}

func (r *restore) run(ctx context.Context, from io.Reader) (backup.Restored, error) {
	if r.identity != "" {
		f, err := os.Open(r.identity)
		if err != nil {
			return backup.Restored{}, kiln.Errorf(kiln.CodeNotFound, "", "the identity cannot be read: %w", err)
		}
		r.unpacking.Identities, err = backup.ParseIdentities(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return backup.Restored{}, err
		}
	}
	lock, err := lockData(r.dir)
	if err != nil {
		return backup.Restored{}, err
	}
	defer func() { _ = lock.Close() }()
	stage, err := backup.NewStage(r.dir, filepath.Base(lock.Name()), "lost+found")
	if err != nil {
		return backup.Restored{}, err
	}
	result, err := r.fill(ctx, stage, from)
	if err == nil {
		err = ctx.Err() // who ended it meanwhile wants nothing in place
	}
	if err != nil {
		return backup.Restored{}, errors.Join(err, stage.Discard())
	}
	return result, stage.Commit()
}

// fill unpacks everything beside its place, and verifies what is more than
// files.
func (r *restore) fill(ctx context.Context, stage *backup.Stage, from io.Reader) (backup.Restored, error) {
	m, err := stage.Unpack(ctx, from, r.unpacking)
	if err != nil {
		return backup.Restored{}, err
	}
	missing, err := stage.Fetch(ctx, m.References, r.store)
	if err != nil {
		return backup.Restored{}, err
	}
	out := backup.Restored{
		Data: r.dir, Host: m.Host, At: m.At, Digest: m.Digest(), KeysLeft: m.Keys() && len(r.unpacking.Identities) == 0,
		Missing: len(missing), MissingBytes: backup.Manifest{References: missing}.Missing(),
	}
	if _, err := store.Open(stage.Path("store")); err != nil { //nolint:contextcheck // a look at small local files
		return out, fmt.Errorf("look into the restored store: %w", err)
	}
	return out, takeOver(ctx, stage.Path("ledger", "ledger.db"), m, &out)
}

// takeOver verifies a restored ledger and makes it this machine's, with an event
// that says so.
func takeOver(ctx context.Context, path string, m backup.Manifest, out *backup.Restored) (err error) {
	l, err := ledger.Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	report, err := l.Verify(ctx, m.Tip)
	if err != nil {
		return fmt.Errorf("verify the restored ledger: %w", err)
	}
	if len(report.Faults) > 0 {
		return kiln.Errorf(kiln.CodeInvalid, "take another backup; nothing of this one was put in place",
			"the ledger in the backup is damaged: %s: %s", report.Faults[0].Record, report.Faults[0].Problem)
	}
	if out.Events, out.Releases, err = countHistory(ctx, l, report); err != nil {
		return err
	}
	this := thisMachine()
	value, err := json.Marshal(this)
	if err != nil {
		return err
	}
	return l.SetSetting(ctx, machineSetting, value, kiln.Event{
		At: time.Now().UTC(), Kind: "backup.restored", Subject: this.Host, Actor: caller(),
		Message: fmt.Sprintf("the backup of the machine %s from %s was restored, and belongs to %s now", m.Host, m.At.Format(time.RFC3339), this.Host),
		Data:    map[string]string{"backup": string(m.Digest()), "host": m.Host, "at": m.At.Format(time.RFC3339), "tip": m.Tip},
	})
}

func countHistory(ctx context.Context, l *ledger.Ledger, report kiln.LedgerReport) (events int64, releases int, err error) {
	names, err := l.Environments(ctx)
	if err != nil {
		return 0, 0, err
	}
	for _, name := range names {
		found, err := l.Releases(ctx, name)
		if err != nil {
			return 0, 0, err
		}
		releases += len(found)
	}
	return report.Events, releases, nil
}
