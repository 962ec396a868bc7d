package local

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local/nft"
)

// followFilter writes the packet filter anew whenever another process changed
// it, until ctx ends: a rule that is gone may let an instance out, or leave it
// without its neighbours.
func (e *Engine) followFilter(ctx context.Context) {
	for ctx.Err() == nil {
		err := nft.Watch(ctx, e.tableName(), e.filterChanged)
		if err != nil {
			e.Log.Warn("follow the packet filter", "error", err)
		}
		pause(ctx, reconnect)
	}
}

func (e *Engine) filterChanged(by string) {
	e.filter.mark()
	e.Log.Warn("another process changed the packet filter, which is written anew", "process", by)
	now := time.Now()
	e.changes.send(kiln.Change{At: now, Event: &kiln.Event{
		At: now, Kind: "drift.mended", Subject: "packet filter", Data: map[string]string{"process": by},
		Message: fmt.Sprintf("%s changed the packet filter of the instances; it was written anew", by),
	}})
}
