package kiln_test

import (
	"testing"

	"github.com/kilnproject/kiln"
)

func TestRolesIncludeThoseBefore(t *testing.T) {
	for _, c := range []struct {
		have, need kiln.Role
		want       bool
	}{
		{kiln.RoleRead, kiln.RoleRead, true},
		{kiln.RoleRead, kiln.RoleDeploy, false},
		{kiln.RoleDeploy, kiln.RoleRead, true},
		{kiln.RoleDeploy, kiln.RoleAdmin, false},
		{kiln.RoleAdmin, kiln.RoleDeploy, true},
		{"", kiln.RoleRead, false},
		{kiln.RoleAdmin, "", false},
		{"root", kiln.RoleRead, false},
	} {
		if got := c.have.Includes(c.need); got != c.want {
			t.Errorf("%q for %q: %v", c.have, c.need, got)
		}
	}
}

func TestReach(t *testing.T) {
	for _, c := range []struct {
		reach       kiln.Reach
		environment string
		want        bool
	}{
		{nil, "production", true},
		{nil, "", true},
		{kiln.Reach{"staging"}, "staging", true},
		{kiln.Reach{"staging"}, "staging2", false},
		{kiln.Reach{"staging"}, "", false},
		{kiln.Reach{"*"}, "", false},
		{kiln.Reach{"staging", "preview-*"}, "preview-login", true},
		{kiln.Reach{"["}, "[", false},
	} {
		if got := c.reach.Covers(c.environment); got != c.want {
			t.Errorf("%q reaches %q: %v", c.reach, c.environment, got)
		}
	}
}
