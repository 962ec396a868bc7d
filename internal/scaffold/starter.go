package scaffold

import (
	"errors"
	"io/fs"

	"github.com/kilnproject/kiln"
)

const starterHeader = "A first definition: a golden image from signed Debian archives, a page baked on it, and one service. `kiln up` bakes, seals and starts it; then open the URL that it prints."

const starterDockerfile = `# The name "base" is the golden image of kiln.hcl.
FROM base
COPY index.html /srv/www/index.html
USER www-data
CMD ["busybox", "httpd", "-f", "-p", "8080", "-h", "/srv/www"]
`

const starterPage = `<!doctype html>
<title>It runs</title>
<h1>It runs</h1>
<p>Change this page and run <code>kiln up</code>: a new image, new instances, and the old ones kept warm to go back to.</p>
`

// starter is for a folder with nothing to go by.
func starter(fsys fs.FS) (map[string][]byte, []string, error) {
	s := stack{
		header: []string{
			starterHeader,
			"Every block and argument is explained in docs/reference/definition.md.",
		},
		images: []image{
			{
				name: "base", debian: []string{"busybox", "ca-certificates"},
				notes: []string{"The golden image. No registry is involved. A machine that is not Debian needs a mirror:", "| mirror = \"https://mirror.example.com/debian\""},
			},
			{name: "web", context: "web", contexts: map[string]string{"base": "image.base"}},
		},
		services: []service{{
			name: "web", image: "web", count: 2,
			notes: []string{
				"The root file system is read-only and nothing outside of the environment can be reached. Name what your program needs:",
				"| writable = { \"/var/cache/app\" = \"64MiB\" }",
				exampleEgress,
			},
			ports:  []port{{"http", 8080, "http"}},
			ready:  []setting{{"http", `"/"`}},
			limits: []setting{{"memory", `"64MiB"`}},
		}},
		routes: []route{{name: "web", host: "web.localhost", service: "web", notes: []string{"Names below .localhost always mean this machine."}}},
	}
	files := map[string][]byte{
		definitionFile:   s.bytes(),
		"web/Dockerfile": []byte(starterDockerfile),
		"web/index.html": []byte(starterPage),
	}
	for name := range files {
		if _, err := fs.Lstat(fsys, name); !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, kiln.Errorf(kiln.CodeConflict, "run `kiln init` in an empty folder, or beside a Dockerfile or a Compose file", "%s is there already", name)
		}
	}
	return files, []string{"There is neither a Compose file nor a Dockerfile here, so this is a page to start from."}, nil
}
