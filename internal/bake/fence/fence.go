// Package fence gives each RUN of a bake a network of its own: a namespace
// with one routed link, through which it reaches the public Internet over
// IPv4 and a resolver, and nothing else. This machine's own addresses, its
// loopback, private, link-local, metadata and multicast ranges, and other
// RUNs are out of reach.
//
// All names on the machine derive from a tag of six hex digits: links are
// kbTAG0000, the nftables table is kiln_bake_TAG. The namespaces have no name:
// they end with the process that holds them.
package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/kilnproject/kiln"
	"github.com/moby/buildkit/util/network"
	"github.com/vishvananda/netlink"
)

// Nameserver is the resolver's address, the same in every namespace. It is on
// that namespace's own loopback link; BuildKit would drop a 127.0.0.0/8
// address from resolv.conf.
func Nameserver() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 53, 53}) }

// Options configure the network of RUNs.
type Options struct {
	Tag   string         // six hex digits
	Allow []netip.Prefix // private ranges that may be reached
	Log   *slog.Logger
}

// Provider makes a namespace per RUN.
type Provider struct {
	opts  Options
	block netip.Prefix // where the links' addresses come from
	mtu   int

	mu   sync.Mutex
	next uint32
	used map[uint32]bool // pairs of addresses
}

var _ network.Provider = (*Provider)(nil)

// New installs the rules. They hold before the first link exists.
func New(o Options) (*Provider, error) {
	block, err := freeBlock(o.Tag)
	if err != nil {
		return nil, err
	}
	p := &Provider{opts: o, block: block, mtu: uplinkMTU(), used: map[uint32]bool{}}
	if err := enableForwarding(o.Log); err != nil {
		return nil, err
	}
	if err := install(o.Tag, block, o.Allow); err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "modprobe nf_tables",
			"the network rules for RUN cannot be installed: %w", err)
	}
	return p, nil
}

// New makes the namespace of one RUN.
func (p *Provider) New(context.Context, string, network.NamespaceOptions) (network.Namespace, error) {
	n, err := p.take()
	if err != nil {
		return nil, err
	}
	ns, err := p.open(n)
	if err != nil {
		p.give(n)
		return nil, fmt.Errorf("make the network of a RUN: %w", err)
	}
	return ns, nil
}

// Close removes the rules and any link that is left.
func (p *Provider) Close() error { return Sweep(p.opts.Tag) }

// pairs is how many links fit into the block at one time.
func (p *Provider) pairs() uint32 { return 1 << (31 - p.block.Bits()) }

func (p *Provider) take() (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range p.pairs() {
		n := p.next % p.pairs()
		p.next++
		if !p.used[n] {
			p.used[n] = true
			return n, nil
		}
	}
	return 0, kiln.Errorf(kiln.CodeNoRoom, "Bake fewer images at one time.", "more than %d RUNs at one time", p.pairs())
}

func (p *Provider) give(n uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.used, n)
}

// linkPrefix begins the names of this tag's links on the host's side.
func linkPrefix(tag string) string { return "kb" + tag }

// Sweep removes the rules and links of a tag, also those of a process that
// was killed. The rules go last.
func Sweep(tag string) error {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if !strings.HasPrefix(l.Attrs().Name, linkPrefix(tag)) {
			continue
		}
		var gone netlink.LinkNotFoundError
		if err := netlink.LinkDel(l); err != nil && !errors.As(err, &gone) && !errors.Is(err, os.ErrNotExist) && !isNoDevice(err) {
			errs = append(errs, fmt.Errorf("remove link %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(append(errs, uninstall(tag))...)
}
