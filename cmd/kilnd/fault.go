//go:build !faults

package main

import "github.com/kilnproject/kiln/internal/control"

// faults are what a test wants to happen: nothing in what is released.
func faults() (control.Faults, error) { return nil, nil }
