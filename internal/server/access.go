package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/kilnproject/kiln"
)

// What callers over TCP may ask for.
const (
	tokenRate   = 50 // requests a second of one token
	tokenBurst  = 200
	tokenAtOnce = 64 // requests of one token that run, streams included

	addressRate  = 100 // requests a second of one address, before anybody is known
	addressBurst = 400

	// A client of the registry makes a few requests for each layer, of many
	// images at once: of one token or address it may be so many.
	registryRate  = 1000
	registryBurst = 5000

	// A login that fails is answered late: the first few of an address after a
	// moment, then one each failEvery. What would wait longer than failLimit is
	// told to come again.
	failFirst = 250 * time.Millisecond
	failEvery = 2 * time.Second
	failBurst = 5
	failLimit = 10 * time.Second

	// knownAddresses bounds what is remembered of addresses.
	knownAddresses = 4096
	// eventEvery is how often failed logins make an event.
	eventEvery = 10 * time.Second
	eventBurst = 10
)

// caller is who makes a request.
type caller struct {
	actor string // as the ledger has it
	role  kiln.Role
	reach kiln.Reach
	token *kiln.Token // nil for one who came over the Unix socket
	// images is true for one who came to the registry.
	images bool
}

// Access decides who may use the API over TCP. Its methods may be called at
// once.
type Access struct {
	record func(kiln.Event)

	mu        sync.Mutex
	tokens    []kiln.Token
	holders   map[kiln.Digest]*holder
	addresses *lru.Cache[netip.Prefix, *address]
	events    *rate.Limiter
	untold    int // failed logins since the last event
}

// holder is what is known of a token in use.
type holder struct {
	limit   *rate.Limiter
	images  *rate.Limiter // of the registry
	running map[*visit]struct{}
}

// visit is a request that runs.
type visit struct {
	token  kiln.Token
	cancel context.CancelCauseFunc
}

// address is what is known of where requests come from.
type address struct {
	limit  *rate.Limiter
	images *rate.Limiter // of the registry
	failed *rate.Limiter
}

// NewAccess lets nobody in until SetTokens. Record takes events about those
// who were refused; it may be nil.
func NewAccess(record func(kiln.Event)) *Access {
	addresses, err := lru.New[netip.Prefix, *address](knownAddresses)
	if err != nil {
		panic(err) // the size is positive
	}
	return &Access{
		record: record, holders: map[kiln.Digest]*holder{}, addresses: addresses,
		events: rate.NewLimiter(rate.Every(eventEvery), eventBurst),
	}
}

// SetTokens exchanges who may enter. Requests that run by a token that is gone
// or has changed end.
func (a *Access) SetTokens(tokens []kiln.Token) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens = append([]kiln.Token(nil), tokens...)
	for digest, h := range a.holders {
		now, ok := a.find(digest)
		for v := range h.running {
			if !ok || !reflect.DeepEqual(now, v.token) {
				v.cancel(kiln.Errorf(kiln.CodeRefused, "ask who looks after kilnd.hcl", "token %s was revoked or changed meanwhile", v.token.Name))
			}
		}
		if !ok && len(h.running) == 0 {
			delete(a.holders, digest)
		}
	}
}

// find returns a token by its digest, in a time that does not depend on which
// it is. a.mu is held.
func (a *Access) find(digest kiln.Digest) (kiln.Token, bool) {
	found := -1
	for i, t := range a.tokens {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare([]byte(t.Digest), []byte(digest)), i, found)
	}
	if found < 0 {
		return kiln.Token{}, false
	}
	return a.tokens[found], true
}

// denial is an error with an HTTP status of its own.
type denial struct {
	shown  *kiln.Error
	status int
	after  time.Duration // when to come again; 0 for never
}

func (d *denial) Error() string { return d.shown.Message }

func (d *denial) Unwrap() error { return d.shown }

func unauthenticated(message, hint string) *denial {
	return &denial{shown: kiln.Errorf(kiln.CodeRefused, hint, "%s", message), status: http.StatusUnauthorized}
}

func busy(after time.Duration, format string, args ...any) *denial {
	return &denial{
		shown:  kiln.Errorf(kiln.CodeUnavailable, "wait a moment, and try again", format, args...),
		status: http.StatusTooManyRequests, after: max(after, time.Second).Round(time.Second),
	}
}

// enter says who makes a request, or why nobody may.
func (a *Access) enter(ctx context.Context, from netip.Addr, authorization string) (caller, error) {
	known := a.address(from)
	if !known.limit.Allow() {
		return caller{}, busy(time.Second, "too many requests from %s: at most %d a second", from, addressRate)
	}
	return a.known(ctx, known, from, authorization)
}

// visit is enter for the registry. Its clients begin without saying who they
// are, and that is no login that failed.
func (a *Access) visit(ctx context.Context, from netip.Addr, authorization string) (caller, error) {
	known := a.address(from)
	switch {
	case !known.images.Allow():
		return caller{}, busy(time.Second, "too many requests from %s: at most %d a second", from, registryRate)
	case authorization == "":
		return caller{}, unauthenticated("the registry needs a token: log in with any user name and the token as the password", "")
	}
	c, err := a.known(ctx, known, from, authorization)
	c.images = true
	return c, err
}

