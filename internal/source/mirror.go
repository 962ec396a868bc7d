package source

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

const (
	// fetchLimit bounds one fetch, and everything else that is asked of git for
	// one commit.
	fetchLimit = 15 * time.Minute
	// defaultMaxMirror bounds a mirror, in bytes.
	defaultMaxMirror = 2 << 30
	maxBranches      = 1000
	maxBranchName    = 250

	mirrorDir  = "mirror.git"
	configFile = "gitconfig"
	keyFile    = "key"
)

// MirrorOptions say what a Mirror is of, and who reads it. All but UID, GID,
// Credential and MaxBytes must be set.
type MirrorOptions struct {
	// Dir is the source's own folder. What git writes is in one folder of it;
	// the rest is the caller's.
	Dir string
	// Program is the command that git's arguments are appended to: git, or what
	// becomes UID and GID and then git.
	Program []string
	// UID and GID own the mirror; 0 is the user of this process.
	UID, GID int
	// Repository is where it is fetched from by Protocol: "https", "ssh" or
	// "file". It holds no secret.
	Repository, Protocol string
	// Folder is where in it the definition is, a slash path.
	Folder string
	// Credential reads a token for https or a private key for ssh; nil is none.
	Credential func() ([]byte, error)
	// MaxBytes bounds the mirror; 0 means 2 GiB.
	MaxBytes int64
	// NewBatch begins to store a commit's files, and Check refuses a tree that
	// must not be.
	NewBatch func() Batch
	Check    func(kiln.Tree) error
}

// Mirror is a bare copy of the branches of a repository. What is in it was
// written by whoever may push there, and what the other end sends by whoever
// answers: git reads both as a user without privileges, starts nothing that a
// repository names, and fetches no submodule. One goroutine uses a Mirror.
type Mirror struct {
	o      MirrorOptions
	secret []string // what an error must not show; of the last fetch
}

// OpenMirror makes what is missing of a mirror, and fetches nothing.
func OpenMirror(ctx context.Context, o MirrorOptions) (*Mirror, error) {
	o.MaxBytes = cmp.Or(o.MaxBytes, defaultMaxMirror)
	m := &Mirror{o: o}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil { //nolint:gosec // git passes through it as another user
		return nil, fmt.Errorf("make the folder of a mirror: %w", err)
	}
	// A key that a control plane left that was killed.
	if err := os.Remove(m.path(keyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove an old key: %w", err)
	}
	if err := durable.Write(m.path(configFile), []byte(settings), 0o644); err != nil {
		return nil, fmt.Errorf("write git's settings: %w", err)
	}
	return m, m.create(ctx)
}

func (m *Mirror) path(name string) string { return filepath.Join(m.o.Dir, name) }

// create makes an empty mirror where there is none.
func (m *Mirror) create(ctx context.Context) error {
	dir := m.path(mirrorDir)
	if _, err := os.Lstat(filepath.Join(dir, "HEAD")); err == nil {
		return nil
	}
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return fmt.Errorf("make a mirror: %w", err)
	}
	if m.o.UID != 0 {
		if err := os.Lchown(dir, m.o.UID, m.o.GID); err != nil {
			return fmt.Errorf("make a mirror: %w", err)
		}
	}
	if _, err := m.ask(ctx, nil, "init", "--quiet", "--bare", "--template=", dir); err != nil {
		return m.explain(ctx, err)
	}
	return nil
}

// Fetch makes the branches of the mirror those of the repository, and returns
// which commit each of them is at. The error says what to do about it and shows
// no credential.
func (m *Mirror) Fetch(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	if err := m.create(ctx); err != nil {
		return nil, err
	}
	if _, err := m.tidy(); err != nil {
		return nil, err
	}
	environment, done, err := m.credentials()
	defer done()
	if err != nil {
		return nil, err
	}
	_, fetching := m.ask(ctx, environment, "fetch", "--quiet", "--prune", "--no-tags", "--force", "--no-write-fetch-head",
		"--no-recurse-submodules", "--", m.o.Repository, "+refs/heads/*:refs/heads/*")
	size, err := m.tidy()
	switch {
	case err != nil:
		return nil, err
	case size >= m.o.MaxBytes: // or git was ended at the bound
		return nil, errors.Join(m.tooLarge(), os.RemoveAll(m.path(mirrorDir)))
	case fetching != nil:
		return nil, m.explain(ctx, fetching)
	}
	return m.heads(ctx)
}

func (m *Mirror) tooLarge() error {
	return kiln.Errorf(kiln.CodeRefused, "keep what is deployed in a repository of its own, without large files in its history",
		"the repository has more than %d MiB", m.o.MaxBytes>>20)
}

// heads are the mirror's branches and their commits.
func (m *Mirror) heads(ctx context.Context) (map[string]string, error) {
	out, err := m.ask(ctx, nil, "for-each-ref", fmt.Sprintf("--count=%d", maxBranches+1), "--format=%(objecttype) %(objectname) %(refname)", "refs/heads/")
	if err != nil {
		return nil, m.explain(ctx, err)
	}
	heads := map[string]string{}
	for line := range strings.Lines(string(out)) {
		kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		commit, ref, _ := strings.Cut(rest, " ")
		branch, ok := strings.CutPrefix(ref, "refs/heads/")
		if kind != "commit" || !ok || !isCommit(commit) || len(branch) > maxBranchName || checkName(branch) != nil {
			continue // no environment can name it
		}
		heads[branch] = commit
	}
	if len(heads) > maxBranches {
		return nil, kiln.Errorf(kiln.CodeRefused, "delete branches that were merged", "the repository has more than %d branches", maxBranches)
	}
	return heads, nil
}

