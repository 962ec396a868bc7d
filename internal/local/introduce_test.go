package local_test

import (
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// A program may look up a name in its first line, before anything else makes
// a new table.
func TestTheGatewayKnowsACallerBeforeItStarts(t *testing.T) {
	b := newBed(t)
	b.gateway.mu.Lock()
	b.gateway.slow = func() { <-time.After(300 * time.Millisecond) }
	b.gateway.mu.Unlock()
	known := make(chan bool, 1)
	b.keeper.before = func(string) {
		b.gateway.mu.Lock()
		defer b.gateway.mu.Unlock()
		found := false
		for _, c := range b.gateway.table.Callers {
			found = found || c.Environment == "test" && c.Release == 3
		}
		known <- found
	}
	f := web(1, func(t *kiln.Template) { t.Config.Command = []string{"exit", "0"} })
	if _, err := b.Run(t.Context(), kiln.Task{Environment: "test", Release: 3, Template: f.Template, Timeout: longest}); err != nil {
		t.Fatal(err)
	}
	if !<-known {
		t.Error("the task ran before the gateway knew it")
	}
}
