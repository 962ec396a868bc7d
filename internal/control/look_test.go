package control

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// gallery has images, and looks at them: it is prover and store at once.
type gallery struct {
	names    map[string]kiln.Digest
	bundle   kiln.Bundle
	gone     bool // the bundles and images of releases
	gates    map[kiln.Digest]kiln.Gate
	held     int
	looked   []kiln.Digest
	asked    kiln.Gate
	platform string
}

func (g *gallery) Find(_ context.Context, name string) (kiln.Digest, error) {
	if d, err := kiln.ParseDigest(name); err == nil {
		return d, nil
	}
	if d, ok := g.names[strings.TrimSuffix(name, ":latest")]; ok {
		return d, nil
	}
	return "", kiln.Errorf(kiln.CodeNotFound, "", "no %s", name)
}

func (g *gallery) Image(_ context.Context, d kiln.Digest, platform string) (kiln.Digest, error) {
	g.platform = platform
	if g.gone {
		return "", kiln.Errorf(kiln.CodeNotFound, "", "it was collected")
	}
	return d, nil
}

func (g *gallery) Bundle(context.Context, kiln.Digest) (kiln.Bundle, error) {
	if g.gone {
		return kiln.Bundle{}, kiln.Errorf(kiln.CodeNotFound, "", "it was collected")
	}
	return g.bundle, nil
}

func (g *gallery) Hold(context.Context) (func(), error) {
	g.held++
	return func() { g.held-- }, nil
}

func (g *gallery) Look(_ context.Context, d kiln.Digest, change func(*kiln.Gate)) (kiln.Verdict, error) {
	g.looked = append(g.looked, d)
	g.asked = kiln.DefaultGate()
	change(&g.asked)
	return kiln.Verdict{Image: d, Outcome: kiln.OutcomePass}, nil
}

func (g *gallery) Describe(_ context.Context, d kiln.Digest) (kiln.Inventory, error) {
	return kiln.Inventory{Image: d}, nil
}

func (g *gallery) Newest(_ context.Context, d kiln.Digest) (kiln.Verdict, bool, error) {
	gate, ok := g.gates[d]
	return kiln.Verdict{Image: d, Gate: gate, Packages: 3}, ok, nil
}

func digestOf(name string) kiln.Digest { return kiln.DigestOf([]byte(name)) }

// inGallery has production live with shop 2, after shop 1, and an image.
func inGallery(t *testing.T, test func(t *testing.T, b *bench, g *gallery)) {
	t.Helper()
	onBench(t, func(t *testing.T, b *bench) {
		g := &gallery{names: map[string]kiln.Digest{"tool": digestOf("tool"), "web-1": digestOf("web-1")}, gates: map[kiln.Digest]kiln.Gate{}}
		for _, name := range []string{"web-1", "orders-1", "mailer-1", "web-2", "orders-2", "mailer-2"} {
			g.bundle.Images = append(g.bundle.Images, kiln.BundleImage{Name: name, Manifest: digestOf(name)})
		}
		b.images, b.looker = g, g
		b.mustUp(shop("production", "1"))
		b.mustUp(shop("production", "2"))
		test(t, b, g)
		if g.held != 0 {
			t.Errorf("the store is held %d times after all", g.held)
		}
	})
}

func TestSubjects(t *testing.T) {
	inGallery(t, func(t *testing.T, b *bench, g *gallery) {
		for subject, want := range map[string]string{
			"production":   "mailer-2 orders-2 web-2",
			"production/1": "mailer-1 orders-1 web-1",
			"production/2": "mailer-2 orders-2 web-2",
			"tool":         "tool", "tool:latest": "tool:latest",
			string(digestOf("tool")): digestOf("tool").Short(),
		} {
			r, err := b.Scan(t.Context(), ScanRequest{Subjects: []string{subject}}, nil)
			var names []string
			for _, one := range r.Images {
				names = append(names, one.Name)
				if one.Subject != subject {
					t.Errorf("%s is the subject %q", subject, one.Subject)
				}
			}
			if got := strings.Join(names, " "); err != nil || got != want {
				t.Errorf("%s: %q, want %q; %v", subject, got, want, err)
			}
		}
		r, err := b.Scan(t.Context(), ScanRequest{Subjects: []string{"web-1", "production/1", "web-1"}}, nil)
		if err != nil || len(r.Images) != 3 {
			t.Errorf("what is named twice: %d images, %v", len(r.Images), err)
		}
		g.names["production"] = digestOf("an image")
		for subject, want := range map[string]kiln.Code{
			"production": kiln.CodeConflict, "nothing": kiln.CodeNotFound, "production/0": kiln.CodeInvalid, "production/x": kiln.CodeNotFound,
			"production/7": kiln.CodeNotFound, "staging/1": kiln.CodeNotFound,
		} {
			_, err := b.Scan(t.Context(), ScanRequest{Subjects: []string{subject}}, nil)
			if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Code != want || k.Hint == "" {
				t.Errorf("%s: %v, want %s and a hint", subject, err, want)
			}
		}
		g.gone = true
		if _, err := b.Scan(t.Context(), ScanRequest{Subjects: []string{"production/1"}}, nil); !errors.Is(err, kiln.ErrNotFound) || !strings.Contains(err.Error(), "was collected") {
			t.Errorf("a release whose images are gone: %v", err)
		}
	})
}

