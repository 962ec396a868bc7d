package control

import (
	"fmt"

	"github.com/kilnproject/kiln"
)

// pin is one entry of a lock; exactly one field is set.
type pin struct {
	Reference *kiln.LockedReference `json:"reference,omitempty"`
	Debian    *kiln.LockedDebian    `json:"debian,omitempty"`
}

// pinsOf are the entries of a lock, in its order.
func pinsOf(l kiln.Lock) []pin {
	out := make([]pin, 0, len(l.References)+len(l.Debian))
	for i := range l.References {
		out = append(out, pin{Reference: &l.References[i]})
	}
	for i := range l.Debian {
		out = append(out, pin{Debian: &l.Debian[i]})
	}
	return out
}

// lockOf is the lock with these entries.
func lockOf(pins []pin) kiln.Lock {
	var l kiln.Lock
	for _, p := range pins {
		switch {
		case p.Reference != nil:
			l.References = append(l.References, *p.Reference)
		case p.Debian != nil:
			l.Debian = append(l.Debian, *p.Debian)
		}
	}
	return l
}

// key is what is pinned; to what follows from the whole entry.
func (p pin) key() string {
	if p.Debian != nil {
		return "debian " + string(p.Debian.Key)
	}
	return "reference " + p.Reference.Reference
}

func (p pin) digest() kiln.Digest {
	if p.Debian != nil {
		return kiln.DigestJSON(*p.Debian)
	}
	return kiln.DigestJSON(*p.Reference)
}

// name is what is pinned, for people.
func (p pin) name() string {
	if p.Debian != nil {
		return fmt.Sprintf("Debian %s (%s)", p.Debian.Suite, p.Debian.Platform)
	}
	return p.Reference.Reference
}

// byKey finds the entry for the same thing.
func byKey(pins []pin, key string) (pin, bool) {
	for _, p := range pins {
		if p.key() == key {
			return p, true
		}
	}
	return pin{}, false
}

// moved are the entries of a lock that differ from those of an earlier one.
func moved(before, after kiln.Lock) []pin {
	var out []pin
	old := pinsOf(before)
	for _, p := range pinsOf(after) {
		if was, ok := byKey(old, p.key()); !ok || was.digest() != p.digest() {
			out = append(out, p)
		}
	}
	return out
}

// movement says from where to where a pin moves.
func movement(before kiln.Lock, to pin) string {
	from, ok := byKey(pinsOf(before), to.key())
	switch {
	case !ok:
		return to.name() + " is pinned anew"
	case to.Reference != nil:
		return fmt.Sprintf("%s %s -> %s", to.name(), from.Reference.Index.Short(), to.Reference.Index.Short())
	}
	had := map[string]string{}
	for _, p := range from.Debian.Packages {
		had[p.Name+":"+p.Architecture] = p.Version
	}
	changed, first := 0, ""
	for _, p := range to.Debian.Packages {
		was := had[p.Name+":"+p.Architecture]
		if was == p.Version {
			continue
		}
		if changed++; first == "" {
			first = fmt.Sprintf("%s %s -> %s", p.Name, was, p.Version)
			if was == "" {
				first = p.Name + " " + p.Version + " is new"
			}
		}
	}
	switch changed {
	case 0:
		return to.name() + ": other files of the same packages"
	case 1:
		return to.name() + ": " + first
	}
	return fmt.Sprintf("%s: %s, and %d more packages", to.name(), first, changed-1)
}
