package config

import "github.com/kilnproject/kiln/internal/hclfile"

// addresses is the range of what is listened on.
const addresses = "`ADDRESS:PORT` or `:PORT`"

// rootSchema is the whole language. It is built anew by every call.
func rootSchema() *hclfile.Block {
	return &hclfile.Block{
		Name: "file", Doc: "The file as a whole.",
		Arguments: []hclfile.Argument{
			{Name: "data", Type: "string", Default: "`\"/var/lib/kiln\"`", Range: "absolute path", Doc: "The data directory. It cannot change while the control plane runs, and a file inside of a data directory does not say it."},
		},
		Blocks: []hclfile.Block{listenBlock(), apiBlock(), tokenBlock(), storageBlock(), logBlock(), tracesBlock(), notifyBlock(), registryBlock(), signingBlock(), debianBlock(), sourceBlock()},
	}
}

func listenBlock() hclfile.Block {
	return hclfile.Block{
		Name: "listen", Single: true, Doc: "Where traffic enters. All of it can change while the control plane runs: sockets that stay are not closed.",
		Arguments: []hclfile.Argument{
			{Name: "http", Type: "list of strings", Default: "`[\":8080\"]`", Range: addresses, Doc: "Where the gateway takes public HTTP. An empty list is nowhere."},
			{Name: "https", Type: "list of strings", Default: "`[\":8443\"]`", Range: addresses, Doc: "Where the gateway takes public HTTPS. An empty list is nowhere."},
			{Name: "metrics", Type: "list of strings", Default: "nowhere", Range: addresses, Doc: "Where `/metrics` is served over HTTP to anybody who connects; `:PORT` is `127.0.0.1:PORT`. The API serves it, too, to those who may look."},
		},
	}
}

func apiBlock() hclfile.Block {
	return hclfile.Block{
		Name: "api", Single: true, Doc: "The API for other machines: over TCP, by TLS 1.2 or later, for callers with a token. The Unix socket in the data directory is always there.",
		Arguments: []hclfile.Argument{
			{Name: "listen", Type: "list of strings", Required: true, Range: addresses, Doc: "Where it is served."},
			{Name: "cert", Type: "string", Default: "a certificate of the control plane's own authority", Range: "absolute path", Doc: "The certificate chain in PEM. It is read again when the file changes."},
			{Name: "key", Type: "string", Range: "absolute path of a file that only its owner and group may read", Doc: "The private key of `cert` in PEM."},
			{Name: "names", Type: "list of strings", Default: "the machine's own names and addresses", Range: "host names and IP addresses", Doc: "More names that clients connect by, for a certificate of the control plane's own authority."},
		},
	}
}

func tokenBlock() hclfile.Block {
	return hclfile.Block{
		Name: "token", Labels: []string{"name"}, Doc: "Who may use the API over TCP. `kiln token create` makes a token and prints this block; in the ledger its holder is `token:NAME`.",
		Arguments: []hclfile.Argument{
			{Name: "role", Type: "string", Required: true, Range: "`\"read\"`, `\"deploy\"`, `\"admin\"`", Doc: "`read` may look, `deploy` may also change what runs, `admin` may also change and end Kiln itself."},
			{Name: "sha256", Type: "string", Required: true, Range: "64 lower-case hex digits", Doc: "The SHA-256 of the token. The token itself is nowhere."},
			{Name: "environments", Type: "list of strings", Default: "all", Range: "names and patterns of environments; `*` matches any text", Doc: "The environments that the holder may see and change. Not with role `admin`."},
			{Name: "expires", Type: "string", Default: "never", Range: "a time such as `2027-01-31T12:00:00Z`", Doc: "When the token is refused."},
		},
	}
}

func storageBlock() hclfile.Block {
	return hclfile.Block{
		Name: "storage", Single: true, Doc: "How much is kept.",
		Arguments: []hclfile.Argument{
			{Name: "max", Type: "size", Default: "no bound", Range: "256MiB to 1024TiB", Doc: "Bound of images, caches, seals and logs together. What kept releases need stays in any case."},
			{Name: "keep_events", Type: "number", Default: "`500000`", Range: "1000 to 100000000", Doc: "The newest events that the ledger keeps."},
			{Name: "logs", Type: "size", Default: "`\"512MiB\"`", Range: "1MiB to 1TiB", Doc: "Bound of what all instances wrote together. Logs of the living stay in any case."},
		},
	}
}

