// Package subnet gives out the addresses and ID ranges of one data directory:
// a /16 network, virtual addresses of services in its first /20, blocks of
// 254 instance addresses per environment in the rest, and 65,536 user IDs per
// environment. It is bookkeeping: it asks the kernel nothing and writes
// nothing; its owner saves it whenever a method says that it changed.
package subnet

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/kilnproject/kiln"
)

const (
	firstBlock = 16  // the blocks before it hold virtual addresses
	blocks     = 256 // /24s in a /16
	virtuals   = firstBlock * 256
	perBlock   = 254

	// User IDs above those that system managers give to containers and below
	// 2^31, in slots of 65,536.
	firstID = 0x7000_0000
	slots   = 4094
	idCount = 65536
)

// Plan is what was given out. Its JSON is kept on disk; addresses of
// instances are not in it, because what lives claims them again.
type Plan struct {
	Subnet       netip.Prefix            `json:"subnet"`
	Group        uint16                  `json:"group"` // nflog
	Environments map[string]*Environment `json:"environments"`

	used  map[netip.Addr]bool
	freed map[netip.Addr]time.Time // when it may be used again
}

// Environment is one environment's share.
type Environment struct {
	UIDBase  uint32                `json:"uid_base"`
	Resolver netip.Addr            `json:"resolver"`
	Services map[string]netip.Addr `json:"services"` // virtual addresses by service
	Blocks   []int                 `json:"blocks"`   // third octets

	cursor int // where the search for an address goes on
}

// Range is IDs that somebody else uses, both ends included.
type Range struct{ First, Last uint32 }

// New makes a plan in the subnet.
func New(subnet netip.Prefix, group uint16) *Plan {
	p := &Plan{Subnet: subnet, Group: group, Environments: map[string]*Environment{}}
	p.Init()
	return p
}

// Init makes a plan usable that was read from JSON.
func (p *Plan) Init() {
	p.used, p.freed = map[netip.Addr]bool{}, map[netip.Addr]time.Time{}
	if p.Environments == nil {
		p.Environments = map[string]*Environment{}
	}
}

