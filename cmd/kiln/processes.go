package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake/debian/strip"
	"github.com/kilnproject/kiln/internal/confine"
	"github.com/kilnproject/kiln/internal/gateway"
	"github.com/kilnproject/kiln/internal/keep"
	"github.com/kilnproject/kiln/internal/seal"
)

// gatewayUser is who the gateway is where there is such a user, and otherwise
// gatewayID: a number that no package gives away, and that needs no entry in
// /etc/passwd.
const (
	gatewayUser = "kiln-gateway"
	gatewayID   = 64738
)

// processes are the commands that Kiln starts itself with.
func processes() []*cobra.Command {
	return []*cobra.Command{keepCommand(), gatewayCommand(), launchCommand(), workCommand()}
}

func keepCommand() *cobra.Command {
	return &cobra.Command{
		Use: "keep", Hidden: true, Short: "Run the keeper of the data directory; kilnd starts it", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			// A small heap that hardly changes: memory matters more than the
			// collector's work.
			debug.SetGCPercent(25)
			data, err := filepath.Abs(command.Flag("data").Value.String())
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			uid, gid := gatewayIDs()
			// What ends the terminal or kilnd must not end the keeper: it
			// goes when its client says so.
			return keep.Run(context.WithoutCancel(command.Context()), keep.Options{
				DataDir: data, Gateway: []string{self, "gateway", "--data", data}, GatewayUID: uid, GatewayGID: gid,
				Launch: []string{self, "launch"}, Version: version, Log: logger(),
			})
		},
	}
}

// gatewayIDs are the user and group of the gateway.
func gatewayIDs() (uid, gid int) {
	u, err := user.Lookup(gatewayUser)
	if err != nil {
		return gatewayID, gatewayID
	}
	uid, uidErr := strconv.Atoi(u.Uid)
	gid, gidErr := strconv.Atoi(u.Gid)
	if uidErr != nil || gidErr != nil || uid == 0 || gid == 0 {
		return gatewayID, gatewayID
	}
	return uid, gid
}

func gatewayCommand() *cobra.Command {
	return &cobra.Command{
		Use: "gateway", Hidden: true, Short: "Run the gateway in the working directory; the keeper starts it", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if err := confine.ToFolders(gatewayReads(), []string{"."}); err != nil {
				return err
			}
			return gateway.Run(command.Context(), gateway.Options{Dir: ".", Log: logger()})
		},
	}
}

// gatewayReads are the folders that the gateway may read besides its own: for
// names, authorities and time zones. Folders and not files, which others
// replace by renaming.
func gatewayReads() []string {
	return []string{"/etc", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/zoneinfo", "/proc/sys/net"}
}

// launchCommand becomes another user and then another program. Nothing of what
// follows is a flag of ours.
func launchCommand() *cobra.Command {
	return &cobra.Command{
		Use: "launch UID GID COMMAND...", Hidden: true, DisableFlagParsing: true, Short: "Start a program without privileges; the keeper uses it",
		RunE: func(_ *cobra.Command, args []string) error { return keep.Launch(args) },
	}
}

// workCommand does what the control plane leaves to a process without
// privileges.
func workCommand() *cobra.Command {
	tasks := map[string]confine.Task{seal.Task: seal.Work, strip.Task: strip.Work}
	return &cobra.Command{
		Use: "work TASK", Hidden: true, Short: "Do one task on open files; kilnd starts it", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			do, ok := tasks[args[0]]
			if !ok {
				return kiln.Errorf(kiln.CodeInvalid, "", "there is no task %q", args[0])
			}
			return confine.Serve(command.Context(), do)
		},
	}
}

// logger writes to standard error, which is keep.log.
func logger() *slog.Logger { return slog.New(slog.NewTextHandler(os.Stderr, nil)) }
