// Package nflog reads the packets that a filter logs to one nflog group
// (Linux, include/uapi/linux/netfilter/nfnetlink_log.h). It reports who tried
// to reach what and keeps nothing.
package nflog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Messages and attributes of the subsystem.
const (
	messagePacket = unix.NFNL_SUBSYS_ULOG << 8
	messageConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1

	configCommand   = 1
	configMode      = 2
	configTimeout   = 4 // hundredths of a second
	configThreshold = 5

	commandBind = 1
	copyPacket  = 2
	snapLength  = 64 // bytes: the IPv4 header with options, and the ports

	packetPayload = 9
)

// Attempt is one packet that was refused.
type Attempt struct {
	From     netip.Addr
	To       netip.AddrPort // port 0 where the protocol has none
	Protocol string         // "tcp", "udp", "icmp", or its number
}

// Listener reads one group. There is one per group on a machine.
type Listener struct {
	conn  *netlink.Conn
	group uint16

	closed atomic.Bool
}

// Listen binds the group. The error is unix.EBUSY when somebody else has it.
func Listen(group uint16) (*Listener, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open nflog: %w", err)
	}
	l := &Listener{conn: conn, group: group}
	if err := l.configure(); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("bind nflog group %d: %w", group, err)
	}
	return l, nil
}

func (l *Listener) configure() error {
	mode := make([]byte, 6)
	binary.BigEndian.PutUint32(mode, snapLength)
	mode[4] = copyPacket
	// A tenth of a second at most, and no waiting for a second packet: the
	// kernel's own default holds an attempt back for a second.
	steps := []netlink.Attribute{
		{Type: configCommand, Data: []byte{commandBind}},
		{Type: configMode, Data: mode},
		{Type: configTimeout, Data: binary.BigEndian.AppendUint32(nil, 10)},
		{Type: configThreshold, Data: binary.BigEndian.AppendUint32(nil, 1)},
	}
	for _, a := range steps {
		body, err := netlink.MarshalAttributes([]netlink.Attribute{a})
		if err != nil {
			return err
		}
		header := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, byte(l.group >> 8), byte(l.group)}
		message := netlink.Message{
			Header: netlink.Header{Type: messageConfig, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(header, body...),
		}
		if _, err := l.conn.Execute(message); err != nil {
			return err
		}
	}
	return nil
}

// Run calls report for each attempt until ctx ends or the listener is closed, and
// closes it.
func (l *Listener) Run(ctx context.Context, report func(Attempt)) error {
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	defer func() { _ = l.conn.Close() }()
	for {
		messages, err := l.conn.Receive()
		switch {
		case ctx.Err() != nil, l.closed.Load():
			return nil
		case errors.Is(err, unix.ENOBUFS):
			continue // attempts were lost; the filter limits them anyway
		case err != nil:
			return fmt.Errorf("read nflog group %d: %w", l.group, err)
		}
		for _, m := range messages {
			if m.Header.Type != messagePacket || len(m.Data) < 4 {
				continue
			}
			if a, ok := parse(m.Data[4:]); ok {
				report(a)
			}
		}
	}
}

// Close gives the group back, and ends Run.
func (l *Listener) Close() error {
	l.closed.Store(true)
	return l.conn.Close()
}

// parse reads the attributes of a packet message.
func parse(attributes []byte) (Attempt, bool) {
	d, err := netlink.NewAttributeDecoder(attributes)
	if err != nil {
		return Attempt{}, false
	}
	for d.Next() {
		if d.Type() == packetPayload {
			return parseIPv4(d.Bytes())
		}
	}
	return Attempt{}, false
}

// parseIPv4 reads the head of a packet that a stranger wrote.
func parseIPv4(b []byte) (Attempt, bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return Attempt{}, false
	}
	size := int(b[0]&0x0f) * 4
	if size < 20 {
		return Attempt{}, false
	}
	from, _ := netip.AddrFromSlice(b[12:16])
	to, _ := netip.AddrFromSlice(b[16:20])
	a := Attempt{From: from, To: netip.AddrPortFrom(to, 0), Protocol: protocol(b[9])}
	first := binary.BigEndian.Uint16(b[6:8])&0x1fff == 0 // not a later fragment
	if (b[9] == unix.IPPROTO_TCP || b[9] == unix.IPPROTO_UDP) && first && len(b) >= size+4 {
		a.To = netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[size+2:size+4]))
	}
	return a, true
}

func protocol(number byte) string {
	switch number {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	}
	return fmt.Sprintf("protocol %d", number)
}
