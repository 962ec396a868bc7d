package cli

import (
	"cmp"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln/internal/doctor"
)

// The gateway's public listeners when nothing else is said.
const (
	DefaultHTTP  = ":8080"
	DefaultHTTPS = ":8443"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Say what this machine lacks and what is in the way", GroupID: groupMachine,
		Long: `Looks at the machine: kernel, cgroups, OCI runtime (tried for real), programs,
firewalls, ports, room, clock. Each finding comes with the command that mends
it. The exit code is 1 when something keeps Kiln from working.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			_, err = client.Version(command.Context())
			options := doctor.Options{
				HTTP: cmp.Or(a.getenv("KILN_LISTEN_HTTP"), DefaultHTTP), HTTPS: cmp.Or(a.getenv("KILN_LISTEN_HTTPS"), DefaultHTTPS),
				Running: err == nil,
			}
			if options.Data, err = filepath.Abs(a.data); err != nil {
				return err
			}
			options.Daemon, _ = findDaemon()
			return a.printFindings(doctor.Check(command.Context(), options))
		},
	}
}

func (a *app) printFindings(all []doctor.Finding) error {
	if err := a.writeFindings(all); err != nil {
		return err
	}
	if doctor.Blocked(all) {
		return exitStatus(ExitFailed)
	}
	return nil
}

func (a *app) writeFindings(all []doctor.Finding) error {
	if a.json {
		return a.printJSON(all)
	}
	s := a.style(a.Out)
	colors := map[doctor.State]string{doctor.OK: green, doctor.Warn: yellow, doctor.Blocks: red}
	for _, f := range all {
		state := s.paint(colors[f.State], fmt.Sprintf("%-6s", f.State))
		if err := a.print("%s  %-15s  %s\n", state, f.Check, s.safe(f.Message)); err != nil {
			return err
		}
		if f.Fix == "" {
			continue
		}
		if err := a.print("%s%s\n", "                         ", s.paint(cyan, s.safe(f.Fix))); err != nil {
			return err
		}
	}
	return nil
}
