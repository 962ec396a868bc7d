package lint

import (
	"archive/tar"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// maxContents bounds what is read of one image, in bytes: entries may be
// sparse, and cost nothing to make.
const maxContents = 64 << 30

// Entry judges one entry of the present layer; r is its content. A layer of the
// base is not read.
func (l *Lint) Entry(header *tar.Header, r io.Reader) error {
	if !l.judging || header.Typeflag != tar.TypeReg && header.Typeflag != tar.TypeGNUSparse || header.Size == 0 {
		return nil
	}
	at := clean(header.Name)
	public := publicKey(at)
	n, err := l.search(io.LimitReader(r, l.maxContents-l.contents+1), at, func(what string) {
		if !public {
			l.add(Secret, what, at, l.layer)
		}
	})
	l.contents += n
	if err != nil {
		return fmt.Errorf("read %s: %w", at, err)
	}
	if l.contents > l.maxContents {
		return kiln.Errorf(kiln.CodeInvalid, "split the image", "the image's files have more than %d bytes", l.maxContents)
	}
	return nil
}

// Config judges what an image's configuration adds to its base's: variables,
// labels, commands and history. An image without a base has the zero value.
func (l *Lint) Config(config, base v1.Image) {
	for _, e := range config.Config.Env {
		if !slices.Contains(base.Config.Env, e) {
			name, value, _ := strings.Cut(e, "=")
			l.words(e, "in the variable "+name)
			l.variable(name, value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(config.Config.Labels)) {
		if value := config.Config.Labels[name]; base.Config.Labels[name] != value {
			l.words(name+"="+value, "in the label "+name)
		}
	}
	for _, c := range slices.Concat(config.Config.Entrypoint, config.Config.Cmd) {
		if !slices.Contains(base.Config.Entrypoint, c) && !slices.Contains(base.Config.Cmd, c) {
			l.words(c, "in the command")
		}
	}
	for i, h := range config.History {
		if i < len(base.History) && base.History[i].CreatedBy == h.CreatedBy && base.History[i].Comment == h.Comment {
			continue
		}
		l.words(h.CreatedBy, "in the history")
		l.words(h.Comment, "in the history")
	}
}

// search looks for secrets in a content.
func (l *Lint) search(r io.Reader, at string, found func(what string)) (int64, error) {
	if l.secrets == nil {
		l.secrets = newSearcher()
	}
	return l.secrets.search(r, at, found)
}

// words looks for secrets in a text of the configuration.
func (l *Lint) words(s, where string) {
	_, err := l.search(strings.NewReader(s), "", func(what string) { l.add(Secret, what+" "+printable(where), "", "") })
	if err != nil {
		return // a string's reader has none
	}
}

var (
	// secretName is what variables are called that hold one.
	secretName = regexp.MustCompile(`(?i)(^|_)(PASSWORD|PASSWD|PASSPHRASE|SECRET|SECRET_KEY|SECRET_ACCESS_KEY|TOKEN|API_?KEY|PRIVATE_KEY|ENCRYPTION_KEY)$`)
	// credentials is a URL with a password.
	credentials = regexp.MustCompile(`[a-z][a-z0-9+.-]*://[^:/@\s]{0,200}:([^@/\s]{3,})@`)
)

// variable judges a variable by its name, and by a password in a URL.
func (l *Lint) variable(name, value string) {
	shown := printable("in the variable " + name)
	named := secretName.MatchString(name) && len(value) >= 6 && !strings.HasPrefix(value, "/")
	if named && secretive([]byte(value), 1.5) {
		l.add(Secret, "what its name calls one "+shown, "", "")
	}
	if m := credentials.FindStringSubmatch(value); m != nil && secretive([]byte(m[1]), 0) {
		l.add(Secret, "a password "+shown, "", "")
	}
}
