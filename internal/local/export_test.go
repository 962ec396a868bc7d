package local

import (
	"time"

	"github.com/kilnproject/kiln"
)

// Storm sends more changes than any watcher may be behind.
func (e *Engine) Storm() {
	for range 3 * changesBuffer {
		e.changes.send(kiln.Change{At: time.Now(), Event: &kiln.Event{Kind: "test.storm"}})
	}
}
