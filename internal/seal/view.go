package seal

import (
	"errors"
	"strings"
)

// maxLinks is how many symbolic links one path may lead over, as in the kernel.
const maxLinks = 40

var (
	errLoop    = errors.New("its path leads over too many symbolic links")
	errBeneath = errors.New("its path leads through what is not a folder")
	errAbsent  = errors.New("no such entry")
	errLong    = errors.New("its path, with all links followed, has more than 4095 bytes")
)

// view is a layer that is being read, over the tree of the layers below it.
type view struct {
	upper, lower *node
	left         *Limits // charged with what finding costs
}

// place is one folder in both trees; either may be nil.
type place struct {
	up, low *node
	length  int // bytes of its path
}

// child looks a name up as the merged tree would show it.
func (p place) child(name string) (up, low *node) {
	if p.up != nil {
		up = p.up.children[name]
	}
	if p.low != nil && (p.up == nil || !p.up.opaque && !p.up.gone[name]) {
		low = p.low.children[name]
	}
	return up, low
}

// find walks to the folder that parts name and returns it. Symbolic links are
// followed, absolute ones from the root of the tree, and ".." in them stops
// there. With create, folders that are missing are made in the upper layer;
// without, the error is errAbsent.
func (v view) find(parts []string, create bool) (place, error) {
	stack := []place{{up: v.upper, low: v.lower}}
	links := 0
	for len(parts) > 0 {
		part := parts[0]
		parts = parts[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		top := stack[len(stack)-1]
		next, target, err := v.step(top, part, create)
		if err != nil {
			return place{}, err
		}
		if target == "" {
			stack = append(stack, next)
			continue
		}
		if links++; links > maxLinks {
			return place{}, errLoop
		}
		if err := v.left.name(len(target)); err != nil {
			return place{}, err
		}
		if strings.HasPrefix(target, "/") {
			stack = stack[:1]
		}
		parts = append(strings.Split(target, "/"), parts...)
	}
	return stack[len(stack)-1], nil
}

// step goes from one folder to a name in it: either to the next place or to
// the target of a symbolic link.
func (v view) step(at place, part string, create bool) (next place, target string, err error) {
	up, low := at.child(part)
	switch {
	case up != nil && up.isSymlink():
		return place{}, up.target, nil
	case up != nil && !up.isDir():
		return place{}, "", errBeneath
	case up == nil && low != nil && low.isSymlink():
		return place{}, low.target, nil
	case up == nil && low != nil && !low.isDir():
		return place{}, "", errBeneath
	case low != nil && !low.isDir():
		low = nil
	}
	length := at.length + 1 + len(part)
	if length > maxPath {
		return place{}, "", errLong
	}
	if up == nil && create {
		if err := errors.Join(v.left.entry(), v.left.name(length)); err != nil {
			return place{}, "", err
		}
		up = newDir()
		at.up.children[strings.Clone(part)] = up
	}
	if up == nil && low == nil {
		return place{}, "", errAbsent
	}
	return place{up, low, length}, "", nil
}

// lookup finds the node at a path without following a link at its end.
func (v view) lookup(parts []string) (*node, error) {
	if len(parts) == 0 {
		return nil, errAbsent
	}
	in, err := v.find(parts[:len(parts)-1], false)
	if err != nil {
		return nil, err
	}
	up, low := in.child(parts[len(parts)-1])
	switch {
	case up != nil:
		return up, nil
	case low != nil:
		return low, nil
	default:
		return nil, errAbsent
	}
}