func logBlock() hclfile.Block {
	return hclfile.Block{
		Name: "log", Single: true, Doc: "The control plane's own log.",
		Arguments: []hclfile.Argument{
			{Name: "level", Type: "string", Default: "`\"info\"`", Range: "`\"debug\"`, `\"info\"`, `\"warn\"`, `\"error\"`", Doc: "The least that is logged."},
		},
	}
}

func tracesBlock() hclfile.Block {
	return hclfile.Block{
		Name: "traces", Single: true, Doc: "Where traces of bakes and rollouts go: an OpenTelemetry collector that takes OTLP over HTTP (protobuf). `OTEL_EXPORTER_OTLP_ENDPOINT` and its kin in the environment of kilnd win over the block.",
		Arguments: []hclfile.Argument{
			{Name: "endpoint", Type: "string", Required: true, Range: "http or https URL without a password", Doc: "The collector, such as `http://127.0.0.1:4318`. Without a path it is `/v1/traces`."},
			{Name: "headers_file", Type: "string", Range: "absolute path of a file that only its owner may read", Doc: "Headers of every request, one `Name: value` a line."},
		},
	}
}

func notifyBlock() hclfile.Block {
	return hclfile.Block{
		Name: "notify", Labels: []string{"name"}, Doc: "Whom to tell about events, by a webhook. `kiln notify test` sends a test event.",
		Arguments: []hclfile.Argument{
			{Name: "url", Type: "string", Required: true, Range: "http or https URL without a password", Doc: "Where notifications are posted."},
			{Name: "secret_file", Type: "string", Range: "absolute path of a file that only its owner may read", Doc: "The file with the key that notifications are signed with: `whsec_` and base64, or the key as it is, of 16 bytes or more. Without it they are not signed."},
			{Name: "events", Type: "list of strings", Required: true, Range: "kinds of events; `*` matches any text", Doc: "Which events: `\"release.*\"`, `\"instance.died\"`."},
			{Name: "environments", Type: "list of strings", Default: "all, and events of none", Range: "names and patterns of environments; `*` matches any text", Doc: "Only events of these environments."},
		},
	}
}

func registryBlock() hclfile.Block {
	return hclfile.Block{
		Name: "registry", Labels: []string{"host"}, Doc: "How images of a registry of others are pulled, such as `registry \"docker.io\"`. Credentials are not here: they are in the Docker configuration of the user that kilnd runs as.",
		Arguments: []hclfile.Argument{
			{Name: "mirrors", Type: "list of strings", Required: true, Range: "`HOST`, `HOST:PORT`, either with a path behind it", Doc: "Registries that are asked before it, in this order. One that fails, or has not the image, is passed over."},
		},
	}
}

func debianBlock() hclfile.Block {
	return hclfile.Block{
		Name: "debian", Single: true, Doc: "The archives that `debian` images are made from. It can change while kilnd runs.",
		Arguments: []hclfile.Argument{
			{Name: "keyring", Type: "string", Required: true, Range: "absolute path of a file that only its owner may change", Doc: "The keys that sign the archives, in the place of Debian's own: for a mirror that signs anew. `gpg --export` writes it, with or without `--armor`."},
		},
	}
}

func sourceBlock() hclfile.Block {
	return hclfile.Block{
		Name: "source", Labels: []string{"name"}, Doc: "A Git repository that is followed: what its branches' definitions say is brought up in the environments that name the branch. In the ledger it is the actor `source NAME`.",
		Arguments: []hclfile.Argument{
			{Name: "repository", Type: "string", Required: true, Range: "`https://HOST/PATH`, `ssh://USER@HOST/PATH`, `USER@HOST:PATH`, or an absolute path on this machine", Doc: "Where it is fetched from. No password: that is in `credentials`."},
			{Name: "folder", Type: "string", Default: "`\".\"`", Range: "slash path below the repository's root", Doc: "Where in it the definition is."},
			{Name: "interval", Type: "duration", Default: "`\"1m\"`", Range: "10s to 24h", Doc: "How long after one look the next one follows. After failures it is longer, up to 15 minutes."},
			{Name: "credentials", Type: "string", Range: "absolute path of a file that only its owner may read", Doc: "For https a token: the password of the user `git`, or `USER:TOKEN`. For ssh a private key without a passphrase. It is read anew for every look."},
		},
	}
}
