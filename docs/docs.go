// Package docs carries reference pages in the program, which makes manual pages
// of them.
package docs

import "embed"

// Reference has the pages that become manual pages of their own.
//
//go:embed reference/definition.md reference/kilnd.md
var Reference embed.FS
