package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/local"
	"github.com/kilnproject/kiln/internal/server"
)

// settings are what is in effect: flags and environment over the file over the
// defaults.
type settings struct {
	file       config.Config // zero when none was read
	why        string        // none was
	data       string        // absolute
	listen     local.Listen
	storageMax int64 // bytes, 0 is no bound
	keepEvents int64
	logBytes   int64
	level      slog.Level
}

// settings reads the file and puts what it says below what was given. While a
// control plane runs, before is what is in effect: its data directory stays,
// and the file that it read must still be there.
func (g given) settings(before *settings) (settings, kiln.Diagnostics, error) {
	s := settings{data: cmp.Or(g.data, cli.DefaultData)}
	path, err := g.file(before)
	if err != nil {
		return s, nil, err
	}
	var warnings kiln.Diagnostics
	if path != "" {
		if s.file, warnings, err = config.Load(path, g.loadOptions(path, before)); err != nil {
			return s, nil, err
		}
		if other := cmp.Or(s.file.Data, cli.DefaultData); path == config.SystemFile && g.config == "" && g.data != "" && g.data != other {
			s.file, warnings = config.Config{}, nil
			s.why = fmt.Sprintf("%s is that of the data directory %s", path, other)
		}
	} else {
		s.why = fmt.Sprintf("there is neither %s/%s nor %s", s.data, config.FileName, config.SystemFile)
	}
	g.lay(&s)
	if before != nil {
		s.data = before.data
	}
	if len(s.data) > longest {
		return s, nil, invalid("choose a shorter path with --data", "the data directory's path has %d bytes; sockets in it allow at most %d", len(s.data), longest)
	}
	return s, append(warnings, g.without(s.file)...), nil
}

// file is the path of the configuration; "" for none.
func (g given) file(before *settings) (string, error) {
	switch {
	case g.config != "":
		return g.config, nil
	case before != nil && before.file.Path != "":
		return before.file.Path, nil
	case before != nil:
		return config.Find(before.data)
	default:
		return config.Find(cmp.Or(g.data, cli.DefaultData))
	}
}

// loadOptions say which data directory the file may speak of. One that --data
// wins over may say any.
func (g given) loadOptions(path string, before *settings) config.Options {
	data := cmp.Or(g.data, cli.DefaultData)
	if before != nil {
		data = before.data
	}
	if path == data+"/"+config.FileName || before != nil && g.data == "" {
		return config.Options{Data: data}
	}
	return config.Options{}
}

// lay puts what was given over what the file says over the defaults.
func (g given) lay(s *settings) {
	f := s.file
	s.data = cmp.Or(g.data, f.Data, cli.DefaultData)
	s.listen = local.Listen{
		HTTP:  firstSaid(g.http, f.Listen.HTTP, []string{cli.DefaultHTTP}),
		HTTPS: firstSaid(g.https, f.Listen.HTTPS, []string{cli.DefaultHTTPS}),
	}
	s.storageMax = f.Storage.Max
	if g.storageMax != nil {
		s.storageMax = *g.storageMax
	}
	s.keepEvents, s.logBytes = cmp.Or(f.Storage.KeepEvents, keptEvents), cmp.Or(f.Storage.Logs, local.DefaultLogBytes)
	switch {
	case g.level != nil:
		s.level = *g.level
	case f.LogLevel != "":
		_ = s.level.UnmarshalText([]byte(f.LogLevel)) // the file's reader knows the levels
	}
}

// firstSaid is the first list that is not nil; an empty one says something.
func firstSaid(lists ...[]string) []string {
	for _, l := range lists {
		if l != nil {
			return l
		}
	}
	return nil
}

// without warns of what the file says in vain, because it was given otherwise.
func (g given) without(f config.Config) kiln.Diagnostics {
	var out kiln.Diagnostics
	warn := func(said bool, argument, flag string) {
		if said {
			out = append(out, kiln.Diagnostic{
				Severity: "warning", File: f.Path, Summary: "Not in effect",
				Detail: fmt.Sprintf("%s of the file has no effect: kilnd was started with %s, which wins.", argument, flag),
			})
		}
	}
	warn(g.data != "" && f.Data != "" && f.Data != g.data, "data", "--data or KILN_DATA")
	warn(g.http != nil && f.Listen.HTTP != nil && !slices.Equal(g.http, f.Listen.HTTP), "listen.http", "--http or KILN_LISTEN_HTTP")
	warn(g.https != nil && f.Listen.HTTPS != nil && !slices.Equal(g.https, f.Listen.HTTPS), "listen.https", "--https or KILN_LISTEN_HTTPS")
	warn(g.storageMax != nil && f.Storage.Max != 0 && *g.storageMax != f.Storage.Max, "storage.max", "--storage-max or KILN_STORAGE_MAX")
	warn(g.level != nil && f.LogLevel != "", "log.level", "--log-level or KILN_LOG_LEVEL")
	return out
}

// tell logs which file was read, or why none.
func (s settings) tell(log *slog.Logger, warnings kiln.Diagnostics) {
	if s.file.Path == "" {
		log.Info("no configuration was read", "because", s.why)
		return
	}
	log.Info("configuration was read", "file", s.file.Path, "sha256", s.file.Digest.Hex())
	tellWarnings(log, warnings)
}

