package confine

import (
	"io"
	"strings"
	"testing"
)

func TestABeginningIsKept(t *testing.T) {
	over := 0
	b := &Beginning{Most: 5, Over: func() { over++ }}
	for _, part := range []string{"abc", "de"} {
		if n, err := io.WriteString(b, part); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	if b.String() != "abcde" || b.Cut() || over != 0 {
		t.Errorf("%q, cut %t, %d calls", b, b.Cut(), over)
	}
	// Also by what would use a buffer's own way to read.
	if n, err := io.Copy(b, strings.NewReader("fghij")); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := io.WriteString(b, "k"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if string(b.Bytes()) != "abcde" || !b.Cut() || over != 1 {
		t.Errorf("%q, cut %t, %d calls", b.Bytes(), b.Cut(), over)
	}
}
