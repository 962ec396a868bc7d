package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/install"
	repository "github.com/kilnproject/kiln/internal/source"
	"github.com/kilnproject/kiln/internal/spec"
	"github.com/kilnproject/kiln/internal/store"
	"github.com/kilnproject/kiln/internal/track"
)

// sourceUser is who git fetches repositories as, where there is such a user, and
// otherwise sourceID, for user and group. It is not the reader: what git is made
// to do must not reach those who read images.
const (
	sourceUser = install.SourceUser
	sourceID   = 64740
)

// openTracker makes what follows repositories; it begins with Run.
func (p *plane) openTracker() {
	p.tracker = track.New(track.Options{
		Dir: p.dir("sources"), Open: p.openMirror, Following: p.following, Releases: p.ledger.Releases, Record: p.record, Log: p.log,
		Up: func(ctx context.Context, r control.UpRequest, emit func(kiln.Progress)) (control.UpResult, error) {
			return p.control.Up(ctx, r, emit)
		},
	})
	p.tracker.Set(followed(p.settings.Load().file.Sources))
}

// followed are the sources as they are followed.
func followed(list []config.Source) []track.Source {
	var out []track.Source
	for _, s := range list {
		out = append(out, track.Source(s))
	}
	return out
}

// openMirror opens the copy of a source's repository.
func (p *plane) openMirror(ctx context.Context, dir string, s track.Source) (track.Repository, error) {
	git, err := exec.LookPath("git")
	if err == nil {
		git, err = filepath.Abs(git)
	}
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "apt-get install git", "following a repository needs the program git: %w", err)
	}
	uid, gid := unprivileged(sourceUser, sourceID)
	o := repository.MirrorOptions{
		Dir: dir, Program: append(launch(p.program, uid, gid), git), UID: uid, GID: gid,
		Repository: s.Repository, Protocol: s.Protocol, Folder: s.Folder,
		NewBatch: func() repository.Batch { return p.store.NewBatch() }, Check: store.CheckTree,
	}
	if s.CredentialsFile != "" {
		o.Credential = func() ([]byte, error) { return config.Secret(s.CredentialsFile) }
	}
	return repository.OpenMirror(ctx, o)
}

// following reads which environments of a definition a branch is brought up in.
func (p *plane) following(definition kiln.Tree, branch string) ([]string, error) {
	found, err := spec.Following(p.store.TreeFS(definition), branch)
	var names []string
	for _, e := range found {
		names = append(names, e.Name)
	}
	return names, err
}

// sourceTexts say what is followed.
func sourceTexts(list []config.Source) []string {
	out := []string{}
	for _, s := range list {
		text := fmt.Sprintf("%s at %s in %s every %s", s.Name, s.Repository, s.Folder, s.Interval)
		if s.CredentialsFile != "" {
			text += " with " + s.CredentialsFile
		}
		out = append(out, text)
	}
	return out
}