func TestScanRequests(t *testing.T) {
	inGallery(t, func(t *testing.T, b *bench, g *gallery) {
		for name, r := range map[string]ScanRequest{
			"nothing": {}, "too much": {Subjects: make([]string, maxSubjects+1)},
			"no severity": {Subjects: []string{"tool"}, FailOn: "bad"}, "unknown is none that fails": {Subjects: []string{"tool"}, FailOn: kiln.SeverityUnknown},
			"no platform": {Subjects: []string{"tool"}, Platform: "amd64"},
		} {
			if _, err := b.Scan(t.Context(), r, nil); !errors.Is(err, kiln.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if len(g.looked) > 0 {
			t.Errorf("%v were looked at", g.looked)
		}
		var told []string
		_, err := b.Scan(t.Context(), ScanRequest{Subjects: []string{"tool"}, FailOn: kiln.SeverityLow, NoDatabase: true, Platform: "linux/riscv64"}, func(p kiln.Progress) { told = append(told, p.Message) })
		if err != nil || g.asked.FailOn != kiln.SeverityLow || g.asked.NoDatabase != kiln.PolicyWarn || g.platform != "linux/riscv64" {
			t.Errorf("asked by %+v for %s: %v", g.asked, g.platform, err)
		}
		if !slices.Equal(told, []string{"", "pass"}) {
			t.Errorf("told %q", told)
		}
	})
}

// TestSubjectsWithinReach has callers who may see one environment alone.
func TestSubjectsWithinReach(t *testing.T) {
	inGallery(t, func(t *testing.T, b *bench, _ *gallery) {
		whole := string(digestOf("tool"))
		for _, c := range []struct {
			subject string
			reach   kiln.Reach
			whole   bool
			ok      bool
		}{
			{"production", kiln.Reach{"production"}, false, true},
			{"production/1", kiln.Reach{"production"}, false, true},
			{"production", kiln.Reach{"staging"}, true, false},
			{"production/1", kiln.Reach{"staging"}, true, false},
			{"tool", kiln.Reach{"production"}, true, false},
			{whole, kiln.Reach{"production"}, false, false},
			{whole, kiln.Reach{"production"}, true, true},
			{"tool", nil, false, true},
		} {
			_, err := b.Inventory(t.Context(), InventoryRequest{Subject: c.subject, Reach: c.reach, Whole: c.whole})
			_, scanned := b.Scan(t.Context(), ScanRequest{Subjects: []string{c.subject}, Reach: c.reach, Whole: c.whole}, nil)
			if several := errors.Is(err, kiln.ErrInvalid); (err == nil || several) != c.ok || (scanned == nil) != c.ok {
				t.Errorf("%s by %v, %v: %v, %v", c.subject, c.reach, c.whole, err, scanned)
			}
		}
	})
}

func TestAnInventoryIsOfOneImage(t *testing.T) {
	inGallery(t, func(t *testing.T, b *bench, _ *gallery) {
		d, err := b.Inventory(t.Context(), InventoryRequest{Subject: "tool"})
		if err != nil || d.Name != "tool" || d.Inventory.Image != digestOf("tool") {
			t.Errorf("%+v, %v", d, err)
		}
		_, err = b.Inventory(t.Context(), InventoryRequest{Subject: "production"})
		if k := (*kiln.Error)(nil); !errors.As(err, &k) || !strings.Contains(k.Hint, digestOf("web-2").Short()+" is web-2") {
			t.Errorf("of three images: %v", err)
		}
	})
}

// TestStatusTellsOfTheDatabase goes through what can be wrong with it.
func TestStatusTellsOfTheDatabase(t *testing.T) {
	inGallery(t, func(t *testing.T, b *bench, g *gallery) {
		strict, lax := kiln.Gate{MaxDBAge: 48 * time.Hour, NoDatabase: kiln.PolicyFail}, kiln.Gate{MaxDBAge: 48 * time.Hour, NoDatabase: kiln.PolicyWarn}
		there := Advisories{Digest: digestOf("database"), Dated: b.now().Add(-time.Hour)}
		old := there
		old.Dated = b.now().Add(-72 * time.Hour)
		failed := there
		failed.Failed, failed.FailedAt = "nobody answers.", b.now()
		for name, c := range map[string]struct {
			a    Advisories
			gate kiln.Gate
			want []string // in the one problem that there is; nil for none
		}{
			"all is well":            {there, strict, nil},
			"none":                   {Advisories{}, strict, []string{"there is no database", "kiln db update"}},
			"none, and none needed":  {Advisories{}, lax, nil},
			"too old":                {old, strict, []string{"3 days old", "service ", "allows 2 days", "kiln db import FILE"}},
			"old, which is allowed":  {old, kiln.Gate{NoDatabase: kiln.PolicyFail}, nil},
			"an update did not work": {failed, strict, []string{"was not updated", "nobody answers; kiln db update"}},
		} {
			b.advise = func() Advisories { return c.a }
			clear(g.gates)
			for _, image := range g.bundle.Images {
				g.gates[image.Manifest] = c.gate
			}
			s, err := b.Status(t.Context())
			check(t, err)
			problems := slices.Concat(s.Problems, s.Environments[0].Problems)
			if len(problems) > 1 || (len(problems) == 1) != (c.want != nil) {
				t.Errorf("%s: %q", name, problems)
				continue
			}
			for _, word := range c.want {
				if !strings.Contains(problems[0], word) {
					t.Errorf("%s: %q is not in %q", name, word, problems[0])
				}
			}
		}
		b.advise = func() Advisories { return Advisories{} }
		maps.DeleteFunc(g.gates, func(kiln.Digest, kiln.Gate) bool { return true })
		if s, err := b.Status(t.Context()); err != nil || len(s.Problems) > 0 {
			t.Errorf("images that no gate judged: %q, %v", s.Problems, err)
		}
	})
}
