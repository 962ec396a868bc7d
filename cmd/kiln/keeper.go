package main

import (
	"context"
	"path/filepath"

	"github.com/kilnproject/kiln/internal/keep"
)

// keeperClient reaches the keeper of a data directory.
type keeperClient struct{}

func (keeperClient) dial(data string) (*keep.Client, error) {
	return keep.Dial(filepath.Join(data, "run", "keep.sock"))
}

// Who is for cli.Keeper.
func (c keeperClient) Who(ctx context.Context, data string) (version string, pid int, err error) {
	client, err := c.dial(data) //nolint:contextcheck // it bounds itself
	if err != nil {
		return "", 0, err
	}
	info, err := client.Ping(ctx)
	return info.Version, info.PID, err
}

// Replace is for cli.Keeper.
func (c keeperClient) Replace(ctx context.Context, data, program string) error {
	client, err := c.dial(data) //nolint:contextcheck // it bounds itself
	if err != nil {
		return err
	}
	_, err = client.Replace(ctx, program)
	return err
}
