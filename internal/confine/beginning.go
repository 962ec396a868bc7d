package confine

import "bytes"

// Beginning keeps the first bytes that a program writes, and lets the rest go:
// the program is not stopped by it, unless Over does so. It is for one writer.
type Beginning struct {
	Most int    // bytes that are kept
	Over func() // called once, when there is more; nil for nothing

	// Not embedded: its ReadFrom would pass Write by.
	kept bytes.Buffer
	over bool
}

// Write never fails.
func (b *Beginning) Write(p []byte) (int, error) {
	keep := min(len(p), b.Most-b.kept.Len())
	b.kept.Write(p[:keep])
	if keep < len(p) && !b.over {
		b.over = true
		if b.Over != nil {
			b.Over()
		}
	}
	return len(p), nil
}

// Cut says whether there was more than is kept.
func (b *Beginning) Cut() bool { return b.over }

// Bytes are what is kept.
func (b *Beginning) Bytes() []byte { return b.kept.Bytes() }

// String is what is kept.
func (b *Beginning) String() string { return b.kept.String() }
