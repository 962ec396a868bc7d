// Package nft writes the packet filter of one data directory: one table in
// the inet family, replaced as a whole in one transaction, so that it is
// either the old or the new one at any moment. It knows addresses and ports,
// not services.
//
// An instance may open connections to the virtual addresses of its own
// environment and to what its fleet declares. Everything else it tries is
// refused and logged to an nflog group; answers go by connection tracking.
// Nobody but the host itself may open a connection to an instance.
package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// sendBuffer is the size of the netlink socket's buffer in bytes: a whole
// ruleset goes out in one message.
const sendBuffer = 32 << 20

// Ruleset is all that the table holds.
type Ruleset struct {
	Table  string       // its name
	Links  string       // prefix of the names of the instances' links
	Subnet netip.Prefix // of all instances and virtual addresses
	Group  uint16       // the nflog group that gets what was refused
	// Environments by name; what one may reach.
	Environments []Environment
	// Fleets with declared egress.
	Fleets []Fleet
}

// Environment is one environment's addresses.
type Environment struct {
	Blocks []netip.Prefix // /24 blocks of its instances
	Open   []Endpoint     // its virtual addresses
}

// Fleet is a set of instances and what they may reach outside.
type Fleet struct {
	Instances []netip.Addr
	Prefixes  []PrefixPort
	Hosts     []Endpoint // resolved names
}

// Endpoint is an address, a protocol (unix.IPPROTO_TCP or UDP) and a port.
type Endpoint struct {
	Address  netip.Addr
	Protocol uint8
	Port     uint16
}

// PrefixPort is a range of addresses, a protocol and a port.
type PrefixPort struct {
	Prefix   netip.Prefix
	Protocol uint8
	Port     uint16
}

// Apply replaces the table by what the ruleset says.
func Apply(r Ruleset) error {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(sendBuffer))
	}))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	w := newWriter(conn, r)
	if err := w.write(); err != nil {
		return fmt.Errorf("compose table %s: %w", r.Table, err)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("replace table %s: %w", r.Table, err)
	}
	return nil
}

// Remove deletes a table, if it is there.
func Remove(name string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	conn.AddTable(table)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove table %s: %w", name, err)
	}
	return nil
}

// Blockers names the foreign chains on the forward hook whose policy is drop:
// they stop declared egress, whatever this table accepts.
func Blockers(own string) ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var out []string
	for _, c := range chains {
		forward := c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward
		drops := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		if forward && drops && c.Table.Name != own {
			out = append(out, strings.TrimSpace(c.Table.Name+" "+c.Name))
		}
	}
	return out, nil
}

// writer composes one transaction.
type writer struct {
	conn  *nftables.Conn
	rules Ruleset
	table *nftables.Table
	err   error
}

func newWriter(conn *nftables.Conn, r Ruleset) *writer {
	return &writer{
		conn: conn, rules: r,
		table: &nftables.Table{Name: r.Table, Family: nftables.TableFamilyINet},
	}
}

func (w *writer) write() error {
	w.conn.AddTable(w.table)
	w.conn.DelTable(w.table)
	w.conn.AddTable(w.table)
	w.blocked()
	w.environments()
	w.fleets()
	w.instances()
	w.hooks()
	return w.err
}

func (w *writer) chain(name string) *nftables.Chain {
	return w.conn.AddChain(&nftables.Chain{Name: name, Table: w.table})
}

func (w *writer) rule(c *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	w.conn.AddRule(&nftables.Rule{Table: w.table, Chain: c, Exprs: all})
}

func (w *writer) set(s *nftables.Set, elements []nftables.SetElement) *nftables.Set {
	s.Table = w.table
	if err := w.conn.AddSet(s, elements); err != nil && w.err == nil {
		w.err = fmt.Errorf("set %s: %w", s.Name, err)
	}
	return s
}

// blocked logs, with a limit per instance so that one cannot drown the
// others, and refuses.
func (w *writer) blocked() {
	noise := w.set(&nftables.Set{
		Name: "noise", KeyType: nftables.TypeIPAddr, Dynamic: true, HasTimeout: true, Timeout: time.Minute, Size: 65535,
	}, nil)
	c := w.chain("blocked")
	w.rule(c, ipv4(), load(saddr()), []expr.Any{
		&expr.Dynset{
			SrcRegKey: 1, SetName: noise.Name, SetID: noise.ID, Operation: unix.NFT_DYNSET_OP_UPDATE,
			Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: 20, Unit: expr.LimitTimeSecond, Burst: 40}},
		},
		&expr.Log{
			Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_QTHRESHOLD,
			Group: w.rules.Group, Snaplen: 64, QThreshold: 1,
		},
	})
	// By a reset where there is one: of ICMP errors the kernel sends an instance
	// six and then one a second, and what comes after would wait for nothing.
	w.rule(c, tcp(), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	w.rule(c, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
}

func (w *writer) environments() {
	var blocks []nftables.SetElement
	for i, env := range w.rules.Environments {
		name := fmt.Sprintf("environment_%d", i)
		open := w.endpoints(fmt.Sprintf("open_%d", i), env.Open)
		w.rule(w.chain(name), destination(), inSet(open), verdict(expr.VerdictAccept, ""))
		for _, b := range env.Blocks {
			blocks = append(blocks, nftables.SetElement{
				Key: b.Addr().AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: name},
			})
		}
	}
	w.set(&nftables.Set{Name: "blocks", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict}, blocks)
}

