package spec

import "github.com/kilnproject/kiln/internal/hclfile"

func serviceSchema() hclfile.Block {
	return hclfile.Block{
		Name: "service", Labels: []string{"name"},
		Later: []string{"lifetime", "secrets", "autoscale", "volume", "schedule", "drift"},
		Doc:   "A template and a count of instances. With ports it serves, under its own name inside of the environment; without, it is a worker.",
		Arguments: []hclfile.Argument{
			forEach(),
			{Name: "image", Type: "image", Required: true, Doc: "What the instances run from: `image.web`."},
			{Name: "count", Type: "number", Default: "`1`", Range: "0 to 1000", Doc: "How many instances."},
			{Name: "entrypoint", Type: "list of strings", Default: "the image's", Doc: "Replaces the image's entrypoint and its command."},
			{Name: "command", Type: "list of strings", Default: "the image's", Doc: "Replaces the image's command."},
			{Name: "env", Type: "map of strings", Doc: "Environment variables, over the image's. A null value leaves the variable out."},
			{Name: "user", Type: "string", Default: "the image's", Range: "`uid`, `uid:gid`, or names of the image", Doc: "Who the command runs as."},
			{Name: "working_dir", Type: "string", Default: "the image's", Range: "absolute path", Doc: "Where the command starts."},
			{Name: "writable", Type: "map of sizes", Range: "absolute paths; 4KiB to 1TiB", Doc: "Paths that are a tmpfs of that size; everything else is read-only. What is written counts as memory and is gone with the instance."},
			{Name: "egress", Type: "list of strings", Default: "none", Range: "`HOST:PORT` or `CIDR:PORT`, with `/udp` for UDP", Doc: "Destinations outside of the environment that instances may reach."},
			{Name: "capabilities", Type: "list of strings", Default: "none", Range: "`CHOWN`, `SETUID`, `SETGID`, `SETPCAP`, `NET_BIND_SERVICE`", Doc: "Linux capabilities, inside of the instance's user namespace."},
			{Name: "host_root", Type: "bool", Default: "`false`", Doc: "Runs without a user namespace: root of the image is root of the host."},
			{Name: "init", Type: "bool", Default: "`true`", Doc: "Runs the command under an init that reaps processes and forwards signals."},
			{Name: "stop_signal", Type: "string", Default: "the image's, else `\"SIGTERM\"`", Range: "name of a signal", Doc: "What asks an instance to end."},
			{Name: "drain", Type: "duration", Default: "`\"30s\"`", Range: "0s to 24h", Doc: "How long requests and streams may go on once an instance is out of traffic."},
			{Name: "grace", Type: "duration", Default: "`\"10s\"`", Range: "0s to 1h", Doc: "From the stop signal to SIGKILL."},
			{Name: "start_timeout", Type: "duration", Default: "`\"60s\"`", Range: "1s to 1h", Doc: "How long an instance may take to become ready."},
		},
		Blocks: []hclfile.Block{portSchema(), readySchema(), limitsSchema(), rolloutSchema()},
	}
}

func portSchema() hclfile.Block {
	return hclfile.Block{
		Name: "port", Labels: []string{"name"}, Doc: "A port that instances listen on. The first is the default of routes, probes and checks.",
		Arguments: []hclfile.Argument{
			{Name: "number", Type: "number", Required: true, Range: "1 to 65535", Doc: "The port's number."},
			{Name: "protocol", Type: "string", Default: "`\"http\"`", Range: "`\"http\"`, `\"h2c\"`, `\"tcp\"`", Doc: "What it speaks. `h2c` is HTTP/2 without TLS."},
		},
	}
}

