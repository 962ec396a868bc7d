package fence

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

func tableName(tag string) string { return "kiln_bake_" + tag }

// uninstall removes the table of a tag if it is there.
func uninstall(tag string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName(tag)})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("remove table %s: %w", tableName(tag), err)
	}
	return nil
}

// install replaces the table of a tag:
//
//	chain forward, hook forward:
//	  iifname "kbTAG*" jump guest
//	  oifname "kbTAG*" ct state != established,related drop
//	chain guest:
//	  not IPv4, or not from the block: drop
//	  ip daddr allowed: accept; ip daddr private: drop
//	chain input, hook input:
//	  iifname "kbTAG*" drop
//	chain leave, hook postrouting:
//	  ip saddr block oifname != "kbTAG*" masquerade
func install(tag string, block netip.Prefix, allow []netip.Prefix) error {
	if err := uninstall(tag); err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName(tag)})
	prefix := linkPrefix(tag)
	guest := c.AddChain(&nftables.Chain{Name: "guest", Table: t})
	add := func(chain *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: all})
	}
	drop, accept := verdict(expr.VerdictDrop, ""), verdict(expr.VerdictAccept, "")

	add(guest, notIPv4(), drop)
	add(guest, notFrom(block), drop)
	for _, p := range allow {
		if p.Addr().Is4() {
			add(guest, to(p), accept)
		}
	}
	for _, p := range Private() {
		if p.Addr().Is4() {
			add(guest, to(p), drop)
		}
	}

	forward := c.AddChain(base(t, "forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter))
	add(forward, link(expr.MetaKeyIIFNAME, expr.CmpOpEq, prefix), verdict(expr.VerdictJump, "guest"))
	add(forward, link(expr.MetaKeyOIFNAME, expr.CmpOpEq, prefix), notEstablished(), drop)

	input := c.AddChain(base(t, "input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter))
	add(input, link(expr.MetaKeyIIFNAME, expr.CmpOpEq, prefix), drop)

	leave := c.AddChain(base(t, "leave", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource))
	add(leave, from(block), link(expr.MetaKeyOIFNAME, expr.CmpOpNeq, prefix), []expr.Any{&expr.Masq{}})

	if err := c.Flush(); err != nil {
		return fmt.Errorf("install table %s: %w", tableName(tag), err)
	}
	return nil
}

func base(t *nftables.Table, name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	policy := nftables.ChainPolicyAccept // other traffic is none of ours
	return &nftables.Chain{Name: name, Table: t, Type: kind, Hooknum: hook, Priority: prio, Policy: &policy}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

// link matches links whose names begin with prefix, or do not.
func link(key expr.MetaKey, op expr.CmpOp, prefix string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte(prefix)},
	}
}

func notIPv4() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
	}
}

func isIPv4() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
	}
}

const (
	sourceOffset      = 12 // of the IPv4 header
	destinationOffset = 16
)

func to(p netip.Prefix) []expr.Any { return address(destinationOffset, expr.CmpOpEq, p) }

func notFrom(p netip.Prefix) []expr.Any { return address(sourceOffset, expr.CmpOpNeq, p) }

func from(p netip.Prefix) []expr.Any {
	return append(isIPv4(), address(sourceOffset, expr.CmpOpEq, p)...)
}

func address(at uint32, op expr.CmpOp, p netip.Prefix) []expr.Any {
	mask := ipNet(p.Addr(), p.Bits()).Mask
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: []byte{0, 0, 0, 0}},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func notEstablished() []expr.Any {
	mask := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: []byte{0, 0, 0, 0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 0, 0, 0}},
	}
}
