// Program is a Go program with a dependency, for tests that look into it.
package main

import (
	"fmt"

	"golang.org/x/mod/semver"
)

func main() { fmt.Println(semver.Canonical("v1")) }
