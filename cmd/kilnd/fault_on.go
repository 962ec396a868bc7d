//go:build faults

package main

import (
	"fmt"
	"os"

	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// faults are what the variable KILN_FAULT wants to happen. Only executables
// that were built with the tag "faults" read it: one that is released cannot
// be stopped by a variable.
func faults() (control.Faults, error) {
	f, err := kilntest.ParseFaults(os.Getenv("KILN_FAULT"))
	if err != nil {
		return nil, fmt.Errorf("KILN_FAULT: %w", err)
	}
	return f, nil
}
