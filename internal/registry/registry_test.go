package registry_test

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/kilnproject/kiln/internal/registry"
	"github.com/kilnproject/kiln/internal/store"
)

// backing is what cmd/kilnd hands in.
type backing struct{ *store.Store }

func (b backing) NewUpload() (registry.Upload, error) { return b.Store.NewUpload() }

// bed is a registry that is served.
type bed struct {
	*registry.Registry
	store *store.Store
	url   string // without a last slash
}

func serve(t testing.TB, change func(*registry.Options)) bed {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	o := registry.Options{Store: backing{s}, Dir: filepath.Join(dir, "registry"), Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	g, err := registry.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	server := httptest.NewServer(g)
	t.Cleanup(func() {
		server.Close()
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return bed{g, s, server.URL}
}
