package kilntest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// The ports that FreePort gives: below those that the kernel gives to outgoing
// connections, any of which may have taken another one by the time that a test
// listens on it.
const (
	firstPort = 25_000
	ports     = 7_000
)

// FreePort returns a port of TCP that nobody holds on any address.
func FreePort() (int, error) {
	var errs []error
	for range 100 {
		port := firstPort + rand.IntN(ports) //nolint:gosec // spreads those who ask at once
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port))
		if err == nil {
			return port, l.Close()
		}
		errs = append(errs, err)
	}
	return 0, errors.Join(errs...)
}
