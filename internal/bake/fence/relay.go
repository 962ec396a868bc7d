package fence

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/semaphore"
)

const (
	queryTimeout = 3 * time.Second // per server and attempt
	maxQueries   = 64              // at one time, per namespace
	resolvConf   = "/etc/resolv.conf"
)

// relay answers DNS in a namespace by asking the host's resolvers from the
// host's side, whatever addresses those have.
type relay struct {
	servers []*dns.Server
	room    *semaphore.Weighted
	serving sync.WaitGroup
	ctx     context.Context // ends the queries in flight
	cancel  context.CancelFunc
}

// listenRelay opens the sockets in the calling thread's namespace.
func listenRelay() (*relay, error) {
	at := netip.AddrPortFrom(Nameserver(), 53)
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	tcp, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, errors.Join(err, udp.Close())
	}
	r := &relay{room: semaphore.NewWeighted(maxQueries)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.servers = []*dns.Server{{PacketConn: udp, Handler: r}, {Listener: tcp, Handler: r}}
	return r, nil
}

// start serves until stop.
func (r *relay) start() {
	for _, s := range r.servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		r.serving.Add(1)
		ended := make(chan struct{})
		go func() {
			defer r.serving.Done()
			defer close(ended)
			_ = s.ActivateAndServe() // its end is our own doing
		}()
		select {
		case <-started:
		case <-ended:
		}
	}
}

func (r *relay) stop() error {
	r.cancel()
	var err error
	for _, s := range r.servers {
		if down := s.Shutdown(); down != nil { // never started
			if s.PacketConn != nil {
				err = errors.Join(err, s.PacketConn.Close())
			}
			if s.Listener != nil {
				err = errors.Join(err, s.Listener.Close())
			}
		}
	}
	r.serving.Wait()
	return err
}

// ServeDNS asks each of the host's resolvers in turn.
func (r *relay) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if !r.room.TryAcquire(1) {
		refuse(w, q, dns.RcodeServerFailure)
		return
	}
	defer r.room.Release(1)
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		refuse(w, q, dns.RcodeNotImplemented)
		return
	}
	conf, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil {
		refuse(w, q, dns.RcodeServerFailure)
		return
	}
	_, overTCP := w.RemoteAddr().(*net.TCPAddr)
	for _, server := range conf.Servers {
		if a := r.ask(q, net.JoinHostPort(server, conf.Port), overTCP); a != nil {
			_ = w.WriteMsg(a) // the asker may be gone
			return
		}
	}
	refuse(w, q, dns.RcodeServerFailure)
}

func (r *relay) ask(q *dns.Msg, server string, overTCP bool) *dns.Msg {
	c := &dns.Client{Net: "udp", Timeout: queryTimeout, UDPSize: dns.MaxMsgSize}
	if overTCP {
		c.Net = "tcp"
	}
	a, _, err := c.ExchangeContext(r.ctx, q, server)
	if err != nil {
		return nil
	}
	return a
}

func refuse(w dns.ResponseWriter, q *dns.Msg, code int) {
	_ = w.WriteMsg(new(dns.Msg).SetRcode(q, code)) // the asker may be gone
}
