package kilntest

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// FaultAction is what happens at a label.
type FaultAction string

// The actions of a fault.
const (
	FaultFail  FaultAction = "fail"  // Hit returns a *FaultError
	FaultPanic FaultAction = "panic" // Hit panics with a *FaultError
	FaultKill  FaultAction = "kill"  // the process gets SIGKILL and Hit does not return
	// FaultFreeze stops the whole process until somebody lets it go on: then,
	// or before, anything can be done to it and around it.
	FaultFreeze FaultAction = "freeze"
)

// FaultError is an error that a test asked for.
type FaultError struct{ Label string }

func (e *FaultError) Error() string { return "fault at " + e.Label }

// Faults are what a test wants to happen at labelled steps. The nil value,
// which production has, does nothing. Each fault happens once.
type Faults struct {
	mu     sync.Mutex
	faults map[string]*fault
	hits   []string
}

type fault struct {
	action FaultAction
	in     int // hits until it happens; 0 once it did
}

// NewFaults returns faults that only record.
func NewFaults() *Faults { return &Faults{faults: map[string]*fault{}} }

// ParseFaults reads "label=action,label#2=action", where "#2" is the second
// time that the label is hit: the form of the variable KILN_FAULT, which test
// programs pass to the processes that they start.
func ParseFaults(s string) (*Faults, error) {
	f := NewFaults()
	for part := range strings.SplitSeq(s, ",") {
		if part == "" {
			continue
		}
		label, action, ok := strings.Cut(part, "=")
		name, nth, counted := strings.Cut(label, "#")
		n := 1
		if counted {
			var err error
			if n, err = strconv.Atoi(nth); err != nil || n < 1 {
				return nil, fmt.Errorf("fault %q: %q is not a number from 1", part, nth)
			}
		}
		if !ok || name == "" || !slices.Contains([]FaultAction{FaultFail, FaultPanic, FaultKill, FaultFreeze}, FaultAction(action)) {
			return nil, fmt.Errorf("fault %q: want label=fail, label=panic, label=kill or label=freeze", part)
		}
		f.Set(name, FaultAction(action), n)
	}
	return f, nil
}

// Set makes the action happen at the nth hit of the label from now, from 1.
func (f *Faults) Set(label string, action FaultAction, nth int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults[label] = &fault{action: action, in: nth}
}

// Hit is called at the step with the label.
func (f *Faults) Hit(label string) error {
	if f == nil {
		return nil
	}
	switch f.next(label) {
	case FaultFail:
		return &FaultError{label}
	case FaultPanic:
		panic(&FaultError{label})
	case FaultKill:
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			panic(err)
		}
		select {} // until the signal has come
	case FaultFreeze:
		if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
			panic(err)
		}
	}
	return nil
}

// next records a hit and returns what is to happen, mostly nothing.
func (f *Faults) next(label string) FaultAction {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hits = append(f.hits, label)
	one := f.faults[label]
	if one == nil || one.in == 0 {
		return ""
	}
	one.in--
	if one.in > 0 {
		return ""
	}
	return one.action
}

// Hits are the labels that were hit, in order.
func (f *Faults) Hits() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.hits)
}
