package server

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

func TestTokens(t *testing.T) {
	token, digest := NewToken()
	other, _ := NewToken()
	if token == other {
		t.Error("two tokens are the same")
	}
	if err := CheckToken(token); err != nil {
		t.Error(err)
	}
	if digest != kiln.DigestOf([]byte(token)) || len(token) != 63 {
		t.Errorf("%s of %d characters, %s", token, len(token), digest)
	}
	last := "a"
	if strings.HasSuffix(token, "a") {
		last = "i" // differs in a bit that is not padding
	}
	for text, want := range map[string]string{
		"":                                   "does not begin with kiln_",
		"ghp_" + token[5:]:                   "does not begin with kiln_",
		token[:40]:                           "checksum",
		token + "a":                          "checksum",
		strings.ToUpper(token):               "does not begin with kiln_",
		token[:10] + "1" + token[11:]:        "checksum",
		token[:len(token)-5] + "zzzz" + last: "checksum",
	} {
		if err := CheckToken(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// holder of a token for tests.
func tokenOf(name string, role kiln.Role) (string, kiln.Token) {
	text, digest := NewToken()
	return text, kiln.Token{Name: name, Role: role, Digest: digest}
}

func status(t *testing.T, err error) int {
	t.Helper()
	var d *denial
	if err == nil {
		return 0
	}
	if !errors.As(err, &d) {
		t.Fatalf("%T %v", err, err)
	}
	return d.status
}

func TestFailedLoginsAreSlowedAndGoodOnesAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []kiln.Event
		a := NewAccess(func(e kiln.Event) { events = append(events, e) })
		text, token := tokenOf("ci", kiln.RoleDeploy)
		a.SetTokens([]kiln.Token{token})
		from := netip.MustParseAddr("203.0.113.9")
		stranger, _ := NewToken()
		enter := func(authorization string) (time.Duration, int) {
			began := time.Now()
			_, err := a.enter(t.Context(), from, authorization)
			return time.Since(began), status(t, err)
		}
		for i := range failBurst {
			if took, code := enter("Bearer " + stranger); took != failFirst || code != http.StatusUnauthorized {
				t.Errorf("failure %d: %d after %s", i+1, code, took)
			}
		}
		late := 0
		for range 20 {
			if took, code := enter("Bearer " + stranger); took >= failEvery/2 && code == http.StatusUnauthorized {
				late++
			}
		}
		if late < 15 {
			t.Errorf("%d of 20 more failures were slowed", late)
		}
		done := make(chan int, 100)
		for range 100 { // at once: what would wait too long is sent away
			go func() { _, code := enter("Bearer " + stranger); done <- code }()
		}
		codes := map[int]int{}
		for range 100 {
			codes[<-done]++
		}
		if codes[http.StatusTooManyRequests] < 90 {
			t.Errorf("100 at once: %v", codes)
		}
		if took, code := enter("Bearer " + text); took != 0 || code != 0 {
			t.Errorf("a good token from there: %d after %s", code, took)
		}
		if n := len(events); n < eventBurst || n > eventBurst+10 {
			t.Errorf("%d events", n)
		}
		if e := events[0]; e.Kind != "api.login_failed" || e.Subject != "203.0.113.9" || !strings.Contains(e.Message, "not known") || strings.Contains(e.Message, stranger) {
			t.Errorf("%+v", e)
		}
		if e := events[len(events)-1]; e.Data["others"] == "" {
			t.Errorf("the last event does not say for how many it stands: %+v", e)
		}
	})
}

func TestWhatIsNoTokenIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAccess(nil)
		text, token := tokenOf("ci", kiln.RoleDeploy)
		token.Expires = time.Now().Add(time.Hour)
		a.SetTokens([]kiln.Token{token})
		for authorization, want := range map[string]string{
			"":                            "the request has none",
			"Basic " + text:               "Authorization: Bearer TOKEN",
			"Bearer " + text[:30]:         "its checksum is wrong",
			"Bearer":                      "does not begin with kiln_",
			"Bearer " + text + " " + text: "its checksum is wrong",
		} {
			if _, err := a.enter(t.Context(), netip.MustParseAddr("::1"), authorization); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v", authorization, err)
			}
		}
		who, err := a.enter(t.Context(), netip.MustParseAddr("::1"), "bearer  "+text)
		if err != nil || who.actor != "token:ci" || who.role != kiln.RoleDeploy {
			t.Errorf("%+v %v", who, err)
		}
		within, end, err := a.begin(t.Context(), who)
		if err != nil {
			t.Fatal(err)
		}
		defer end()
		kilntest.Pass(time.Hour)
		if cause := context.Cause(within); cause == nil || !strings.Contains(cause.Error(), "token ci expired meanwhile") {
			t.Errorf("a request that runs when the token expires: %v", cause)
		}
		if _, err := a.enter(t.Context(), netip.MustParseAddr("::1"), "Bearer "+text); err == nil || !strings.Contains(err.Error(), "token ci expired on") {
			t.Errorf("after that: %v", err)
		}
	})
}

func TestRequestsAreLimitedByTokenAndByAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAccess(nil)
		_, token := tokenOf("ci", kiln.RoleDeploy)
		_, other := tokenOf("ops", kiln.RoleAdmin)
		a.SetTokens([]kiln.Token{token, other})
		who := caller{token: &token}
		count := func(who caller, n int) (passed int) {
			for range n {
				_, end, err := a.begin(t.Context(), who)
				if err == nil {
					passed++
					end()
				} else if status(t, err) != http.StatusTooManyRequests {
					t.Error(err)
				}
			}
			return passed
		}
		if n := count(who, 1000); n != tokenBurst {
			t.Errorf("%d requests of one token at once", n)
		}
		if n := count(caller{token: &other}, 1); n != 1 {
			t.Error("another token is held up")
		}
		kilntest.Pass(time.Second)
		if n := count(who, 1000); n != tokenRate {
			t.Errorf("%d requests in a second", n)
		}
		if n := count(caller{}, 5000); n != 5000 {
			t.Errorf("%d requests over the Unix socket", n)
		}

		kilntest.Pass(time.Minute)
		var ends []func()
		for range tokenAtOnce + 5 {
			if _, end, err := a.begin(t.Context(), who); err == nil {
				ends = append(ends, end)
			}
		}
		if len(ends) != tokenAtOnce {
			t.Errorf("%d requests run at once", len(ends))
		}
		ends[0]()
		if n := count(who, 1); n != 1 {
			t.Error("a request that ended still counts")
		}

		from := netip.MustParseAddr("2001:db8::1")
		passed := 0
		for i := range 1000 {
			text, _ := NewToken()
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // the answer is not waited for
			if _, err := a.enter(ctx, from, "Bearer "+text); !strings.Contains(err.Error(), "too many requests from") {
				passed++
			}
			if i == 500 { // a neighbour in the same /64 is the same caller
				from = netip.MustParseAddr("2001:db8::2")
			}
		}
		if passed != addressBurst {
			t.Errorf("%d requests of one address", passed)
		}
		if _, err := a.enter(t.Context(), netip.MustParseAddr("2001:db8:0:1::1"), ""); strings.Contains(err.Error(), "too many") {
			t.Errorf("another network is held up: %v", err)
		}
	})
}

func TestARevokedTokenEndsWhatItRuns(t *testing.T) {
	a := NewAccess(nil)
	textA, tokenA := tokenOf("a", kiln.RoleDeploy)
	textB, tokenB := tokenOf("b", kiln.RoleDeploy)
	a.SetTokens([]kiln.Token{tokenA, tokenB})
	begin := func(text string) (context.Context, caller) {
		who, err := a.enter(t.Context(), netip.MustParseAddr("127.0.0.1"), "Bearer "+text)
		if err != nil {
			t.Fatal(err)
		}
		within, end, err := a.begin(t.Context(), who)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(end)
		return within, who
	}
	ofA, whoA := begin(textA)
	ofB, _ := begin(textB)
	lowered := tokenB
	lowered.Role = kiln.RoleRead
	a.SetTokens([]kiln.Token{tokenB})
	<-ofA.Done()
	if cause := context.Cause(ofA); !strings.Contains(cause.Error(), "token a was revoked or changed meanwhile") {
		t.Error(cause)
	}
	if ofB.Err() != nil {
		t.Error("the other token's request ended")
	}
	if _, _, err := a.begin(t.Context(), whoA); status(t, err) != http.StatusUnauthorized {
		t.Errorf("who was let in a moment before: %v", err)
	}
	if _, err := a.enter(t.Context(), netip.MustParseAddr("127.0.0.1"), "Bearer "+textA); status(t, err) != http.StatusUnauthorized {
		t.Error(err)
	}
	a.SetTokens([]kiln.Token{lowered})
	<-ofB.Done()
}
