package control

import (
	"errors"
	"testing"

	"github.com/kilnproject/kiln"
)

func TestAnotherProjectDoesNotReplaceWhatRuns(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.settled()
		other := app{Environment: kiln.Environment{Name: "production"}, Services: []kiln.Service{serving("blog", "1", 1)}}
		_, err := b.Up(t.Context(), other.request(), nil)
		var refused *kiln.Error
		if !errors.As(err, &refused) || refused.Code != kiln.CodeRefused || refused.Hint == "" {
			t.Fatalf("up of another project: %v", err)
		}
		b.wantStates("production", kiln.ReleaseLive)

		other.Services = append(other.Services, serving("web", "2", 1))
		if _, err := b.Up(t.Context(), other.request(), nil); err != nil {
			t.Errorf("up of a definition that keeps one service: %v", err)
		}
	})
}
