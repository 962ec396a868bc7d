package kiln

import (
	"strconv"
	"strings"
)

// CheckSkew refuses two programs of Kiln whose versions are more than one minor
// version apart, and says which is to be upgraded first. A version that is not a
// number ("dev", a commit, or none) matches every other.
func CheckSkew(one, its, other, others string) error {
	oneMajor, oneMinor, ok1 := parseVersion(its)
	otherMajor, otherMinor, ok2 := parseVersion(others)
	if !ok1 || !ok2 {
		return nil
	}
	distance := oneMinor - otherMinor
	if oneMajor == otherMajor && distance >= -1 && distance <= 1 {
		return nil
	}
	older, newer, version := one, other, others
	if otherMajor < oneMajor || otherMajor == oneMajor && otherMinor < oneMinor {
		older, newer, version = other, one, its
	}
	return Errorf(CodeConflict, "upgrade "+older+" first, to the version before "+version+" or to "+version+" itself: see kiln upgrade --help",
		"%s is version %s and %s is version %s: %s is too old for %s, at most one minor version may lie between them", one, its, other, others, older, newer)
}

// parseVersion reads major and minor of "1.2.3" or "v1.2.3-rc1".
func parseVersion(v string) (major, minor int, ok bool) {
	parts := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	digits, _, _ := strings.Cut(parts[1], "-")
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(digits)
	return major, minor, err1 == nil && err2 == nil
}
