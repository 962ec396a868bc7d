package cli

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/server"
)

func (a *app) tokenCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "token", Short: "Make tokens for the API over TCP", GroupID: groupMachine, RunE: needsCommand,
		Long: `Tokens let callers use the control plane from other machines. They are in its
configuration, kilnd.hcl, by their SHA-256.`,
	}
	command.AddCommand(a.tokenCreateCommand())
	return command
}

// newToken is what kiln token create makes.
type newToken struct {
	Name   string      `json:"name"`
	Token  string      `json:"token"`
	SHA256 string      `json:"sha256"`
	Block  string      `json:"block"` // for kilnd.hcl
	Digest kiln.Digest `json:"-"`
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var role string
	var environments []string
	var life time.Duration
	command := &cobra.Command{
		Use: "create NAME", Short: "Make a token, and print it once; needs no control plane",
		Long: `Makes a token and prints it on standard output, once: it is kept nowhere. On
standard error it prints the block for kilnd.hcl, which has only its SHA-256.
The token works once the block is there and kiln reload was run.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			t, err := makeToken(args[0], kiln.Role(role), environments, life, a.now())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(t)
			}
			if err := a.print("%s\n", t.Token); err != nil {
				return err
			}
			a.say("\nThis is shown once. Put it where its holder finds it: KILN_TOKEN, or a file for --token-file.\nFor kilnd.hcl, and then kiln reload:\n\n%s", t.Block)
			return nil
		},
	}
	flags := command.Flags()
	flags.StringVar(&role, "role", "", "read, deploy or admin")
	flags.StringSliceVar(&environments, "environment", nil, "environment that the holder may see and change, or a pattern of them; all when not said")
	flags.DurationVar(&life, "expires-in", 0, "how long it works, such as 720h; for ever when not said")
	return command
}

func makeToken(name string, role kiln.Role, environments []string, life time.Duration, now time.Time) (newToken, error) {
	if !slices.Contains(kiln.Roles(), role) {
		return newToken{}, kiln.Errorf(kiln.CodeInvalid, "--role read, --role deploy or --role admin", "a token needs a role")
	}
	text, digest := server.NewToken()
	t := newToken{Name: name, Token: text, SHA256: digest.Hex(), Digest: digest}
	t.Block = block(name, role, digest, environments, life, now)
	// What the configuration would refuse is refused here.
	_, _, err := config.Parse("kilnd.hcl", []byte(t.Block), config.Options{Now: now})
	if shown := asShown(err); shown != nil {
		shown.Message, shown.Hint = "kilnd would refuse the block of this token", ""
	}
	return t, err
}

// block is a token's part of kilnd.hcl.
func block(name string, role kiln.Role, digest kiln.Digest, environments []string, life time.Duration, now time.Time) string {
	lines := [][2]string{{"role", quote(string(role))}, {"sha256", quote(digest.Hex())}}
	if len(environments) > 0 {
		var quoted []string
		for _, e := range environments {
			quoted = append(quoted, quote(e))
		}
		lines = append(lines, [2]string{"environments", "[" + strings.Join(quoted, ", ") + "]"})
	}
	if life != 0 {
		lines = append(lines, [2]string{"expires", quote(now.Add(life).UTC().Format(time.RFC3339))})
	}
	width := 0
	for _, l := range lines {
		width = max(width, len(l[0]))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "token %s {\n", quote(name))
	for _, l := range lines {
		fmt.Fprintf(&b, "  %-*s = %s\n", width, l[0], l[1])
	}
	b.WriteString("}\n")
	return b.String()
}

// quote writes a string as HCL does.
func quote(text string) string {
	return fmt.Sprintf("%q", regexp.MustCompile(`([$%])\{`).ReplaceAllString(text, `$1$1{`))
}
