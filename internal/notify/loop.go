package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

const (
	cursorSuffix = ".json"
	// saveEvery is after how many events that a receiver did not ask for its
	// cursor is written; they would be looked at again after a restart.
	saveEvery = 1000
	// saveOften is how often it is written while the receiver is told of many;
	// those since then come again after a crash.
	saveOften = time.Second
	// kindSkipped says that events were passed over.
	kindSkipped = "notify.skipped"
)

// cursor is how far a receiver was told.
type cursor struct {
	Sequence int64 `json:"sequence"`
}

// loop tells one receiver.
type loop struct {
	notifier *Notifier
	receiver Receiver
	log      *slog.Logger

	at      int64 // events up to it are done with
	saved   int64
	savedAt time.Time
	told    bool // of something since it was saved
	lost    lost
	down    bool // the last attempt failed
}

// lost are events that were passed over and not told of yet.
type lost struct {
	count       int64
	first, last int64
	why         string
	worth       bool // it is more than the telling of another loss
}

// run tells until ctx ends.
func (l *loop) run(ctx context.Context) {
	added := l.notifier.options.Source.Watch(ctx)
	for !l.open(ctx) {
		if pause(ctx, firstPause) != nil {
			return
		}
	}
	defer l.settle(ctx)
	for ctx.Err() == nil {
		more, err := l.page(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			l.log.ErrorContext(ctx, "events could not be read and are tried again", "error", err)
			_ = pause(ctx, firstPause)
		case !more:
			if _, ok := <-added; !ok {
				return
			}
		}
	}
}

// open finds how far the receiver was told: a new one from the newest event on.
func (l *loop) open(ctx context.Context) bool {
	tip, err := l.notifier.options.Source.AllBut(ctx, "", 0)
	if err != nil {
		l.log.ErrorContext(ctx, "events could not be read and are tried again", "error", err)
		return false
	}
	var c cursor
	text, err := os.ReadFile(l.path())
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.at = tip
	case err != nil || c.Sequence < 0 || c.Sequence > tip:
		l.log.WarnContext(ctx, "how far the receiver was told is not known; it is told what happens from now on", "sequence", c.Sequence, "newest", tip, "error", err)
		l.at = tip
	default:
		l.at, l.saved = c.Sequence, c.Sequence
		return true
	}
	l.save(ctx)
	return true
}

func (l *loop) path() string {
	return filepath.Join(l.notifier.options.Dir, l.receiver.Name+cursorSuffix)
}

// page tells what comes next, and says whether there may be more.
func (l *loop) page(ctx context.Context) (more bool, err error) {
	o := l.notifier.options
	tip, err := o.Source.AllBut(ctx, "", 0)
	if err != nil {
		return false, err
	}
	events, err := o.Source.Events(ctx, "", l.at, 0)
	if err != nil {
		return false, err
	}
	for _, e := range events {
		if gap := e.Sequence - l.at - 1; gap > 0 {
			l.miss(l.at+1, e.Sequence-1, gap, "the history no longer has them", true)
		}
		o.Counter.NotifyBehind(l.receiver.Name, max(0, tip-l.at), 0)
		if l.receiver.wants(e) && !l.tell(ctx, e, &tip) {
			return false, ctx.Err()
		}
		l.at = e.Sequence
		if l.at-l.saved >= saveEvery {
			l.save(ctx)
		}
	}
	o.Counter.NotifyBehind(l.receiver.Name, max(0, tip-l.at), 0)
	l.confess(ctx)
	l.settle(ctx)
	return len(events) > 0, nil
}

// settle saves how far the receiver was told where that is news to it.
func (l *loop) settle(ctx context.Context) {
	if l.told {
		l.save(ctx)
	}
}

// wants says whether a receiver asked for an event.
func (r Receiver) wants(e kiln.Event) bool {
	if !r.Environments.Covers(e.Environment) {
		return false
	}
	for _, pattern := range r.Events {
		if ok, err := path.Match(pattern, e.Kind); ok && err == nil {
			return true
		}
	}
	return false
}

