package nft_test

import (
	"net/netip"
	"os"
	"testing"

	"github.com/kilnproject/kiln/internal/local/nft"
)

func ruleset(instances int) nft.Ruleset {
	r := nft.Ruleset{
		Table: "kiln_nfttest", Links: "knfttes-", Subnet: netip.MustParsePrefix("10.222.0.0/16"), Group: 4242,
		Environments: []nft.Environment{{
			Blocks: []netip.Prefix{netip.MustParsePrefix("10.222.16.0/24")},
			Open:   []nft.Endpoint{{Address: netip.MustParseAddr("10.222.0.1"), Protocol: 6, Port: 80}},
		}, {}},
		Fleets: []nft.Fleet{{
			Prefixes: []nft.PrefixPort{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Protocol: 6, Port: 443}, {Prefix: netip.MustParsePrefix("10.1.0.0/16"), Protocol: 17, Port: 53}},
			Hosts:    []nft.Endpoint{{Address: netip.MustParseAddr("192.0.2.9"), Protocol: 6, Port: 443}},
		}},
	}
	a := netip.MustParseAddr("10.222.16.1")
	for range instances {
		r.Fleets[0].Instances = append(r.Fleets[0].Instances, a)
		a = a.Next()
	}
	return r
}

func TestApply(t *testing.T) {
	root(t)
	t.Cleanup(func() {
		if err := nft.Remove("kiln_nfttest"); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		if err := nft.Apply(ruleset(3)); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkApply500(b *testing.B) {
	root(b)
	b.Cleanup(func() { _ = nft.Remove("kiln_nfttest") })
	r := ruleset(500)
	for b.Loop() {
		if err := nft.Apply(r); err != nil {
			b.Fatal(err)
		}
	}
}

func root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1")
	}
}