// Choose returns a free private /16: of 10.64.0.0/10, beginning where the seed
// says, else of 100.64.0.0/10, else of 172.16.0.0/12.
func Choose(seed uint32, taken []netip.Prefix) (netip.Prefix, error) {
	for _, r := range []struct{ first, second, count byte }{{10, 64, 64}, {100, 64, 64}, {172, 16, 16}} {
		for i := range uint32(r.count) {
			octet := r.second + byte((seed+i)%uint32(r.count))
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{r.first, octet, 0, 0}), 16)
			if !slices.ContainsFunc(taken, p.Overlaps) {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, kiln.Errorf(kiln.CodeNoRoom, "free a /16 of 10.64.0.0/10 on this host",
		"every private /16 overlaps with a route of this host")
}

// Source is the address that the host's own connections to instances come
// from. It is always held.
func (p *Plan) Source() netip.Addr { return p.virtual(1) }

func (p *Plan) virtual(n int) netip.Addr {
	a := p.Subnet.Addr().As4()
	return netip.AddrFrom4([4]byte{a[0], a[1], byte(n >> 8), byte(n)}) // n is below 4096
}

// Open returns an environment's share, made when it is new; changed says so.
func (p *Plan) Open(name string, foreign []Range) (e *Environment, changed bool, err error) {
	if e, ok := p.Environments[name]; ok {
		return e, false, nil
	}
	base, err := p.freeIDs(name, foreign)
	if err != nil {
		return nil, false, err
	}
	resolver, err := p.Next()
	if err != nil {
		return nil, false, err
	}
	e = &Environment{UIDBase: base, Resolver: resolver, Services: map[string]netip.Addr{}}
	p.Environments[name] = e
	return e, true, nil
}

// Close takes an environment's share back.
func (p *Plan) Close(name string) { delete(p.Environments, name) }

// Service returns a service's virtual address, given when it has none yet.
func (p *Plan) Service(e *Environment, name string) (a netip.Addr, changed bool, err error) {
	if a, ok := e.Services[name]; ok {
		return a, false, nil
	}
	if a, err = p.Next(); err != nil {
		return netip.Addr{}, false, err
	}
	if e.Services == nil {
		e.Services = map[string]netip.Addr{}
	}
	e.Services[name] = a
	return a, true, nil
}

// Next is the virtual address that is given out next.
func (p *Plan) Next() (netip.Addr, error) {
	taken := map[netip.Addr]bool{p.Source(): true}
	for _, e := range p.Environments {
		taken[e.Resolver] = true
		for _, a := range e.Services {
			taken[a] = true
		}
	}
	for n := 2; n < virtuals; n++ {
		if a := p.virtual(n); !taken[a] {
			return a, nil
		}
	}
	return netip.Addr{}, kiln.Errorf(kiln.CodeNoRoom, "end environments that are not needed: kiln down", "all %d virtual addresses are in use", virtuals-2)
}

func (p *Plan) freeIDs(name string, foreign []Range) (uint32, error) {
	taken := map[uint32]bool{}
	for _, e := range p.Environments {
		taken[e.UIDBase] = true
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(p.Subnet.String() + "/" + name))
	for i := range uint32(slots) {
		base := firstID + (h.Sum32()%slots+i)%slots*idCount
		last := base + idCount - 1
		if !taken[base] && !slices.ContainsFunc(foreign, func(r Range) bool { return r.First <= last && base <= r.Last }) {
			return base, nil
		}
	}
	return 0, kiln.Errorf(kiln.CodeNoRoom, "end environments that are not needed: kiln down", "all %d ranges of user IDs are in use", slots)
}

// Take gives out an instance's address. One that was released is not given
// out again before its rest is over.
func (p *Plan) Take(e *Environment, now time.Time) (a netip.Addr, changed bool, err error) {
	for range len(e.Blocks) * perBlock {
		a := p.instance(e.Blocks[e.cursor/perBlock%len(e.Blocks)], e.cursor%perBlock)
		e.cursor = (e.cursor + 1) % (len(e.Blocks) * perBlock)
		if p.used[a] || now.Before(p.freed[a]) {
			continue
		}
		delete(p.freed, a)
		p.used[a] = true
		return a, false, nil
	}
	block, err := p.freeBlock()
	if err != nil {
		return netip.Addr{}, false, err
	}
	e.Blocks = append(e.Blocks, block)
	e.cursor = (len(e.Blocks) - 1) * perBlock
	a, _, err = p.Take(e, now)
	return a, true, err
}

func (p *Plan) instance(block, n int) netip.Addr {
	a := p.Subnet.Addr().As4()
	return netip.AddrFrom4([4]byte{a[0], a[1], byte(block), byte(n + 1)}) // both are below 256
}

func (p *Plan) freeBlock() (int, error) {
	taken := map[int]bool{}
	for _, e := range p.Environments {
		for _, b := range e.Blocks {
			taken[b] = true
		}
	}
	for b := firstBlock; b < blocks; b++ {
		if !taken[b] {
			return b, nil
		}
	}
	return 0, kiln.Errorf(kiln.CodeNoRoom, "run fewer instances", "all addresses of %s are in use", p.Subnet)
}

// Claim marks the address of an instance that lives already.
func (p *Plan) Claim(a netip.Addr) { p.used[a] = true }

// Release gives an instance's address back; it rests until the given time.
func (p *Plan) Release(a netip.Addr, until time.Time) {
	delete(p.used, a)
	p.freed[a] = until
}

// Free counts the instance addresses that an environment could still get.
func (p *Plan) Free(e *Environment) int {
	others := 0
	for _, o := range p.Environments {
		if o != e {
			others += len(o.Blocks)
		}
	}
	n := (blocks - firstBlock - others) * perBlock
	for a := range p.used {
		if slices.Contains(e.Blocks, int(a.As4()[2])) {
			n--
		}
	}
	return n
}

// Prefixes are an environment's blocks.
func (p *Plan) Prefixes(e *Environment) []netip.Prefix {
	a := p.Subnet.Addr().As4()
	var out []netip.Prefix
	for _, b := range e.Blocks {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{a[0], a[1], byte(b), 0}), 24)) // below 256
	}
	return out
}

// Seed turns a data directory's tag into a starting point for choices.
func Seed(tag string) uint32 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(tag))
	return binary.BigEndian.Uint32(h.Sum(nil))
}
