package advisory

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
)

func goPackage(name, version string) kiln.Package {
	return kiln.Package{Name: name, Version: version, PURL: "pkg:golang/" + strings.ToLower(name) + "@" + version, Ecosystem: "Go", Locations: []string{"/app"}, Layer: "sha256:1"}
}

func deb(name, version, release string) kiln.Package {
	return kiln.Package{Name: name, Version: version, Source: "openssl", PURL: "pkg:deb/debian/" + name + "@" + version, Ecosystem: "Debian:" + release, Locations: []string{"/var/lib/dpkg/status"}}
}

func TestMatch(t *testing.T) {
	db := filled(t, "Go", "PyPI", "Debian", "Alpine")
	for _, c := range []struct {
		name     string
		packages []kiln.Package
		want     []string
	}{
		{"two databases tell of one thing", []kiln.Package{goPackage("example.com/Mixed/net", "v1.0.0")}, []string{
			"GO-2099-0001 critical example.com/Mixed/net@v1.0.0 [CVE-2099-0001 GHSA-aaaa-bbbb-cccc] fixed v1.2.5 v2.1.0: A request is read twice in example.com/Mixed/net; upgrade example.com/Mixed/net to v1.2.5",
		}},
		{"one of them is about this version", []kiln.Package{goPackage("example.com/Mixed/net", "v2.0.5")}, []string{
			"GO-2099-0001 critical example.com/Mixed/net@v2.0.5 [CVE-2099-0001 GHSA-aaaa-bbbb-cccc] fixed v2.1.0: A request is read twice in example.com/Mixed/net; upgrade example.com/Mixed/net to v2.1.0",
		}},
		{"the fixed one", []kiln.Package{goPackage("example.com/Mixed/net", "v2.1.0")}, nil},
		{"another name", []kiln.Package{goPackage("example.com/mixed/net", "v1.0.0")}, nil},
		{"Go's own library, on Linux", []kiln.Package{goPackage("stdlib", "1.26.8")}, []string{
			"GO-2099-0002 unknown stdlib@1.26.8 [CVE-2099-0002] fixed 1.26.9: Headers without bound in net/http; build with Go 1.26.9",
		}},
		{"before a release", []kiln.Package{goPackage("stdlib", "1.26rc1")}, []string{
			"GO-2099-0002 unknown stdlib@1.26rc1 [CVE-2099-0002] fixed 1.26.9: Headers without bound in net/http; build with Go 1.26.9",
		}},
		{"nothing mends it", []kiln.Package{goPackage("example.com/dead", "v0.1.0")}, []string{
			"GO-2099-0005 high example.com/dead@v0.1.0 [] fixed : Nobody keeps example.com/dead; no version mends it: do without example.com/dead, or ignore the finding with a reason",
		}},
		{"without a summary", []kiln.Package{goPackage("example.com/other", "v0.0.1")}, []string{
			"GO-2099-0006 unknown example.com/other@v0.0.1 [] fixed v0.0.2: The first sentence; upgrade example.com/other to v0.0.2",
		}},
		{"a range of commits before that of versions, a name in another spelling", []kiln.Package{
			{Name: "some.thing", Version: "1.5", PURL: "pkg:pypi/some-thing@1.5", Ecosystem: "PyPI", Locations: []string{"/x"}},
		}, []string{
			"PYSEC-2099-1 critical some.thing@1.5 [CVE-2099-0010] fixed 2.0.post1: Templates run what they are given; upgrade some.thing to 2.0.post1",
		}},
		{"Debian by source package and release, with an announcement", []kiln.Package{deb("libssl3", "3.0.9-1", "12")}, []string{
			"DEBIAN-CVE-2099-0020 critical libssl3@3.0.9-1 [CVE-2099-0020 DSA-9999-1] fixed 3.0.11-1~deb12u2: A key is too long; upgrade libssl3 to 3.0.11-1~deb12u2",
			"DEBIAN-CVE-2099-0021 low libssl3@3.0.9-1 [CVE-2099-0021 DSA-9999-1] fixed 3.0.11-1~deb12u2: A check is slow; upgrade libssl3 to 3.0.11-1~deb12u2",
			"DEBIAN-CVE-2099-0022 unknown libssl3@3.0.9-1 [CVE-2099-0022] fixed : Nobody knows yet; no version mends it: do without libssl3, or ignore the finding with a reason",
		}},
		{"a version with a tilde is the fixed one", []kiln.Package{deb("libssl3", "3.0.11-1~deb12u2", "12")}, []string{
			"DEBIAN-CVE-2099-0022 unknown libssl3@3.0.11-1~deb12u2 [CVE-2099-0022] fixed : Nobody knows yet; no version mends it: do without libssl3, or ignore the finding with a reason",
		}},
		{"another release", []kiln.Package{deb("libssl3t64", "3.5.0-1", "13")}, []string{
			"DEBIAN-CVE-2099-0020 critical libssl3t64@3.5.0-1 [CVE-2099-0020] fixed 3.5.1-1: A key is too long; upgrade libssl3t64 to 3.5.1-1",
		}},
		{"the source's version counts", []kiln.Package{{
			Name: "libssl3", Version: "1:9-1", Source: "openssl", SourceVersion: "3.5.0-1", PURL: "pkg:deb/debian/libssl3@9", Ecosystem: "Debian:13", Locations: []string{"/x"},
		}}, []string{
			"DEBIAN-CVE-2099-0020 critical libssl3@1:9-1 [CVE-2099-0020] fixed 3.5.1-1: A key is too long; upgrade libssl3 to 3.5.1-1",
		}},
		{"Alpine, with the oldest kind of vector", []kiln.Package{
			{Name: "busybox-binsh", Source: "busybox", Version: "1.36.1-r15", PURL: "pkg:apk/alpine/busybox-binsh@1.36.1-r15", Ecosystem: "Alpine:v3.20", Locations: []string{"/x"}},
		}, []string{
			"ALPINE-CVE-2099-0030 high busybox-binsh@1.36.1-r15 [CVE-2099-0030] fixed 1.36.1-r16: wget trusts a name; upgrade busybox-binsh to 1.36.1-r16",
		}},
		{"no ecosystem", []kiln.Package{{Name: "stdlib", Version: "1.26.8"}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := db.Match(t.Context(), c.packages)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range r.Findings {
				got = append(got, line(f))
				if f.Kind != kiln.FindingVulnerability || f.State != kiln.FindingOpen || f.PURL != c.packages[0].PURL || f.Path != c.packages[0].Locations[0] || f.Layer != c.packages[0].Layer {
					t.Errorf("%+v", f)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if len(r.Missing)+len(r.Unjudged) > 0 || r.Database != db.Status().Digest {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestMatchSaysWhatItCannotTell(t *testing.T) {
	db := filled(t, "Go", "Debian")
	r, err := db.Match(t.Context(), []kiln.Package{
		goPackage("example.com/dead", ""), goPackage("example.com/nobody/knows", ""),
		{Name: "left-pad", Version: "1.0.0", Ecosystem: "npm"},
		{Name: "who", Version: "1", Ecosystem: "Nobody's:1"},
		deb("libssl3", "x:not a version", "12"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`example.com/dead has the version "", which cannot be compared with those of its advisories`,
		`libssl3 has the version "x:not a version", which cannot be compared with those of its advisories`,
	}
	if diff := cmp.Diff(want, r.Unjudged); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"Nobody's", "npm"}, r.Missing); diff != "" || len(r.Findings) != 0 || !r.Dated.Equal(day()) {
		t.Errorf("%s %+v", diff, r)
	}
	r, err = empty(t).Match(t.Context(), []kiln.Package{goPackage("stdlib", "1.26.8")})
	if err != nil || !slices.Equal(r.Missing, []string{"Go"}) || r.Database != "" || !r.Dated.IsZero() {
		t.Errorf("%+v %v", r, err)
	}
}

// TestARecordThatTheMatcherCannotRead: a false alarm is better than a silence.
func TestARecordThatTheMatcherCannotRead(t *testing.T) {
	db := empty(t)
	record := `{"id":"X-1","affected":[{"package":{"ecosystem":"Debian:12","name":"openssl"},"ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"1"},{"fixed":"y:not one"}]}]}]}`
	if err := db.Import(t.Context(), []Source{source(t, "Debian", map[string]string{"X-1.json": record})}); err != nil {
		t.Fatal(err)
	}
	r, err := db.Match(t.Context(), []kiln.Package{deb("libssl3", "3.0.9-1", "12")})
	if err != nil || len(r.Findings) != 1 || r.Findings[0].ID != "X-1" {
		t.Errorf("%+v %v", r, err)
	}
}

func TestManyMatchWhileItIsReplaced(t *testing.T) {
	db := filled(t, "Go", "Debian")
	one, two := source(t, "Go", fixture(t, "Go")), source(t, "Go", map[string]string{"GO-2099-0005.json": fixture(t, "Go")["GO-2099-0005.json"]})
	packages := []kiln.Package{goPackage("example.com/dead", "v0.1.0"), goPackage("example.com/Mixed/net", "v1.0.0"), deb("libssl3", "3.0.9-1", "12")}
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for range 100 {
				r, err := db.Match(t.Context(), packages)
				if n := len(r.Findings); err != nil || n != 4 && n != 5 {
					t.Errorf("%d findings, %v", n, err)
					return
				}
			}
		})
	}
	for i := range 10 {
		if err := db.Import(t.Context(), []Source{[]Source{two, one}[i%2]}); err != nil {
			t.Fatal(err)
		}
	}
	wait.Wait()
	if s := db.Status(); s.Version != 11 {
		t.Errorf("%+v", s)
	}
}

func TestRating(t *testing.T) {
	for vector, want := range map[string]kiln.Severity{
		"CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H":                    kiln.SeverityCritical,
		"CVSS:3.0/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:H":                    kiln.SeverityHigh,
		"CVSS:3.1/AV:N/AC:H/PR:N/UI:R/S:U/C:L/I:L/A:L":                    kiln.SeverityMedium,
		"CVSS:3.1/AV:P/AC:H/PR:H/UI:R/S:U/C:L/I:N/A:N":                    kiln.SeverityLow,
		"CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N": kiln.SeverityCritical,
		"AV:N/AC:L/Au:N/C:C/I:C/A:C":                                      kiln.SeverityHigh,
		"AV:L/AC:H/Au:M/C:P/I:N/A:N":                                      kiln.SeverityLow,
		"CVSS:3.1/nothing":                                                kiln.SeverityUnknown,
		"medium":                                                          kiln.SeverityUnknown,
		"":                                                                kiln.SeverityUnknown,
	} {
		if got := rating(vector); got != want {
			t.Errorf("%s is %s, not %s", vector, got, want)
		}
	}
}

// TestEveryEcosystemIsCompared: the matcher knows what it is asked about.
func TestEveryEcosystemIsCompared(t *testing.T) {
	for _, name := range Ecosystems() {
		db := empty(t)
		record := fmt.Sprintf(`{"id":"X-1","affected":[{"package":{"ecosystem":%q,"name":"thing"},"ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"0"},{"fixed":"1.2.10"}]}]}]}`, name)
		if err := db.Import(t.Context(), []Source{source(t, name, map[string]string{"X-1.json": record})}); err != nil {
			t.Fatal(err)
		}
		for version, want := range map[string]int{"1.2.9": 1, "1.2.10": 0} {
			r, err := db.Match(t.Context(), []kiln.Package{{Name: "thing", Version: version, Ecosystem: name}})
			if err != nil || len(r.Findings) != want {
				t.Errorf("%s: %s: %+v %v", name, version, r, err)
			}
		}
	}
}
