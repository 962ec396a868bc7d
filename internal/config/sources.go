package config

import (
	"cmp"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
)

const (
	defaultInterval  = time.Minute
	shortestInterval = 10 * time.Second
	longestInterval  = 24 * time.Hour
	// maxRepository is in bytes, and a bound of a folder's path, too.
	maxRepository = 1000
)

// scpLike is USER@HOST:PATH, which git takes for ssh.
var scpLike = regexp.MustCompile(`\A[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[A-Za-z0-9~/._][A-Za-z0-9~/._+-]*\z`)

// sources reads which repositories are followed, by name.
func (r *reader) sources() []Source {
	var out []Source
	for _, b := range r.blocks("source") {
		d := r.decoder(b.Body)
		s := Source{
			Name: b.Labels[0], Repository: d.Checked("repository", "Not a repository", badRepository),
			Folder:          cmp.Or(d.Checked("folder", "Not a folder of the repository", badFolder), "."),
			Interval:        d.Duration("interval", defaultInterval, shortestInterval, longestInterval),
			CredentialsFile: d.Checked("credentials", "Not a file", badPath),
		}
		s.Protocol, _ = protocol(s.Repository)
		switch {
		case s.Protocol == "file" && d.Has("credentials"):
			r.report.Error(d.At("credentials"), "Not for a path", "A repository on this machine is read as a user without privileges, and needs no credentials. Remove the argument.")
		case s.Protocol == "ssh" && !d.Has("credentials"):
			r.report.Error(d.At("repository"), "No key", "By ssh nobody is let in without a key: name the file with the private key in credentials.")
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Source) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func badRepository(s string) string {
	_, problem := protocol(s)
	return problem
}

// protocol says how git reaches a repository, or what is wrong with its name.
// What git could take for an option, for a command, or for a protocol that runs
// one is refused here, and once more by git.
func protocol(s string) (name, problem string) {
	u, err := url.Parse(s)
	switch {
	case s == "" || len(s) > maxRepository || strings.HasPrefix(s, "-") || strings.ContainsFunc(s, odd):
		return "", "is not a repository: it is empty or too long, begins with a dash, or holds a blank or a control character."
	case strings.HasPrefix(s, "/"):
		return "file", badPath(s)
	case scpLike.MatchString(s) && !strings.Contains(s, "://"):
		return "ssh", ""
	case err != nil || u.Host == "" || strings.HasPrefix(u.Host, "-") || u.RawQuery != "" || u.Fragment != "":
	case u.Scheme == "https" && u.User != nil:
		return "", "has a user or a password, which everybody who reads the file would have. Put USER:TOKEN into a file, and name that in credentials."
	case u.Scheme == "https":
		return "https", ""
	case u.Scheme == "ssh" && badUser(u.User):
		return "", "has a password, or a user that is none."
	case u.Scheme == "ssh":
		return "ssh", ""
	case u.Scheme == "http":
		return "", "is in the clear: who is on the way could put in what is then run here. Use https."
	}
	return "", "is not a repository such as \"https://git.example.com/shop.git\", \"git@git.example.com:shop.git\", or \"/srv/git/shop.git\"."
}

func odd(c rune) bool { return unicode.IsControl(c) || unicode.IsSpace(c) }

func badUser(u *url.Userinfo) bool {
	_, password := u.Password()
	return password || strings.HasPrefix(u.Username(), "-")
}

func badFolder(s string) string {
	if !fs.ValidPath(s) || path.Clean(s) != s || len(s) > maxRepository || strings.HasPrefix(s, "-") || strings.ContainsFunc(s, unicode.IsControl) {
		return "is not a path below the repository's root such as \"deploy/shop\": without \"..\", and without a slash at either end."
	}
	return ""
}
