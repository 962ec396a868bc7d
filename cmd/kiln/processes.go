package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake/debian/strip"
	"github.com/kilnproject/kiln/internal/confine"
	"github.com/kilnproject/kiln/internal/gateway"
	"github.com/kilnproject/kiln/internal/install"
	"github.com/kilnproject/kiln/internal/keep"
	"github.com/kilnproject/kiln/internal/seal"
	"github.com/kilnproject/kiln/internal/systemd"
)

// gatewayID is who the gateway is where an installation made no user for it: a
// number that no package gives away, and that needs no entry in /etc/passwd.
const gatewayID = 64738

// processes are the commands that Kiln starts itself with.
func processes() []*cobra.Command {
	return []*cobra.Command{keepCommand(), gatewayCommand(), launchCommand(), workCommand(), endCommand()}
}

func keepCommand() *cobra.Command {
	var service, rehearse, sit bool
	command := &cobra.Command{
		Use: "keep", Hidden: true, Short: "Run the keeper of the data directory; kilnd starts it, or systemd", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			// A small heap that hardly changes: memory matters more than the
			// collector's work.
			debug.SetGCPercent(25)
			data, err := filepath.Abs(command.Flag("data").Value.String())
			if err != nil {
				return err
			}
			uid, gid := gatewayIDs()
			options := keep.Options{
				DataDir: data, Gateway: []string{"", "gateway", "--data", data}, GatewayUID: uid, GatewayGID: gid,
				Launch: []string{"", "launch"}, Version: version, Log: logger(),
				Arguments: slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool { return arg == keep.RehearseFlag || arg == keep.SitFlag }),
			}
			switch {
			case rehearse:
				said, err := keep.Rehearse(options)
				if err != nil {
					return err
				}
				return json.NewEncoder(command.OutOrStdout()).Encode(said)
			case sit && (!keep.Sit(options) || service):
				return nil // systemd starts the keeper again
			}
			if service {
				return keepService(command.Context(), options)
			}
			// What ends the terminal or kilnd must not end the keeper: it
			// goes when its client says so.
			return keep.Run(context.WithoutCancel(command.Context()), options)
		},
	}
	command.Flags().BoolVar(&rehearse, strings.TrimPrefix(keep.RehearseFlag, "--"), false, "say who this program is, as one that the keeper may become")
	command.Flags().BoolVar(&sit, strings.TrimPrefix(keep.SitFlag, "--"), false, "see that another program comes up as the keeper")
	command.Flags().BoolVar(&service, "service", false, "as a service: log to keep.log, tell systemd, end on SIGTERM")
	return command
}

// keepService runs the keeper as a unit of systemd's, which ends it by SIGTERM:
// the gateway ends with it, instances go on. What it and the gateway log does
// not depend on the journal's daemon.
func keepService(ctx context.Context, options keep.Options) error {
	if err := logTo(filepath.Join(options.DataDir, "keep.log")); err != nil {
		return err
	}
	service, err := systemd.Take()
	if err != nil {
		return err
	}
	options.Ready = func() {
		if err := service.Ready(); err != nil {
			options.Log.Warn("systemd was not told", "error", err)
		}
	}
	err = keep.Run(ctx, options)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// logTo makes a file this process's standard output and error, and those of
// what it starts.
func logTo(path string) error {
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer func() { _ = log.Close() }()
	for _, stream := range []int{unix.Stdout, unix.Stderr} {
		if err := unix.Dup3(int(log.Fd()), stream, 0); err != nil {
			return fmt.Errorf("log to %s: %w", path, err)
		}
	}
	return nil
}

// gatewayIDs are the user and group of the gateway: those that an installation
// made, or gatewayID.
func gatewayIDs() (uid, gid int) {
	u, err := user.Lookup(install.GatewayUser)
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
			if err := keep.AwaitTurn(os.Stdin); err != nil {
				return nil //nolint:nilerr // the keeper ended, or needs it no more
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
		RunE: func(_ *cobra.Command, args []string) error { return confine.Launch(args) },
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
