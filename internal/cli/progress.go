package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
)

// progress shows the news of a long operation on standard error: a few lines
// that are redrawn on a terminal, one line per piece of news elsewhere.
type progress struct {
	out   io.Writer
	style style
	live  bool
	now   func() time.Time
	stop  chan struct{}
	ended sync.WaitGroup

	// mu guards what follows; the redrawing goroutine and show share it.
	mu     sync.Mutex
	begun  bool // something has changed on the machine: the rollout runs
	active []*activeStep
	drawn  int // lines of the last drawing
	seen   map[string]bool
}

// activeStep is a step that has not ended.
type activeStep struct {
	key     string
	title   string
	since   time.Time
	message string
}

const (
	redrawEvery = 100 * time.Millisecond
	mostLines   = 8 // of steps at once
)

// newProgress starts the display; close ends it.
func (a *app) newProgress() *progress {
	s := a.style(a.Err)
	p := &progress{
		out: a.Err, style: s, live: s.terminal && a.getenv("TERM") != "dumb", now: a.now,
		stop: make(chan struct{}), seen: map[string]bool{},
	}
	if p.live {
		p.ended.Go(p.redraw)
	}
	return p
}

func (p *progress) redraw() {
	tick := time.NewTicker(redrawEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			p.mu.Lock()
			p.draw("")
			p.mu.Unlock()
		}
	}
}

// close ends the display and leaves only what has ended on the screen.
func (p *progress) close() {
	close(p.stop)
	p.ended.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active = nil
	if p.live {
		p.draw("")
	}
}

// note shows a step of the command's own, before anything is sent.
func (p *progress) note(step string, done bool) {
	p.show(kiln.Progress{Stage: stageSend, Step: step, Done: done})
}

// show takes one piece of news.
func (p *progress) show(n kiln.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.Stage != "bake" && n.Stage != stageSend {
		p.begun = true
	}
	key := n.Stage + "\x00" + n.Subject + "\x00" + n.Step
	step := p.step(key, n)
	switch {
	case n.Error != "":
		p.finish(key, p.style.paint(red, step.title+": "+p.style.safe(n.Error)))
	case n.Done:
		p.finish(key, p.doneLine(step, n))
	case n.Message != "":
		step.message = n.Message
		if !p.live {
			p.line(brief(step.title) + ": " + p.style.safe(n.Message))
		}
	case !p.live && !p.seen[key] && slow(n.Stage):
		p.line(step.title)
	}
	p.seen[key] = true
}

// slow says whether a stage's steps may take so long that their begin is news
// where lines stay.
func slow(stage string) bool { return stage == "bake" || stage == stageSend || stage == "verify" }

// update changes the message of a step, on a terminal only: where lines stay
// for ever it would be one a file.
func (p *progress) update(step kiln.Progress, message string) {
	if p.live {
		step.Message = message
		p.show(step)
	}
}

// step finds or begins the step that news is of.
func (p *progress) step(key string, n kiln.Progress) *activeStep {
	for _, s := range p.active {
		if s.key == key {
			return s
		}
	}
	title := n.Stage
	if n.Subject != "" {
		title += " " + p.style.safe(n.Subject)
	}
	if n.Step != "" {
		title += ": " + p.style.safe(oneLine(n.Step))
	}
	s := &activeStep{key: key, title: title, since: p.now()}
	p.active = append(p.active, s)
	return s
}

// briefTitle is how many characters of a step's title stand before each line
// that it writes: a RUN may be a page.
const briefTitle = 48

func brief(title string) string { return fit(title, briefTitle) }

// oneLine makes a heredoc of a Dockerfile's RUN one line.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func (p *progress) doneLine(step *activeStep, n kiln.Progress) string {
	text := step.title
	if n.Message != "" {
		text += ": " + p.style.safe(n.Message)
	}
	switch {
	case n.Cached && n.Step != "" && p.live:
		return "" // the image's own line says it once
	case n.Cached:
		return p.style.paint(dim, text+" (cached)")
	case n.Took > 0:
		return text + " " + p.style.paint(dim, took(n.Took))
	default:
		return text + " " + p.style.paint(dim, "done")
	}
}

// finish ends a step with a line that stays.
func (p *progress) finish(key, line string) {
	p.active = slices.DeleteFunc(p.active, func(s *activeStep) bool { return s.key == key })
	if line != "" {
		p.line(line)
	}
}

func (p *progress) line(text string) {
	if p.live {
		p.draw(text + "\n")
		return
	}
	_, _ = io.WriteString(p.out, text+"\n")
}

// draw replaces the last drawing by the lines that stay and the active steps.
func (p *progress) draw(stays string) {
	columns, _ := terminal(p.out)
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", p.drawn)
	}
	b.WriteString(stays)
	shown := p.active[:min(len(p.active), mostLines)]
	for _, s := range shown {
		text := fmt.Sprintf("%s %s", s.title, span(p.now().Sub(s.since)))
		if s.message != "" {
			text = fmt.Sprintf("%s %s  %s", brief(s.title), span(p.now().Sub(s.since)), p.style.safe(s.message))
		}
		b.WriteString(p.style.paint(dim, fit(strings.ReplaceAll(text, "\t", " "), columns-1)) + "\n")
	}
	p.drawn = len(shown)
	if more := len(p.active) - len(shown); more > 0 {
		b.WriteString(p.style.paint(dim, fmt.Sprintf("and %d more", more)) + "\n")
		p.drawn++
	}
	if b.Len() > 0 {
		_, _ = io.WriteString(p.out, b.String())
	}
}

// started says whether the operation has changed anything yet.
func (p *progress) started() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.begun
}

// interruption is what Ctrl-C led to.
type interruption struct {
	message string
	hint    string
}

func (i *interruption) Error() string { return i.message }
func (i *interruption) Unwrap() error { return context.Canceled }

// ended explains an error of a long operation: an interruption says what goes
// on without this command.
func (a *app) ended(err error, p *progress, what string) error {
	switch {
	case !errors.Is(err, context.Canceled):
		return err
	case p.started():
		return &interruption{what + " goes on without this command", "kiln status shows how it stands; kiln rollback calls it off"}
	default:
		return &interruption{"interrupted before anything was changed", ""}
	}
}
