package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/keep"
	"github.com/kilnproject/kiln/internal/ledger"
	"github.com/kilnproject/kiln/internal/upgrade"
)

// rehearse says who this program is, as one that may become the control plane
// with these flags. It fails where that could not start: for the configuration,
// or for a ledger that is newer than it knows. It changes nothing.
func rehearse(ctx context.Context, g given, out io.Writer) error {
	s, _, err := g.settings(nil)
	if err != nil {
		return err
	}
	have, known, err := ledger.Schemas(ctx, ledgerPath(s.data))
	if err != nil {
		return err
	}
	if have > known {
		return kiln.Errorf(kiln.CodeRefused, "upgrade to a version that knows it", "the ledger has schema %d, and kilnd %s knows schemas up to %d", have, version, known)
	}
	return json.NewEncoder(out).Encode(upgrade.Rehearsal{Version: version, Protocol: keep.Protocol})
}

// goBack undoes what a newer control plane, which is not to be started again,
// did to the ledger.
func goBack(ctx context.Context, g given) error {
	s, _, err := g.settings(nil)
	if err != nil {
		return err
	}
	lock, err := lockData(s.data)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	return ledger.GoBack(ctx, ledgerPath(s.data))
}

func ledgerPath(data string) string { return filepath.Join(data, "ledger", "ledger.db") }

// upgraded ends an upgrade that was cut short, once this control plane, which
// is one of the two that it was about, answers.
func (p *plane) upgraded() {
	done, err := upgrade.Settle(p.data, version)
	switch {
	case err != nil:
		p.log.Warn("an upgrade that was cut short is not cleared away", "error", err)
	case done != "":
		p.log.Info("an upgrade that was cut short has ended", "version", done, "pid", os.Getpid())
	}
}
