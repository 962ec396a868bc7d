package cli

import (
	"fmt"
	"hash/fnv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/kilnproject/kiln"
)

// style writes for a terminal or for a program.
type style struct {
	terminal bool
	color    bool
}

// SGR parameters (ECMA-48, 8.3.117).
const (
	bold    = "1"
	dim     = "2"
	red     = "31"
	green   = "32"
	yellow  = "33"
	blue    = "34"
	magenta = "35"
	cyan    = "36"
)

func (s style) paint(sgr, text string) string {
	if !s.color || text == "" || sgr == "" {
		return text
	}
	return "\x1b[" + sgr + "m" + text + "\x1b[0m"
}

// name paints an instance's name in a colour of its own.
func (s style) name(text string) string {
	colors := [...]string{cyan, green, magenta, yellow, blue, "96", "92", "95", "93", "94"}
	h := fnv.New32a()
	_, _ = h.Write([]byte(text))
	return s.paint(colors[h.Sum32()%uint32(len(colors))], text)
}

// safe makes text that came from outside harmless on a terminal: control
// characters and what reorders text are shown and not obeyed. For a program
// the text stays as it is.
func (s style) safe(text string) string {
	if !s.terminal {
		return text
	}
	return escape(text)
}

// escape shows control and format characters (Unicode Cc, Cf, line and
// paragraph separators) but tabs, and bytes that are no UTF-8, as \x1b or
// \u202e.
func escape(text string) string {
	if !strings.ContainsFunc(text, hostile) && utf8.ValidString(text) {
		return text
	}
	var b strings.Builder
	for i, r := range text {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case !hostile(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

func hostile(r rune) bool {
	return r != '\t' && (unicode.Is(unicode.C, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r))
}

// fit cuts text to a number of columns, taking each character for one.
func fit(text string, columns int) string {
	if utf8.RuneCountInString(text) <= columns {
		return text
	}
	if columns < 4 {
		return string([]rune(text)[:max(0, columns)])
	}
	return string([]rune(text)[:columns-3]) + "..."
}

// age says how long ago t was, in one or two units: "12s", "3m", "4h10m".
func age(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(now.Sub(t))
}

// span rounds a duration for people: "0s", "59s", "3m", "4h10m", "2d3h".
func span(d time.Duration) string {
	d = max(d, 0)
	const day = 24 * time.Hour
	two := func(big, small time.Duration, b, s string) string {
		if rest := d % big / small; rest > 0 {
			return fmt.Sprintf("%d%s%d%s", d/big, b, rest, s)
		}
		return fmt.Sprintf("%d%s", d/big, b)
	}
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < day:
		return two(time.Hour, time.Minute, "h", "m")
	default:
		return two(day, time.Hour, "d", "h")
	}
}

// took says how long something took, with the digits that matter: "8ms",
// "1.24s", "14.2s", "2m5s".
func took(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return fmt.Sprintf("%.2fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	default:
		return d.Round(time.Second).String()
	}
}

// size says a number of bytes for people: "312 B", "4.2 MiB".
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n), []string{"KiB", "MiB", "GiB", "TiB"}
	unit := ""
	for _, unit = range units {
		f /= 1024
		if f < 1024 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}

// plural is "1 instance", "3 instances".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// origin says where a release came from: "main 3fa92c01bd77 dirty".
func origin(s kiln.Source) string {
	var parts []string
	if s.Branch != "" {
		parts = append(parts, escape(s.Branch))
	}
	if s.Commit != "" {
		parts = append(parts, escape(s.Commit[:min(12, len(s.Commit))]))
	}
	if s.Dirty {
		parts = append(parts, "dirty")
	}
	return strings.Join(parts, " ")
}