func readySchema() hclfile.Block {
	return hclfile.Block{
		Name: "ready", Single: true, Doc: "When an instance is ready, asked from its first millisecond to its end. Without `http` and `tcp`: a connection to the first port; for a worker, that its process runs, and in a rollout that it has run for a second.",
		Arguments: []hclfile.Argument{
			{Name: "http", Type: "string", Range: "a path", Doc: "An answer of 200 to 399 is ready."},
			{Name: "tcp", Type: "bool", Default: "`false`", Doc: "A connection is enough. Not together with `http`."},
			{Name: "port", Type: "string", Default: "the first port", Range: "name of a port", Doc: "Which port is asked."},
			{Name: "interval", Type: "duration", Default: "`\"2s\"`", Range: "100ms to 1h", Doc: "Between checks once ready."},
			{Name: "timeout", Type: "duration", Default: "`\"2s\"`", Range: "10ms to 5m", Doc: "Of one check."},
			{Name: "failures", Type: "number", Default: "`3`", Range: "1 to 100", Doc: "So many in a row make a ready instance unready."},
		},
	}
}

func limitsSchema() hclfile.Block {
	return hclfile.Block{
		Name: "limits", Single: true, Doc: "What one instance may use.",
		Arguments: []hclfile.Argument{
			{Name: "memory", Type: "size", Default: "`\"256MiB\"`", Range: "4MiB to 1TiB", Doc: "Memory, tmpfs included. An instance that wants more is killed."},
			{Name: "cpu", Type: "number", Default: "unlimited", Range: "0.01 to 1024", Doc: "Cores."},
			{Name: "pids", Type: "number", Default: "`256`", Range: "4 to 1000000", Doc: "Processes and threads."},
			{Name: "files", Type: "number", Default: "`65536`", Range: "64 to 1048576", Doc: "Open files of one process (RLIMIT_NOFILE)."},
			{Name: "core_size", Type: "size", Default: "`\"0B\"`", Range: "0B to 1TiB", Doc: "Largest core file (RLIMIT_CORE)."},
			{Name: "file_size", Type: "size", Default: "unlimited", Range: "4KiB to 1TiB", Doc: "Largest file that a process writes (RLIMIT_FSIZE)."},
			{Name: "log", Type: "size", Default: "`\"10MiB\"`", Range: "64KiB to 10GiB", Doc: "Log that is kept of one instance."},
			{Name: "nice", Type: "number", Default: "`0`", Range: "0 to 19", Doc: "Niceness of its processes."},
			{Name: "umask", Type: "string", Default: "`\"0022\"`", Range: "octal, 0000 to 0777", Doc: "File mode bits that new files do not get."},
		},
	}
}

func rolloutSchema() hclfile.Block {
	return hclfile.Block{
		Name: "rollout", Labels: []string{"strategy"}, Single: true,
		Kinds: []string{"blue-green"}, LaterKinds: []string{"canary", "rolling"},
		Later: []string{"steps", "analysis", "guard", "surge", "batch"},
		Doc:   "How a new release takes over. `blue-green` starts the new instances beside the old ones, verifies them, then moves all traffic at once.",
		Arguments: []hclfile.Argument{
			{Name: "park", Type: "duration", Default: "`\"30m\"`", Range: "0s to 168h", Doc: "How long the previous release stays warm, to be rolled back to at once."},
		},
		Blocks: []hclfile.Block{{
			Name: "verify", Labels: []string{"title"}, Doc: "A check of the new release before it has traffic: an HTTP request to each new instance, or a command run beside them. Exactly one of `http` and `command`.",
			Arguments: []hclfile.Argument{
				{Name: "http", Type: "string", Range: "a path", Doc: "The path to ask for."},
				{Name: "port", Type: "string", Default: "the first http or h2c port", Range: "name of a port", Doc: "Which port is asked."},
				{Name: "status", Type: "number", Default: "any of 200 to 399", Range: "100 to 599", Doc: "The status that the answer must have."},
				{Name: "body", Type: "string", Doc: "What the answer must contain."},
				{Name: "command", Type: "list of strings", Doc: "A command that must exit with 0. Its calls reach the new release."},
				{Name: "image", Type: "image", Default: "the service's", Doc: "The image that the command runs in."},
				{Name: "timeout", Type: "duration", Default: "`\"60s\"`", Range: "1s to 1h", Doc: "How long the check may take."},
			},
		}},
	}
}
