package gateway

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

const tableFile = "table.json"

// readTable reads the table that was used last.
func readTable(name string) (kiln.Traffic, error) {
	var t kiln.Traffic
	b, err := os.ReadFile(name)
	if err != nil {
		return t, fmt.Errorf("read the last table: %w", err)
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return t, fmt.Errorf("read the last table: %w", err)
	}
	return t, nil
}

// set takes a table: validates it, writes it down, and uses it.
func (g *gateway) set(t kiln.Traffic) error {
	if err := validate(t); err != nil {
		return err
	}
	g.setting.Lock()
	defer g.setting.Unlock()
	if now := g.table.Load().source.Generation; t.Generation < now {
		return kiln.Errorf(kiln.CodeConflict, "", "table %d is older than table %d, which is in use", t.Generation, now)
	}
	b, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("write down table %d: %w", t.Generation, err)
	}
	if err := durable.Write(filepath.Join(g.dir, tableFile), b, 0o600); err != nil {
		return kiln.Errorf(kiln.CodeFailed, "", "write down table %d: %w", t.Generation, err)
	}
	g.swap(t)
	return nil
}

// use takes a table that is on disk already.
func (g *gateway) use(t kiln.Traffic) error {
	if err := validate(t); err != nil {
		return err
	}
	g.setting.Lock()
	defer g.setting.Unlock()
	g.swap(t)
	return nil
}

// swap puts a valid table in use. New requests follow it when it returns.
func (g *gateway) swap(t kiln.Traffic) {
	next := g.compile(t)
	g.registry.arrive(t)
	g.table.Store(next)
	g.registry.depart(t, g.clock())
	g.tls.follow(next)
}
