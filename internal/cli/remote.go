package cli

import (
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/server"
)

// away is where a control plane on another machine is, as flags say it.
type away struct {
	server      string
	tokenFile   string
	ca          string
	fingerprint string
	flags       *pflag.FlagSet
}

func (a *app) registerAway(flags *pflag.FlagSet) {
	a.away.flags = flags
	flags.StringVar(&a.away.server, "server", "", "control plane on another machine, https://HOST:PORT (KILN_SERVER); the token is in KILN_TOKEN")
	flags.StringVar(&a.away.tokenFile, "token-file", "", "file with the token (KILN_TOKEN_FILE)")
	flags.StringVar(&a.away.ca, "ca", "", "file with the authority of the server's certificate, in PEM (KILN_CA)")
	flags.StringVar(&a.away.fingerprint, "fingerprint", "", "SHA-256 of the server's certificate or its authority (KILN_FINGERPRINT)")
}

// either is a flag's value, else that of the environment.
func (a *app) either(flag, name string) string {
	if flag != "" {
		return flag
	}
	return a.getenv(name)
}

// remote says whether a command is for another machine. --data wins over
// KILN_SERVER: who names a directory means the one here.
func (a *app) remote() (bool, error) {
	data := a.away.flags != nil && a.away.flags.Changed("data")
	switch {
	case a.away.server != "" && data:
		return false, kiln.Errorf(kiln.CodeInvalid, "leave one of them out", "--server is a control plane on another machine, and --data one on this")
	case a.away.server != "":
		return true, nil
	default:
		return a.getenv("KILN_SERVER") != "" && !data, nil
	}
}

func (a *app) remoteClient() (*server.Client, error) {
	token, err := a.token()
	if err != nil {
		return nil, err
	}
	o := server.RemoteOptions{
		URL: a.either(a.away.server, "KILN_SERVER"), Token: token,
		Fingerprint: a.either(a.away.fingerprint, "KILN_FINGERPRINT"), Version: a.Version,
	}
	if file := a.either(a.away.ca, "KILN_CA"); file != "" {
		if o.CA, err = os.ReadFile(file); err != nil {
			return nil, fileError(err)
		}
	}
	return server.NewRemoteClient(o)
}

// token is what the caller is known by. It is never a flag, which everybody on
// the machine could read.
func (a *app) token() (string, error) {
	file := a.away.tokenFile
	if file == "" {
		if token := a.getenv("KILN_TOKEN"); token != "" {
			return strings.TrimSpace(token), nil
		}
		file = a.getenv("KILN_TOKEN_FILE")
	}
	if file == "" {
		return "", kiln.Errorf(kiln.CodeInvalid, "set KILN_TOKEN, or name a file with --token-file; kiln token create makes a token",
			"a control plane on another machine wants a token, and there is none")
	}
	return readToken(file)
}

// readToken reads a token's file, which nobody else may read.
func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fileError(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", fileError(err)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return "", kiln.Errorf(kiln.CodeRefused, "chmod 600 "+path+"; and if others have read it, revoke the token",
			"%s has mode %04o: others on this machine may read the token", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", fileError(err)
	}
	return strings.TrimSpace(string(text)), nil
}
