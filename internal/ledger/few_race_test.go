//go:build race

package ledger

// few is a tenth: SQLite in Go is ten times slower under the race detector.
// scripts/test runs these tests without it, too.
func few(n int) int { return max(2, n/10) }