// known finds out who makes a request. One who fails waits.
func (a *Access) known(ctx context.Context, known *address, from netip.Addr, authorization string) (caller, error) {
	token, problem := a.login(authorization)
	if problem == nil {
		return caller{actor: "token:" + token.Name, role: token.Role, reach: token.Reach, token: &token}, nil
	}
	a.tell(from, problem.Error())
	wait := known.failed.Reserve()
	delay := wait.Delay()
	if delay > failLimit {
		wait.Cancel()
		return caller{}, busy(delay, "too many failed logins from %s", from)
	}
	timer := time.NewTimer(max(delay, failFirst))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return caller{}, problem
}

// login finds the token that a header carries.
func (a *Access) login(authorization string) (kiln.Token, *denial) {
	const hint = "set KILN_TOKEN, or name a file with --token-file; kiln token create makes a token"
	scheme, text, _ := strings.Cut(authorization, " ")
	switch {
	case authorization == "":
		return kiln.Token{}, unauthenticated("over TCP a token is needed, and the request has none", hint)
	case !strings.EqualFold(scheme, "Bearer"):
		return kiln.Token{}, unauthenticated("over TCP a token is needed: Authorization: Bearer TOKEN", hint)
	}
	if err := CheckToken(strings.TrimSpace(text)); err != nil {
		return kiln.Token{}, unauthenticated(err.Error(), hint)
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(text)))
	a.mu.Lock()
	token, ok := a.find(kiln.Digest("sha256:" + hex.EncodeToString(sum[:])))
	a.mu.Unlock()
	switch {
	case !ok:
		return kiln.Token{}, unauthenticated("the token is not known: it was revoked, or is of another control plane", hint)
	case !token.Expires.IsZero() && !time.Now().Before(token.Expires):
		return kiln.Token{}, unauthenticated(fmt.Sprintf("token %s expired on %s", token.Name, token.Expires.UTC().Format(time.DateTime+" UTC")), hint)
	}
	return token, nil
}

// begin counts a request of a caller as running, until end is called. Its
// context ends when the token does.
func (a *Access) begin(ctx context.Context, c caller) (within context.Context, end func(), err error) {
	if c.token == nil {
		return ctx, func() {}, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now, ok := a.find(c.token.Digest)
	if !ok || !reflect.DeepEqual(now, *c.token) {
		return nil, nil, unauthenticated("the token was revoked or changed this moment", "")
	}
	h := a.holders[c.token.Digest]
	if h == nil {
		h = &holder{
			limit: rate.NewLimiter(tokenRate, tokenBurst), images: rate.NewLimiter(registryRate, registryBurst), running: map[*visit]struct{}{},
		}
		a.holders[c.token.Digest] = h
	}
	limit, most := h.limit, tokenRate
	if c.images {
		limit, most = h.images, registryRate
	}
	switch {
	case len(h.running) >= tokenAtOnce:
		return nil, nil, busy(time.Second, "%d requests of token %s run already", tokenAtOnce, c.token.Name)
	case !limit.Allow():
		return nil, nil, busy(time.Second, "too many requests of token %s: at most %d a second", c.token.Name, most)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() {}
	if !c.token.Expires.IsZero() {
		gone := kiln.Errorf(kiln.CodeRefused, "ask who looks after kilnd.hcl", "token %s expired meanwhile", c.token.Name)
		timer := time.AfterFunc(time.Until(c.token.Expires), func() { cancel(gone) })
		stop = func() { timer.Stop() }
	}
	v := &visit{token: *c.token, cancel: cancel}
	h.running[v] = struct{}{}
	return ctx, func() {
		stop()
		cancel(nil)
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(h.running, v)
	}, nil
}

// address returns what is known of an address. Of IPv6 a whole /64 is one: it
// is what one caller has.
func (a *Access) address(from netip.Addr) *address {
	key := sourceOf(from)
	a.mu.Lock()
	defer a.mu.Unlock()
	known, ok := a.addresses.Get(key)
	if !ok {
		known = &address{
			limit:  rate.NewLimiter(addressRate, addressBurst),
			images: rate.NewLimiter(registryRate, registryBurst),
			failed: rate.NewLimiter(rate.Every(failEvery), failBurst),
		}
		a.addresses.Add(key, known)
	}
	return known
}

// sourceOf is what counts as one place that callers come from.
func sourceOf(from netip.Addr) netip.Prefix {
	from = from.Unmap().WithZone("")
	bits := 32
	if from.Is6() {
		bits = 64
	}
	prefix, _ := from.Prefix(bits) // the zero value for no address
	return prefix
}

// tell puts a failed login into the history: not more often than anybody wants
// to read, with the number of those that it stands for.
func (a *Access) tell(from netip.Addr, reason string) {
	if a.record == nil {
		return
	}
	a.mu.Lock()
	if !a.events.Allow() {
		a.untold++
		a.mu.Unlock()
		return
	}
	more := a.untold
	a.untold = 0
	a.mu.Unlock()
	e := kiln.Event{
		At: time.Now().UTC(), Kind: "api.login_failed", Subject: from.String(),
		Message: fmt.Sprintf("a caller from %s was refused: %s", from, reason),
	}
	if more > 0 {
		e.Message += fmt.Sprintf(" (and %d others before)", more)
		e.Data = map[string]string{"others": strconv.Itoa(more)}
	}
	a.record(e)
}
