package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"

	"github.com/spf13/pflag"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/ledger"
)

// runLedger is "kilnd ledger COMMAND", which kiln ledger runs where no control
// plane does: it works on the ledger of the data directory and prints JSON.
func runLedger(ctx context.Context, args []string, data, speech io.Writer) int {
	report, err := offline(ctx, args)
	if err == nil {
		err = json.NewEncoder(data).Encode(report)
	}
	if err != nil {
		return cli.Explain(speech, err)
	}
	return cli.ExitOK
}

func offline(ctx context.Context, args []string) (report kiln.LedgerReport, err error) {
	flags := pflag.NewFlagSet("kilnd ledger", pflag.ContinueOnError)
	flags.Usage = func() {}
	dir := flags.String("data", cli.DefaultData, "")
	tip := flags.String("tip", "", "")
	damage := flags.String("damage", "", "")
	if err := flags.Parse(args); err != nil || flags.NArg() != 1 {
		return report, invalid("kiln ledger --help", "kilnd ledger is for kiln ledger")
	}
	l, release, err := takeLedger(ctx, *dir)
	if err != nil {
		return report, err
	}
	defer release()
	switch command := flags.Arg(0); command {
	case "verify":
		return l.Verify(ctx, *tip)
	case "accept":
		return l.Accept(context.WithoutCancel(ctx), caller(), kiln.Digest(*damage))
	case "adopt":
		return report, claimMachine(ctx, l, thisMachine(), true)
	default:
		return report, invalid("kiln ledger --help", "there is no kilnd ledger %s", command)
	}
}

// takeLedger opens the ledger of a data directory on which no control plane
// runs.
func takeLedger(ctx context.Context, dir string) (l *ledger.Ledger, release func(), err error) {
	path := filepath.Join(dir, "ledger", "ledger.db")
	if _, err := os.Stat(path); err != nil {
		if os.Geteuid() != 0 {
			return nil, nil, kiln.Errorf(kiln.CodeRefused, "run it with sudo", "without a control plane only root can read the ledger: %w", err)
		}
		return nil, nil, kiln.Errorf(kiln.CodeNotFound, "--data names another data directory", "there is no ledger in %s: %w", dir, err)
	}
	lock, err := lockData(dir)
	if err != nil {
		return nil, nil, err
	}
	l, err = ledger.Examine(ctx, path)
	if err != nil {
		_ = lock.Close()
		return nil, nil, err
	}
	return l, func() { _, _ = l.Close(), lock.Close() }, nil
}

// caller names who runs this program, as the API names its callers.
func caller() string {
	u, err := user.Current()
	if err != nil {
		return fmt.Sprintf("uid %d", os.Getuid())
	}
	return fmt.Sprintf("%s (%s)", u.Username, u.Uid)
}
