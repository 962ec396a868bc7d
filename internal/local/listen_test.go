package local_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local"
)

func TestPublicListenersMoveOrStay(t *testing.T) {
	b := newBed(t)
	b.ready(web(1))
	public := kiln.PublicRoute{Environment: "test", Protocol: kiln.ProtocolHTTP, Route: kiln.Route{Host: "web.test", TLS: kiln.TLS{Mode: "local"}}}
	if err := b.Route(t.Context(), kiln.RouteTable{Public: []kiln.PublicRoute{public}}); err != nil {
		t.Fatal(err)
	}
	stands := func(what string, l local.Listen) {
		t.Helper()
		b.gateway.wait(t, what, func(tr kiln.Traffic) bool { return slices.Equal(tr.HTTP, l.HTTP) && slices.Equal(tr.HTTPS, l.HTTPS) })
		var want []string
		for _, a := range append(slices.Clone(l.HTTP), l.HTTPS...) {
			want = append(want, "tcp://"+a)
		}
		slices.Sort(want)
		if got := b.keeper.holds(); !slices.Equal(got, want) {
			t.Errorf("%s: the keeper holds %v, want %v", what, got, want)
		}
	}
	first := local.Listen{HTTP: []string{"127.0.0.1:1080", "127.0.0.2:1080"}, HTTPS: []string{"127.0.0.1:1443"}}
	if err := b.SetListen(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	stands("moved", first)
	b.keeper.mu.Lock()
	b.keeper.taken = "tcp://127.0.0.1:1081"
	b.keeper.mu.Unlock()
	err := b.SetListen(t.Context(), local.Listen{HTTP: []string{"127.0.0.3:1080", "127.0.0.1:1081"}})
	if !errors.Is(err, kiln.ErrConflict) {
		t.Errorf("a taken address: %v", err)
	}
	stands("refused", first)
	b.gateway.mu.Lock()
	if slices.Contains(b.gateway.http, "127.0.0.3:1080") {
		t.Error("the gateway was told of listeners that cannot be had")
	}
	b.gateway.mu.Unlock()
	// All addresses of a port that is listened on at one of them.
	last := local.Listen{HTTP: []string{"127.0.0.9:1080"}}
	if err := b.SetListen(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	stands("moved within a port", last)
}
