package kiln

import (
	"path"
	"slices"
	"time"
)

// Role is what a caller of the API may do. Each may do all that the one before
// it may.
type Role string

// The roles of a caller.
const (
	RoleRead   Role = "read"   // look: status, history, logs
	RoleDeploy Role = "deploy" // change what runs
	RoleAdmin  Role = "admin"  // change Kiln itself, or end it
)

// Roles lists the roles, the one that may least first.
func Roles() []Role { return []Role{RoleRead, RoleDeploy, RoleAdmin} }

// Includes says whether a caller of this role may do what needs another. A
// role that is none includes nothing and is included by nothing.
func (r Role) Includes(need Role) bool {
	have, want := slices.Index(Roles(), r), slices.Index(Roles(), need)
	return have >= 0 && want >= 0 && have >= want
}

// Reach is the environments that a caller may look at and change: patterns of
// path.Match. Empty means all, and what belongs to none.
type Reach []string

// Covers says whether an environment is within reach. The name "" stands for
// what belongs to no environment.
func (r Reach) Covers(environment string) bool {
	return len(r) == 0 || environment != "" && slices.ContainsFunc(r, func(pattern string) bool {
		matched, err := path.Match(pattern, environment)
		return err == nil && matched
	})
}

// Token lets a caller use the API from another machine. Only its digest is
// known here.
type Token struct {
	Name   string
	Role   Role
	Digest Digest // of the token as it is sent
	Reach  Reach
	// Expires is when it is refused; zero is never.
	Expires time.Time
}
