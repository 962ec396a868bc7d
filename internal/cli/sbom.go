package cli

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/server"
)

func (a *app) sbomCommand() *cobra.Command {
	var format, platform string
	command := &cobra.Command{
		Use: "sbom SUBJECT", Short: "Print what software is in an image", GroupID: groupLook,
		Long: `Prints the inventory of an image as CycloneDX 1.6 or SPDX 2.3, in JSON. An image
that was never proved is inspected for it.

` + subjectHelp,
		Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			if format != server.FormatCycloneDX && format != server.FormatSPDX {
				return kiln.Errorf(kiln.CodeInvalid, "--format "+server.FormatCycloneDX+" or --format "+server.FormatSPDX, "there is no format %q", format)
			}
			document, err := a.sbom(command.Context(), args[0], platform, format)
			if err != nil {
				return err
			}
			var out bytes.Buffer
			if err := json.Indent(&out, document, "", "  "); err != nil {
				return err
			}
			out.WriteByte('\n')
			_, err = a.Out.Write(out.Bytes())
			return err
		},
	}
	command.Flags().StringVar(&format, "format", server.FormatCycloneDX, `"cyclonedx" or "spdx"`)
	registerPlatform(command, &platform)
	return command
}

func (a *app) sbom(ctx context.Context, text, platform, format string) (json.RawMessage, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	p := a.newProgress()
	defer p.close()
	named, err := sendSubject(ctx, client, text, platform, p)
	if err != nil {
		return nil, err
	}
	return client.SBOM(ctx, named, platform, format)
}
