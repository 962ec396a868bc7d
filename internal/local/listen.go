package local

import (
	"context"
	"net"
	"slices"
)

// SetListen moves the gateway's public listeners: sockets that stay are not
// closed, and those that go are once the gateway follows the new ones. When one
// cannot be had, none is moved.
func (e *Engine) SetListen(ctx context.Context, l Listen) error {
	e.applying.Lock()
	defer e.applying.Unlock()
	e.mu.Lock()
	old := e.Listen
	e.mu.Unlock()
	if err := e.tryListen(ctx, old, l); err != nil {
		return err
	}
	e.listenOn(l)
	err := e.publishPatiently(ctx)
	if err != nil {
		e.listenOn(old)
		e.traffic.mark()
	}
	return err
}

func (e *Engine) listenOn(l Listen) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.Listen = l
}

// tryListen has the keeper open the addresses that come beside those that it
// holds, and then close them again: whether they can be had is known before
// anything changes, also where no route needs them yet. One that a listener
// that goes is in the way of can only be tried by moving.
func (e *Engine) tryListen(ctx context.Context, old, l Listen) error {
	e.listening.Lock()
	defer e.listening.Unlock()
	e.mu.Lock()
	held := slices.Clone(e.listeners)
	e.mu.Unlock()
	if held == nil {
		return nil // nothing was published yet: what the keeper holds is not known
	}
	stays := append(slices.Clone(l.HTTP), l.HTTPS...)
	var goes []string
	for _, address := range append(slices.Clone(old.HTTP), old.HTTPS...) {
		if !slices.Contains(stays, address) {
			goes = append(goes, address)
		}
	}
	try := slices.Clone(held)
	for _, address := range stays {
		name := "tcp://" + address
		inTheWay := slices.ContainsFunc(goes, func(other string) bool { return samePort(address, other) })
		if !slices.Contains(try, name) && !inTheWay {
			try = append(try, name)
		}
	}
	if len(try) == len(held) {
		return nil
	}
	err := e.Keeper.Listen(ctx, try)
	if back := e.Keeper.Listen(ctx, held); err == nil {
		err = back
	}
	return err
}

func samePort(a, b string) bool {
	_, one, _ := net.SplitHostPort(a)
	_, other, _ := net.SplitHostPort(b)
	return one == other
}
