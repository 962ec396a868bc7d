package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/kilnproject/kiln"
)

const (
	answerTTL  = 2 // seconds: a service's address hardly changes, its being there does
	dnsRate    = 1000
	dnsBurst   = 2000
	dnsClients = 4096 // addresses whose rate is remembered
	dnsIdle    = 10 * time.Second
)

// resolver answers an environment's names to its instances and nothing to
// anyone else. It never asks another server.
type resolver struct {
	g *gateway

	mu    sync.Mutex
	rates map[netip.Addr]*rate
}

// rate is a token bucket.
type rate struct {
	tokens float64
	at     int64
}

func newResolver(g *gateway) *resolver { return &resolver{g: g, rates: map[netip.Addr]*rate{}} }

// serveUDP answers packets until the socket is closed.
func (r *resolver) serveUDP(l *listener, udp net.PacketConn) {
	b := make([]byte, 4096)
	for well := true; ; {
		n, from, err := udp.ReadFrom(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !r.g.pause(l.name, err, well) {
				return
			}
			well = false
			continue
		}
		well = true
		a, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		if out := r.answer(l, a.AddrPort().Addr().Unmap().WithZone(""), b[:n], false); out != nil {
			_, _ = udp.WriteTo(out, from) // a lost answer is asked for again
		}
	}
}

// serveTCP answers the queries of one connection and closes it.
func (r *resolver) serveTCP(l *listener, nc net.Conn) {
	stop := context.AfterFunc(r.g.hard, func() { _ = nc.Close() })
	defer stop()
	c := &dns.Conn{Conn: nc}
	defer func() { _ = c.Close() }()
	client := remoteAddr(nc)
	for !r.g.ending() {
		_ = nc.SetDeadline(time.Now().Add(dnsIdle))
		b, err := c.ReadMsgHeader(nil)
		if err != nil {
			return
		}
		out := r.answer(l, client, b, true)
		if out == nil {
			return
		}
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// answer returns the answer to a query, or nil for none: strangers, floods and
// what is no query get nothing.
func (r *resolver) answer(l *listener, client netip.Addr, query []byte, tcp bool) (answer []byte) {
	defer func() {
		if v := recover(); v != nil { // one query must not end all
			r.g.slog.Error("a query met a defect", "listener", l.name, "panic", v)
			answer = nil
		}
	}()
	t := r.g.table.Load()
	z := t.zones[l.name]
	if z == nil || t.source.Callers[client].Environment != z.Environment || !r.allow(client) {
		return nil
	}
	var q dns.Msg
	if q.Unpack(query) != nil || q.Response {
		return nil
	}
	out := resolve(z, &q)
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = max(size, int(min(opt.UDPSize(), 1232)))
		out.SetEdns0(1232, false)
	}
	if !tcp {
		out.Truncate(size)
	}
	b, err := out.Pack()
	if err != nil {
		return nil
	}
	return b
}

// resolve answers one question from a zone.
func resolve(z *kiln.Zone, q *dns.Msg) *dns.Msg {
	out := new(dns.Msg)
	out.SetReply(q)
	out.Authoritative = true
	out.RecursionAvailable = true // stub resolvers give up on a server without; names elsewhere do not exist here
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		return refused(out, dns.RcodeNotImplemented)
	}
	question := q.Question[0]
	if question.Qclass != dns.ClassINET {
		return refused(out, dns.RcodeRefused)
	}
	if question.Qtype == dns.TypePTR {
		return refused(out, dns.RcodeRefused)
	}
	addresses, ok := z.Names[strings.ToLower(strings.TrimSuffix(question.Name, "."))]
	if !ok {
		return refused(out, dns.RcodeNameError)
	}
	for _, a := range addresses {
		h := dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Ttl: answerTTL}
		switch {
		case question.Qtype == dns.TypeA && a.Unmap().Is4():
			h.Rrtype = dns.TypeA
			out.Answer = append(out.Answer, &dns.A{Hdr: h, A: a.Unmap().AsSlice()})
		case question.Qtype == dns.TypeAAAA && !a.Unmap().Is4():
			h.Rrtype = dns.TypeAAAA
			out.Answer = append(out.Answer, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	return out
}

func refused(out *dns.Msg, code int) *dns.Msg {
	out.Rcode = code
	return out
}

// allow bounds the queries of one instance.
func (r *resolver) allow(client netip.Addr) bool {
	now := r.g.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.rates[client]
	if b == nil {
		if len(r.rates) >= dnsClients {
			clear(r.rates)
		}
		b = &rate{tokens: dnsBurst, at: now}
		r.rates[client] = b
	}
	b.tokens = min(dnsBurst, b.tokens+dnsRate*time.Duration(now-b.at).Seconds())
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