// tell delivers an event, however often it takes, or passes it over when it
// has become too old, or one too many. It returns false when ctx ended before.
func (l *loop) tell(ctx context.Context, e kiln.Event, tip *int64) bool {
	n := l.notifier
	refused := 0
	for attempt := 0; ; attempt++ {
		if why := l.tooLate(e, *tip); why != "" {
			l.miss(e.Sequence, e.Sequence, 1, why, e.Kind != kindSkipped)
			return true
		}
		a := n.deliver(ctx, l.receiver, e, attempt)
		if ctx.Err() != nil {
			return false
		}
		n.options.Counter.Notified(l.receiver.Name, a.err)
		l.tellState(ctx, e, a)
		if a.err == nil {
			l.at, l.told = e.Sequence, true
			if n.now().Sub(l.savedAt) >= saveOften {
				l.save(ctx)
			}
			return true
		}
		if a.refused() {
			if refused++; refused >= refusals {
				l.miss(e.Sequence, e.Sequence, 1, "the receiver refused them: "+a.err.Error(), e.Kind != kindSkipped)
				return true
			}
		}
		if pause(ctx, max(n.backoff(attempt), a.after)) != nil {
			return false
		}
		if newest, err := n.options.Source.AllBut(ctx, "", 0); err == nil {
			*tip = newest
		}
		n.options.Counter.NotifyBehind(l.receiver.Name, max(0, *tip-l.at), 0)
	}
}

// tooLate says why an event is no longer worth telling; "" when it is.
func (l *loop) tooLate(e kiln.Event, tip int64) string {
	switch {
	case tip-e.Sequence >= keptBack:
		return fmt.Sprintf("more than %d events waited", keptBack)
	case l.notifier.now().Sub(e.At) > keptFor:
		return fmt.Sprintf("they waited for more than %s", keptFor)
	}
	return ""
}

// tellState logs when a receiver goes away and when it is back.
func (l *loop) tellState(ctx context.Context, e kiln.Event, a attempt) {
	switch {
	case a.err != nil && !l.down:
		l.log.WarnContext(ctx, "a notification was not taken and is tried again", "event", e.Sequence, "kind", e.Kind, "error", a.err)
	case a.err == nil && l.down:
		l.log.InfoContext(ctx, "notifications are taken again")
	}
	l.down = a.err != nil
}

// miss notes events that are passed over.
func (l *loop) miss(first, last, count int64, why string, worth bool) {
	if l.lost.count == 0 {
		l.lost.first = first
	}
	l.lost.count += count
	l.lost.last, l.lost.why = last, why
	l.lost.worth = l.lost.worth || worth
}

// confess records what was passed over.
func (l *loop) confess(ctx context.Context) {
	if l.lost.count == 0 {
		return
	}
	o, gone := l.notifier.options, l.lost
	o.Counter.NotifyBehind(l.receiver.Name, 0, gone.count)
	l.log.WarnContext(ctx, "events were passed over", "count", gone.count, "first", gone.first, "last", gone.last, "because", gone.why)
	if gone.worth {
		err := o.Record(ctx, kiln.Event{
			Kind: kindSkipped, Subject: l.receiver.Name,
			Message: fmt.Sprintf("%s was not told of %d events, from %d to %d: %s", l.receiver.Name, gone.count, gone.first, gone.last, gone.why),
			Data: map[string]string{
				"count": strconv.FormatInt(gone.count, 10), "first": strconv.FormatInt(gone.first, 10), "last": strconv.FormatInt(gone.last, 10),
			},
		})
		if err != nil {
			l.log.ErrorContext(ctx, "the event could not be recorded", "kind", kindSkipped, "error", err)
		}
	}
	l.lost = lost{}
	l.save(ctx)
}

// save writes how far the receiver was told. Where that fails it may be told
// some of it again after a restart.
func (l *loop) save(ctx context.Context) {
	text, err := json.Marshal(cursor{Sequence: l.at})
	if err == nil {
		err = durable.Write(l.path(), text, 0o600)
	}
	if err != nil {
		l.log.ErrorContext(ctx, "how far the receiver was told was not saved", "error", err)
		return
	}
	l.saved, l.savedAt, l.told = l.at, l.notifier.now(), false
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
