package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/kilnproject/kiln"
)

// registryPath is where the registry answers: below it are no routes of the
// API.
const registryPath = "/v2/"

// RegistryNeed is the role that an action of a registry's caller needs. What is
// not known needs the most.
func RegistryNeed(action string) kiln.Role {
	switch action {
	case "pull":
		return kiln.RoleRead
	case "push":
		return kiln.RoleDeploy
	}
	return kiln.RoleAdmin
}

// MayUseRegistry says whether the caller of a request may do something in the
// registry: "pull", "push" or "delete". It is for a handler behind New.
func MayUseRegistry(r *http.Request, action string) error {
	c, ok := r.Context().Value(callKey{}).(call)
	if !ok {
		return kiln.Errorf(kiln.CodeRefused, "", "nobody knows who asks")
	}
	need := RegistryNeed(action)
	switch {
	case !c.role.Includes(need):
		return kiln.Errorf(kiln.CodeRefused, "use a token with that role", "%s may not %s: it needs role %s, and has role %s", c.actor, action, need, c.role)
	case len(c.reach) > 0:
		return kiln.Errorf(kiln.CodeRefused, "use a token without environments", "%s may see some environments alone, and the registry has the images of all", c.actor)
	}
	return nil
}

// ActorOf is who makes the request of a context, as the ledger has it; empty
// for nobody.
func ActorOf(ctx context.Context) string {
	c, _ := ctx.Value(callKey{}).(call)
	return c.actor
}

// registry lets those who are known in to the registry. What they may do there
// it asks by MayUseRegistry.
func (a *api) registry(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		response := http.NewResponseController(w)
		_ = response.SetWriteDeadline(time.Now().Add(writeTimeout))
		who, err := a.visitor(r)
		if err != nil {
			a.refuseVisitor(w, r, response, err)
			return
		}
		within, end, err := a.Access.begin(r.Context(), who)
		if err != nil {
			a.refuseVisitor(w, r, response, err)
			return
		}
		defer end()
		defer serves(within)()
		within = context.WithValue(within, callKey{}, call{caller: who, response: response})
		body := &slowBody{ReadCloser: r.Body, response: response}
		r = r.WithContext(within)
		r.Body = body
		defer body.end(r)
		if err := a.guard(r, func() error { next.ServeHTTP(slowAnswer{w, response}, r); return nil }); err != nil {
			registryError(w, http.StatusInternalServerError, "UNKNOWN", "the log of kilnd says more")
		}
	})
}

// visitor says who calls the registry. Clients send a token as the password of
// HTTP Basic, with any user name.
func (a *api) visitor(r *http.Request) (caller, error) {
	from, ok := remoteOf(r.Context())
	if !ok {
		return a.identify(r)
	}
	authorization := r.Header.Get("Authorization")
	if _, password, ok := r.BasicAuth(); ok {
		authorization = "Bearer " + password
	}
	return a.Access.visit(r.Context(), from, authorization)
}

// refuseVisitor answers as a registry does, and does not wait for the body.
func (a *api) refuseVisitor(w http.ResponseWriter, r *http.Request, response *http.ResponseController, err error) {
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close")
		_ = response.SetReadDeadline(time.Now().Add(refusedTimeout))
	}
	status, code := http.StatusForbidden, "DENIED"
	if d := (*denial)(nil); errors.As(err, &d) {
		status = d.status
		if d.after > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(d.after.Seconds())))
		}
	}
	switch status {
	case http.StatusUnauthorized:
		code = "UNAUTHORIZED"
		w.Header().Set("WWW-Authenticate", `Basic realm="kiln"`)
	case http.StatusTooManyRequests:
		code = "TOOMANYREQUESTS"
	}
	registryError(w, status, code, errorOf(err).Message)
}

// registryError is an error in the form of the distribution-spec.
func registryError(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, map[string][]map[string]string{"errors": {{"code": code, "message": message}}})
}

// slowBody is a body that may take as long as it likes, while it goes on.
type slowBody struct {
	io.ReadCloser
	response *http.ResponseController
	read     bool // to its end
}

func (s *slowBody) Read(b []byte) (int, error) {
	_ = s.response.SetReadDeadline(time.Now().Add(uploadTimeout))
	n, err := s.ReadCloser.Read(b)
	if err != nil { // what follows, the deadline is not for
		s.read = true
		_ = s.response.SetReadDeadline(time.Time{})
	}
	return n, err
}

// end waits no longer for a body that nobody wanted.
func (s *slowBody) end(r *http.Request) {
	if r.ContentLength != 0 && !s.read {
		_ = s.response.SetReadDeadline(time.Now().Add(refusedTimeout))
	}
}

// slowAnswer is an answer that may take as long, while the client reads.
type slowAnswer struct {
	http.ResponseWriter
	response *http.ResponseController
}

func (s slowAnswer) Write(b []byte) (int, error) {
	_ = s.response.SetWriteDeadline(time.Now().Add(writeTimeout))
	return s.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach what is beneath.
func (s slowAnswer) Unwrap() http.ResponseWriter { return s.ResponseWriter }
