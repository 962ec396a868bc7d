package kiln

import (
	"strings"
	"testing"
)

func TestSkew(t *testing.T) {
	for _, c := range []struct {
		one, other string
		ok         bool
	}{
		{"1.4.0", "1.4.9", true},
		{"1.5.0", "v1.4.9", true},
		{"1.4.0", "1.6.0", false},
		{"2.0.0", "1.9.0", false},
		{"1.4-rc1", "1.2.0", false},
		{"v1.4.0-3-gabcdef0", "1.3.0", true},
		{"dev", "1.2.0", true},
		{"", "1.2.0", true},
	} {
		if err := CheckSkew("kiln", c.one, "kilnd", c.other); (err == nil) != c.ok {
			t.Errorf("%s with %s: %v", c.one, c.other, err)
		}
	}
	for _, err := range []error{CheckSkew("kiln", "1.9.0", "kilnd", "1.2.0"), CheckSkew("kilnd", "1.2.0", "kiln", "1.9.0")} {
		if !strings.Contains(err.Error(), "kilnd is too old for kiln") {
			t.Error(err)
		}
	}
}
