package gateway

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// patience ends a request in net/http's types that stands still: until the
// answer begins for Limits.Answer without progress of the request's body, after
// that for Limits.Stream without news from the instance, and for Limits.Write
// while the client does not take what there is.
type patience struct {
	limits *Limits
	w      http.ResponseWriter
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	timer *time.Timer
	begun bool // the answer
	over  bool
}

func newPatience(l *Limits, w http.ResponseWriter, cancel context.CancelCauseFunc) *patience {
	p := &patience{limits: l, w: w, cancel: cancel}
	p.mu.Lock() // fire waits for the timer to be there
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(l.Answer, p.fire)
	return p
}

// fire ends the request. Where the client's side can be told, whoever writes
// to it is woken; w must not be used after end.
func (p *patience) fire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	p.over = true
	p.cancel(context.DeadlineExceeded)
	if p.begun {
		_ = http.NewResponseController(p.w).SetWriteDeadline(time.Unix(1, 0)) // over HTTP/1 the connection's guard does it
	}
}

// progress is called when something came, of the request or the answer.
func (p *patience) progress() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reset()
}

// begin is called when the answer has begun.
func (p *patience) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun = true
	p.reset()
}

// giving is called before something is given to the client.
func (p *patience) giving() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		p.timer.Reset(p.limits.Write)
	}
}

func (p *patience) reset() {
	d := p.limits.Answer
	if p.begun {
		d = p.limits.Stream
	}
	if !p.over {
		p.timer.Reset(d)
	}
}

// end stops the watch; nothing happens after.
func (p *patience) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.timer.Stop()
}
