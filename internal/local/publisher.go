package local

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// publisher brings one thing outside (the gateway's table, the packet filter)
// up to date for many callers: a request made while a run is under way waits
// for the next, so that a hundred changes at once cost two runs.
type publisher struct {
	log  *slog.Logger
	do   func(ctx context.Context) error
	wake chan struct{}

	mu     sync.Mutex
	wanted uint64 // requests made
	done   uint64 // requests that a finished run covered
	err    error  // of the last run
	turn   chan struct{}
}

func newPublisher(log *slog.Logger, do func(ctx context.Context) error) *publisher {
	return &publisher{log: log, do: do, wake: make(chan struct{}, 1), turn: make(chan struct{})}
}

// mark asks for a run and returns what to wait for.
func (p *publisher) mark() uint64 {
	p.mu.Lock()
	p.wanted++
	n := p.wanted
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return n
}

// wait returns once a run that began after the request has ended, with its
// error.
func (p *publisher) wait(ctx context.Context, request uint64) error {
	for {
		p.mu.Lock()
		done, err, turn := p.done, p.err, p.turn
		p.mu.Unlock()
		if done >= request {
			return err
		}
		select {
		case <-turn:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// publish is mark and wait.
func (p *publisher) publish(ctx context.Context) error { return p.wait(ctx, p.mark()) }

// The pauses before a failed run is tried again.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// run makes the runs until ctx ends. A failed one is tried again, at first
// after firstRetry, then twice as late each time, up to lastRetry; a request
// is met at once and begins anew.
func (p *publisher) run(ctx context.Context) {
	var told complaints
	delay := time.Duration(0)
	for {
		var retry <-chan time.Time
		if delay > 0 {
			retry = time.After(delay)
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
			if delay == 0 && p.covered() {
				continue // the run before began after this request
			}
			delay = 0
		case <-retry:
		}
		err := p.once(ctx)
		if err == nil {
			delay, told = 0, nil
			continue
		}
		if ctx.Err() == nil && told.first(err) {
			p.log.Warn("publish failed, will try again", "error", err)
		}
		delay = min(max(2*delay, firstRetry), lastRetry)
	}
}

// complaints are the errors that were told of since the last success.
type complaints map[string]bool

// first says whether an error is news.
func (c *complaints) first(err error) bool {
	const most = 64 // errors may carry numbers that never come twice
	if *c == nil || len(*c) >= most {
		*c = complaints{}
	}
	text := err.Error()
	news := !(*c)[text]
	(*c)[text] = true
	return news
}

func (p *publisher) covered() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done >= p.wanted
}

func (p *publisher) once(ctx context.Context) error {
	p.mu.Lock()
	request := p.wanted
	p.mu.Unlock()
	err := p.do(ctx)
	p.mu.Lock()
	p.done, p.err = request, err
	close(p.turn)
	p.turn = make(chan struct{})
	p.mu.Unlock()
	return err
}