// isCommit says whether a text is a whole object name.
func isCommit(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

// tidy removes what a git that was killed left in the mirror, and returns the
// size in bytes that the mirror had.
func (m *Mirror) tidy() (size int64, err error) {
	root, err := os.OpenRoot(m.path(mirrorDir)) // whoever git runs as could put a link into it
	if err != nil {
		return 0, fmt.Errorf("look at a mirror: %w", err)
	}
	defer func() { _ = root.Close() }()
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil {
			size += info.Size()
		}
		if strings.HasSuffix(name, ".lock") || strings.HasPrefix(name, "objects/") && strings.HasPrefix(d.Name(), "tmp_") {
			return root.Remove(name)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("look at a mirror: %w", err)
	}
	return size, nil
}

// credentials returns what git's environment says of a credential, which no
// argument does, and what takes it away again.
func (m *Mirror) credentials() (environment []string, done func(), err error) {
	done = func() {}
	m.secret = nil
	if m.o.Credential == nil {
		return nil, done, nil
	}
	secret, err := m.o.Credential()
	if err != nil {
		return nil, done, fmt.Errorf("read the credentials: %w", err)
	}
	if m.o.Protocol == "ssh" {
		return m.key(secret)
	}
	token := strings.TrimSpace(string(secret))
	if !strings.Contains(token, ":") {
		token = "git:" + token
	}
	user, password, _ := strings.Cut(token, ":")
	if user == "" || password == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, done, kiln.Errorf(kiln.CodeInvalid, "write TOKEN or USER:TOKEN into it, on one line", "the file of the credentials holds no token")
	}
	encoded := base64.StdEncoding.EncodeToString([]byte(token))
	m.secret = []string{encoded, password}
	return []string{"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Basic " + encoded}, done, nil
}

// key puts a private key where ssh can read it: it takes none but from a file
// of its own user's.
func (m *Mirror) key(secret []byte) (environment []string, done func(), err error) {
	name := m.path(keyFile)
	done = func() { _ = os.Remove(name) }
	err = os.WriteFile(name, append(bytes.TrimSpace(secret), '\n'), 0o600)
	if err == nil && m.o.UID != 0 {
		err = os.Lchown(name, m.o.UID, m.o.GID)
	}
	if err != nil {
		return nil, done, fmt.Errorf("hand over the key: %w", err)
	}
	command := []string{"ssh -F none -i '" + strings.ReplaceAll(name, "'", `'\''`) + "'"}
	for _, option := range []string{
		"BatchMode=yes", "IdentitiesOnly=yes", "IdentityAgent=none", "StrictHostKeyChecking=yes", "UserKnownHostsFile=/dev/null", "ForwardAgent=no",
		"ClearAllForwardings=yes", "ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=4",
	} {
		command = append(command, "-o "+option)
	}
	return []string{"GIT_SSH_COMMAND=" + strings.Join(command, " ")}, done, nil
}

// explain makes of an error of git's one that says what to do.
func (m *Mirror) explain(ctx context.Context, err error) error {
	var e *kiln.Error
	if !errors.As(err, &e) || ctx.Err() != nil {
		return err
	}
	said := m.said(err)
	hint := "look at the repository's address, its credentials, and the network; the mirror itself can be removed, and is made again: " + m.path(mirrorDir)
	for _, known := range remedies() {
		if strings.Contains(said, known.said) {
			hint = known.mend
			break
		}
	}
	e.Hint = hint
	return e
}

// remedy is what mends what git says.
type remedy struct{ said, mend string }

func remedies() []remedy {
	const unsound = "the repository has objects that are not sound: git fsck in a clone names them"
	return []remedy{
		{"Host key verification failed", "compare the host's key with what its operator publishes, then: ssh-keyscan HOST >> /etc/ssh/ssh_known_hosts"},
		{"cannot mkdir", "the user that git runs as must be able to pass through the folders above the data directory: chmod o+x them"},
		{"No user exists for uid", "ssh needs an account: useradd --system --no-create-home --shell /usr/sbin/nologin kiln-source, and then start kilnd again"},
		{"could not read Username", "the repository wants a token that may read it: put one into a file, and name that in credentials"},
		{"Authentication failed", "look whether the token is valid and may read the repository"},
		{"Permission denied", "look whether the key may read the repository, or, for a path, whether the user that git runs as may"},
		{"returned error: 403", "look whether the token is valid and may read the repository"},
		{"returned error: 30", "the repository has moved: write its new address, redirects are not followed"},
		{"fsck", unsound},
		{"index-pack failed", unsound},
		{"not appear to be a git repository", "look whether it is a repository, which the user that git runs as may read"},
		{"No space left", "make room on the disk"},
	}
}

// said is what git wrote.
func (m *Mirror) said(err error) string {
	var e *kiln.Error
	if !errors.As(err, &e) {
		return ""
	}
	return strings.Join(e.Evidence, "\n")
}
