//go:build !race

package ledger

import "testing"

// few is how often something is tried: n times, and fewer where that takes
// long.
func few(n int) int {
	if testing.Short() {
		return max(2, n/10)
	}
	return n
}
