package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/ledger"
)

// machineSetting is the ledger's name for the machine that a data directory
// belongs to.
const machineSetting = "machine"

// machine is one machine.
type machine struct {
	// ID is of the machine for Kiln alone: it does not tell machine-id(5).
	// Empty where there is none.
	ID   string `json:"id"`
	Host string `json:"host"`
}

func thisMachine() machine {
	host, _ := os.Hostname()
	for _, path := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		raw, err := os.ReadFile(path)
		if id := bytes.TrimSpace(raw); err == nil && len(id) >= 32 {
			mac := hmac.New(sha256.New, id)
			mac.Write([]byte("kiln data directory"))
			return machine{ID: hex.EncodeToString(mac.Sum(nil)[:16]), Host: host}
		}
	}
	return machine{Host: host}
}

// claimMachine refuses a data directory that was copied from another machine,
// unless it is adopted. One of nobody becomes this machine's. What a damaged
// ledger says of that is not looked at.
func claimMachine(ctx context.Context, l *ledger.Ledger, this machine, adopt bool) error {
	var owner machine
	raw, err := l.Setting(ctx, machineSetting)
	if err == nil {
		err = json.Unmarshal(raw, &owner)
	}
	known := err == nil
	switch {
	case this.ID == "" || known && owner == this || len(l.Damage()) > 0:
		return nil
	case err != nil && !errors.Is(err, kiln.ErrNotFound):
		return fmt.Errorf("read whose the data directory is: %w", err)
	case known && owner.ID != this.ID && !adopt:
		return kiln.Errorf(kiln.CodeRefused,
			"end Kiln there for good (two would serve the same), then make it this machine's: kiln ledger adopt",
			"the data directory belongs to another machine, %s: it was copied, or the disk was moved", owner.Host)
	}
	value, err := json.Marshal(this)
	if err != nil {
		return err
	}
	e := kiln.Event{At: time.Now().UTC(), Kind: "machine.recorded", Subject: this.Host, Message: "the data directory belongs to the machine " + this.Host}
	switch {
	case known && owner.ID != this.ID:
		e.Kind, e.Message = "machine.adopted", fmt.Sprintf("the data directory of the machine %s belongs to %s now", owner.Host, this.Host)
	case known:
		e.Kind, e.Message = "machine.renamed", fmt.Sprintf("the machine %s is called %s now", owner.Host, this.Host)
	}
	return l.SetSetting(ctx, machineSetting, value, e)
}
