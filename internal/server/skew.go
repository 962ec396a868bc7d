package server

import (
	"strconv"
	"strings"

	"github.com/kilnproject/kiln"
)

// CheckSkew refuses a client and a server that are more than one minor version
// apart. A version that is not a number ("dev", or none) matches every other.
func CheckSkew(client, server string) error {
	clientMajor, clientMinor, ok1 := parseVersion(client)
	serverMajor, serverMinor, ok2 := parseVersion(server)
	if !ok1 || !ok2 {
		return nil
	}
	distance := clientMinor - serverMinor
	if clientMajor == serverMajor && distance >= -1 && distance <= 1 {
		return nil
	}
	older, hint := "kiln", "install the kiln that belongs to kilnd "+server
	if serverMajor < clientMajor || serverMajor == clientMajor && serverMinor < clientMinor {
		older, hint = "kilnd", "stop kilnd and start the one that belongs to kiln "+client+"; instances go on meanwhile"
	}
	return kiln.Errorf(kiln.CodeConflict, hint,
		"kiln is version %s and kilnd is version %s: %s is too old, at most one minor version may lie between them", client, server, older)
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
