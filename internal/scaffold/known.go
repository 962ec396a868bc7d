package scaffold

import (
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// known is what a well-known image needs that its Compose file need not say.
type known struct {
	port         int
	protocol     string
	capabilities []string
	writable     []string
}

// knownImage looks an image up by the last part of its name.
func knownImage(reference string) (known, bool) {
	base := path.Base(strings.SplitN(reference, "@", 2)[0])
	base, _, _ = strings.Cut(base, ":")
	step := []string{"CHOWN", "SETGID", "SETUID"}
	switch base {
	case "nginx":
		return known{80, "http", step, []string{"/var/cache/nginx", "/run"}}, true
	case "httpd":
		return known{80, "http", step, []string{"/usr/local/apache2/logs"}}, true
	case "postgres", "postgis":
		return known{5432, "tcp", step, []string{"/var/run/postgresql"}}, true
	case "redis", "valkey":
		return known{6379, "tcp", step, nil}, true
	case "mysql", "mariadb":
		return known{3306, "tcp", step, []string{"/run/mysqld", "/tmp"}}, true
	case "mongo":
		return known{27017, "tcp", step, []string{"/tmp"}}, true
	case "rabbitmq":
		return known{5672, "tcp", step, nil}, true
	case "memcached":
		return known{11211, "tcp", nil, nil}, true
	}
	return known{}, false
}

// normalReference writes an image's reference with its host and tag.
func normalReference(s string) (string, []string) {
	if cut := strings.TrimRight(s, ":@"); cut != s {
		out, notes := normalReference(cut)
		return out, append(notes, "The Compose file takes the version from outside. Write the right one.")
	}
	ref, err := name.ParseReference(s)
	if err != nil {
		return "docker.io/library/busybox:latest", []string{"The image \"" + s + "\" of the Compose file is not a reference that can be read. Write the right one."}
	}
	repository := ref.Context()
	out := strings.TrimPrefix(repository.RegistryStr(), "index.") + "/" + repository.RepositoryStr()
	switch ref := ref.(type) {
	case name.Digest:
		return out + "@" + ref.DigestStr(), nil
	case name.Tag:
		out += ":" + ref.TagStr()
		if ref.TagStr() == "latest" {
			return out, []string{"kiln.lock keeps the digest, so latest means what it meant at the first `kiln up`. A version says more."}
		}
	}
	return out, nil
}

// inside cleans a path of the Compose file; ok is false when it leaves the
// folder.
func inside(p string) (string, bool) {
	if path.IsAbs(p) || strings.ContainsAny(p, "\\\x00") || strings.Contains(p, "://") {
		return "", false
	}
	clean := path.Clean(p)
	return clean, clean != ".." && !strings.HasPrefix(clean, "../")
}

func joinPath(context, file string) string { return path.Join(context, file) }

func validPlatform(s string) bool {
	return regexp.MustCompile(`\Alinux/(amd64|arm64|arm|386|ppc64le|s390x|riscv64)(/v[0-9])?\z`).MatchString(s)
}

func validUser(s string) bool {
	return regexp.MustCompile(`\A([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9})(:([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9}))?\z`).MatchString(s)
}

// validWritable says whether a path may be writable, or a working directory.
func validWritable(p string) bool {
	p = strings.TrimSuffix(p, "/")
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsRune(p, 0) {
		return false
	}
	for _, kernel := range []string{"/proc", "/sys", "/dev"} {
		if p == kernel || strings.HasPrefix(p, kernel+"/") && p != "/dev/shm" {
			return false
		}
	}
	return true
}

// publishedPort is the machine's port of a published one, "8080" or the first
// of a range.
func publishedPort(s string, target int) int {
	first, _, _ := strings.Cut(s, "-")
	if n, err := strconv.Atoi(first); err == nil && n > 0 && n < 65536 {
		return n
	}
	return target
}
