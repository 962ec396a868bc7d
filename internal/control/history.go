package control

import (
	"context"
	"fmt"

	"github.com/kilnproject/kiln"
)

// shownFaults is how many damaged records a status names.
const shownFaults = 3

// changeable is ready for what makes history: it is refused while the ledger
// is damaged.
func (c *Control) changeable(ctx context.Context) error {
	if err := c.ready(ctx); err != nil {
		return err
	}
	return c.ledger.Writable(ctx)
}

// problems are sentences about the control plane itself.
func (c *Control) problems() []string {
	var out []string
	faults := c.ledger.Damage()
	for i, f := range faults {
		if i == shownFaults {
			out = append(out, fmt.Sprintf("the ledger is damaged: %d more records", len(faults)-i))
			break
		}
		out = append(out, "the ledger is damaged: "+f.Record+": "+f.Problem)
	}
	if len(faults) > 0 {
		out = append(out, "what runs goes on; changes are refused until the ledger is restored, or accepted as it is: kiln ledger verify, kiln ledger accept")
	}
	if c.others != nil {
		out = append(out, c.others()...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unrecorded != "" && len(faults) == 0 {
		out = append(out, c.unrecorded)
	}
	if c.blind != nil {
		out = append(out, "what is desired is not known and stays as the engine has it: "+c.blind.Error())
	}
	return out
}

// complain logs an error of something that is tried again and again, when it
// is another than the last time.
func (c *Control) complain(ctx context.Context, what, environment string, err error) {
	if err == nil {
		c.calm(what, environment)
		return
	}
	key := what + "\x00" + environment
	c.mu.Lock()
	before := c.complaints[key]
	c.complaints[key] = err.Error()
	c.mu.Unlock()
	if ctx.Err() == nil && before != err.Error() {
		c.log.ErrorContext(ctx, what, "environment", environment, "error", err)
	}
}

// calm says that it worked: the next error is news.
func (c *Control) calm(what, environment string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.complaints, what+"\x00"+environment)
}

// sees says why the table of all environments cannot be made; nil when it can.
func (c *Control) sees() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blind == nil {
		return nil
	}
	return kiln.Errorf(kiln.CodeUnavailable, "kiln ledger verify says what is damaged",
		"traffic stays as it is while not everything that is desired is known: %w", c.blind)
}