func tellWarnings(log *slog.Logger, warnings kiln.Diagnostics) {
	for _, w := range warnings {
		log.Warn("configuration", "place", fmt.Sprintf("%s:%d", w.File, w.Line), "summary", w.Summary, "detail", w.Detail)
	}
}

// changes says what of the settings is another, one sentence each.
func (s settings) changes(next settings) []string {
	out := []string{}
	differ := func(what string, before, after any) {
		if b, a := fmt.Sprint(before), fmt.Sprint(after); b != a {
			out = append(out, fmt.Sprintf("%s: %s -> %s", what, b, a))
		}
	}
	differ("listen.http", s.listen.HTTP, next.listen.HTTP)
	differ("listen.https", s.listen.HTTPS, next.listen.HTTPS)
	differ("listen.metrics", s.file.Listen.Metrics, next.file.Listen.Metrics)
	differ("api.listen", s.file.API.Listen, next.file.API.Listen)
	differ("api.cert", orOwn(s.file.API.Cert), orOwn(next.file.API.Cert))
	differ("api.key", orOwn(s.file.API.Key), orOwn(next.file.API.Key))
	differ("api.names", s.file.API.Names, next.file.API.Names)
	differ("storage.max", s.storageMax, next.storageMax)
	differ("storage.keep_events", s.keepEvents, next.keepEvents)
	differ("storage.logs", s.logBytes, next.logBytes)
	differ("log.level", s.level, next.level)
	differ("traces", orNowhere(place(s.file.Traces.Endpoint)), orNowhere(place(next.file.Traces.Endpoint)))
	differ("notify", notifyTexts(s.file.Notify), notifyTexts(next.file.Notify))
	differ("registry", mirrors(s.file.Registries), mirrors(next.file.Registries))
	differ("signing", s.file.Signing, next.file.Signing)
	differ("debian.keyring", cmp.Or(s.file.Debian.Keyring, "(Debian's)"), cmp.Or(next.file.Debian.Keyring, "(Debian's)"))
	differ("source", sourceTexts(s.file.Sources), sourceTexts(next.file.Sources))
	return append(out, tokenChanges(s.file.Tokens, next.file.Tokens)...)
}

// mirrors are what is asked before a registry of others, by its host.
func mirrors(list []config.Registry) map[string][]string {
	out := map[string][]string{}
	for _, r := range list {
		out[r.Host] = r.Mirrors
	}
	return out
}

func orOwn(path string) string { return cmp.Or(path, "(own authority)") }

func orNowhere(place string) string { return cmp.Or(place, "(nowhere)") }

// notifyTexts say whom to notify of what.
func notifyTexts(list []config.Notify) []string {
	out := []string{}
	for _, n := range list {
		text := n.Name + " at " + place(n.URL) + " of " + strings.Join(n.Events, ", ")
		if len(n.Environments) > 0 {
			text += " in " + strings.Join(n.Environments, ", ")
		}
		out = append(out, text)
	}
	return out
}

func notifyNames(list []config.Notify) []string {
	out := []string{}
	for _, n := range list {
		out = append(out, n.Name)
	}
	return out
}

// tokenChanges says which tokens come, go and change. Both lists are by name.
func tokenChanges(before, after []kiln.Token) []string {
	describe := func(t kiln.Token) string {
		text := "role " + string(t.Role)
		if len(t.Reach) > 0 {
			text += " for " + strings.Join(t.Reach, ", ")
		}
		return text
	}
	find := func(list []kiln.Token, name string) (kiln.Token, bool) {
		i := slices.IndexFunc(list, func(t kiln.Token) bool { return t.Name == name })
		if i < 0 {
			return kiln.Token{}, false
		}
		return list[i], true
	}
	var out []string
	for _, t := range after {
		old, was := find(before, t.Name)
		switch {
		case !was:
			out = append(out, fmt.Sprintf("token %s is new: %s", t.Name, describe(t)))
		case old.Digest != t.Digest:
			out = append(out, fmt.Sprintf("token %s was exchanged: %s", t.Name, describe(t)))
		case describe(old) != describe(t) || !old.Expires.Equal(t.Expires):
			out = append(out, fmt.Sprintf("token %s has other rights: %s", t.Name, describe(t)))
		}
	}
	for _, t := range before {
		if _, stays := find(after, t.Name); !stays {
			out = append(out, fmt.Sprintf("token %s is revoked", t.Name))
		}
	}
	return out
}

// view is the settings as the API shows them.
func (s settings) view(addresses []string, fingerprint string) server.Settings {
	tokens := []server.TokenInfo{}
	for _, t := range s.file.Tokens {
		tokens = append(tokens, server.TokenInfo{Name: t.Name, Role: t.Role, Environments: t.Reach, Expires: t.Expires})
	}
	return server.Settings{
		Path: s.file.Path, Digest: s.file.Digest, DataDir: s.data,
		HTTP: s.listen.HTTP, HTTPS: s.listen.HTTPS, Metrics: firstSaid(s.file.Listen.Metrics, []string{}),
		API: server.APISettings{Listen: firstSaid(addresses, []string{}), Fingerprint: fingerprint}, Tokens: tokens,
		StorageMax: s.storageMax, KeepEvents: s.keepEvents, LogBytes: s.logBytes, LogLevel: strings.ToLower(s.level.String()),
		Traces: place(s.file.Traces.Endpoint), Notify: notifyNames(s.file.Notify),
	}
}