func (w *writer) fleets() {
	var callers []nftables.SetElement
	for i, f := range w.rules.Fleets {
		name := fmt.Sprintf("fleet_%d", i)
		w.fleet(w.chain(name), i, f)
		for _, a := range f.Instances {
			callers = append(callers, nftables.SetElement{
				Key: a.AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: name},
			})
		}
	}
	w.set(&nftables.Set{Name: "callers", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict}, callers)
}

// fleet accepts what was declared. A private range is reached only when it
// was declared as such: neither a wide range nor a name that resolves into
// one opens it.
func (w *writer) fleet(c *nftables.Chain, number int, f Fleet) {
	for _, p := range f.Prefixes {
		if isPrivate(p.Prefix) {
			w.rule(c, to(p.Prefix), port(p.Protocol, p.Port), verdict(expr.VerdictAccept, ""))
		}
	}
	for _, p := range private() {
		w.rule(c, to(p), verdict(expr.VerdictGoto, "blocked"))
	}
	for _, p := range f.Prefixes {
		if !isPrivate(p.Prefix) {
			w.rule(c, to(p.Prefix), port(p.Protocol, p.Port), verdict(expr.VerdictAccept, ""))
		}
	}
	if len(f.Hosts) > 0 {
		hosts := w.endpoints(fmt.Sprintf("hosts_%d", number), f.Hosts)
		w.rule(c, destination(), inSet(hosts), verdict(expr.VerdictAccept, ""))
	}
	w.rule(c, verdict(expr.VerdictGoto, "blocked"))
}

func (w *writer) endpoints(name string, list []Endpoint) *nftables.Set {
	key := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	seen := map[Endpoint]bool{}
	var elements []nftables.SetElement
	for _, e := range list {
		if seen[e] {
			continue
		}
		seen[e] = true
		elements = append(elements, nftables.SetElement{Key: e.key()})
	}
	return w.set(&nftables.Set{Name: name, KeyType: key, Concatenation: true}, elements)
}

func inSet(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: s.Name, SetID: s.ID}}
}

// key is the element of an address . protocol . port set, each part padded to
// four bytes.
func (e Endpoint) key() []byte {
	a := e.Address.As4()
	return []byte{a[0], a[1], a[2], a[3], e.Protocol, 0, 0, 0, byte(e.Port >> 8), byte(e.Port), 0, 0}
}

// instances is what a packet from an instance goes through, whether it is for
// the host or to be forwarded.
func (w *writer) instances() {
	c := w.chain("instances")
	w.rule(c, notIPv4(), verdict(expr.VerdictDrop, ""))
	// Before the answers: what looks like another's connection is none.
	w.rule(c, spoofed(), verdict(expr.VerdictDrop, ""))
	w.rule(c, answers(), verdict(expr.VerdictAccept, ""))
	w.rule(c, load(saddr()), mask24(), verdictMap("blocks"))
	w.rule(c, toHost(), verdict(expr.VerdictGoto, "blocked"))
	for _, p := range append(never(), w.rules.Subnet) {
		w.rule(c, to(p), verdict(expr.VerdictGoto, "blocked"))
	}
	w.rule(c, load(saddr()), verdictMap("callers"))
	w.rule(c, verdict(expr.VerdictGoto, "blocked"))
}

func (w *writer) hooks() {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		policy := nftables.ChainPolicyAccept
		return w.conn.AddChain(&nftables.Chain{Name: name, Table: w.table, Type: kind, Hooknum: hook, Priority: priority, Policy: &policy})
	}
	input := base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	w.rule(input, fromLinks(w.rules.Links), verdict(expr.VerdictGoto, "instances"))
	// A neighbour of this host could route to the virtual addresses.
	w.rule(input, notFromLoopback(), to(w.rules.Subnet), verdict(expr.VerdictDrop, ""))

	forward := base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	w.rule(forward, fromLinks(w.rules.Links), verdict(expr.VerdictGoto, "instances"))
	w.rule(forward, toLinks(w.rules.Links), answers(), verdict(expr.VerdictAccept, ""))
	w.rule(forward, toLinks(w.rules.Links), verdict(expr.VerdictDrop, ""))

	nat := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	// Only what was forwarded has an incoming link here; a connection of the
	// host's own keeps its address.
	w.rule(nat, fromLinks(w.rules.Links), []expr.Any{&expr.Masq{}})
}

// never are the ranges that no declaration opens: this host, link-local with
// the metadata service, multicast, reserved.
func never() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("224.0.0.0/3"),
	}
}

// private are the ranges that only an explicit declaration opens.
func private() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("100.64.0.0/10"),
	}
}

func isPrivate(p netip.Prefix) bool {
	for _, q := range private() {
		if p.Bits() >= q.Bits() && q.Contains(p.Addr()) {
			return true
		}
	}
	return false
}
