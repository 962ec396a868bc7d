package scaffold

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/interpolation"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/kilnproject/kiln"
)

// composition is one translation of a Compose file.
type composition struct {
	fsys     fs.FS
	project  *types.Project
	out      stack
	images   map[string]string // by reference
	services map[string]string // Kiln's names, by Compose's
	imageSet names
	vars     map[string]bool
	notes    []string
}

// fromCompose translates a Compose file.
func fromCompose(fsys fs.FS, name string, src []byte) (map[string][]byte, []string, error) {
	project, err := loadCompose(name, src)
	if err != nil {
		return nil, nil, kiln.Errorf(kiln.CodeInvalid, "see what `docker compose config` says", "read %s: %w", name, err)
	}
	if len(project.Services) == 0 {
		return nil, nil, kiln.Errorf(kiln.CodeInvalid, "", "%s has no services", name)
	}
	c := &composition{
		fsys: fsys, project: project, images: map[string]string{}, services: map[string]string{},
		imageSet: names{}, vars: map[string]bool{},
	}
	c.out.header = []string{
		"Written by `kiln init` from " + name + ". Check the comments: they say what was chosen, and what Kiln does otherwise.",
		"Instances are read-only but for the `writable` paths, start all at once (there is no depends_on: programs wait for what they need), and reach nothing outside of the environment until a service names it:",
		exampleEgress,
	}
	c.leftOut(name, src)
	taken := names{}
	for _, service := range c.serviceNames() {
		c.services[service] = taken.make(service)
	}
	for _, service := range c.serviceNames() {
		c.add(project.Services[service])
	}
	c.uniqueRoutes()
	for _, v := range slices.Sorted(maps.Keys(c.vars)) {
		c.out.variables = append(c.out.variables, variable{name: v, doc: "Given from outside in " + name + "."})
	}
	c.notes = append(c.notes, "The definition was made from "+name+".")
	return map[string][]byte{definitionFile: c.out.bytes()}, c.notes, nil
}

// loadCompose reads the file alone: no includes, no extended files, no
// environment files, and of variables only their defaults.
func loadCompose(name string, src []byte) (project *types.Project, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it cannot be read: %v", p)
		}
	}()
	details := types.ConfigDetails{
		WorkingDir:  ".",
		ConfigFiles: []types.ConfigFile{{Filename: name, Content: src}},
		Environment: types.Mapping{},
	}
	return loader.LoadWithContext(context.Background(), details, func(o *loader.Options) {
		o.SetProjectName("app", true)
		o.SkipInclude, o.SkipExtends = true, true
		o.SkipResolveEnvironment, o.SkipResolveLabels = true, true
		o.SkipNormalization, o.SkipConsistencyCheck = true, true
		o.ResolvePaths = false
		o.ResourceLoaders = nil
		o.Profiles = []string{"*"}
		o.Interpolate = &interpolation.Options{
			LookupValue:     func(string) (string, bool) { return "", false },
			Substitute:      substitute,
			TypeCastMapping: o.Interpolate.TypeCastMapping,
		}
	})
}

// substitute puts a variable's default in, or nothing; a variable that must be
// given does not stop it.
func substitute(text string, mapping template.Mapping) (string, error) {
	out, err := template.SubstituteWithOptions(text, mapping, template.WithoutLogging)
	if err == nil {
		return out, nil
	}
	return regexp.MustCompile(`\$\{[^}]*\}|\$[A-Za-z_][A-Za-z0-9_]*`).ReplaceAllString(text, ""), nil
}

func (c *composition) serviceNames() []string {
	return slices.Sorted(maps.Keys(c.project.Services))
}

// leftOut notes what of the file as a whole is not carried over.
func (c *composition) leftOut(name string, src []byte) {
	text := string(src)
	for _, word := range []string{"include", "extends"} {
		if regexp.MustCompile(`(?m)^\s*` + word + `\s*:`).MatchString(text) {
			c.notes = append(c.notes, fmt.Sprintf("%s uses %s, which was not followed. Write the whole with `docker compose config`, and run `kiln init` on that.", name, word))
		}
	}
	if regexp.MustCompile(`\$\{?[A-Za-z_]`).MatchString(text) {
		c.out.header = append(c.out.header, "Variables of the Compose file have their defaults here, or are empty. Nothing was read from .env or from the machine.")
	}
	for _, other := range []string{"compose.override.yaml", "compose.override.yml", "docker-compose.override.yaml", "docker-compose.override.yml"} {
		if _, err := fs.Lstat(c.fsys, other); err == nil {
			c.notes = append(c.notes, other+" was not read: it is usually for development.")
		}
	}
	if len(c.project.Secrets) > 0 || len(c.project.Configs) > 0 {
		c.notes = append(c.notes, "Compose's secrets and configs are not carried over: bake configuration into the image, and give secrets as variables.")
	}
}

// add translates one service, its image and its routes.
func (c *composition) add(in types.ServiceConfig) {
	s := service{name: c.services[in.Name], count: 1}
	if s.name != in.Name {
		s.notes = append(s.notes, fmt.Sprintf("Called %s in the Compose file. Its host name here is %s.", in.Name, s.name))
	}
	if len(in.Profiles) > 0 {
		s.notes = append(s.notes, "Only in the profiles "+strings.Join(in.Profiles, ", ")+" of the Compose file. Kiln has no profiles: remove it, or set count = 0.")
		s.count = 0
	}
	s.image = c.image(in, &s)
	c.ports(in, &s)
	c.process(in, &s)
	c.environment(in, &s)
	c.storage(in, &s)
	s.probe(composeCheck(in.HealthCheck), "The health check")
	c.limits(in, &s)
	c.unsupported(in, &s)
	c.out.services = append(c.out.services, s)
	c.routes(in, s)
}

// image returns the name of the image block of a service.
func (c *composition) image(in types.ServiceConfig, s *service) string {
	if in.Build == nil {
		return c.pulled(in)
	}
	out := image{name: c.imageSet.make(in.Name), context: in.Build.Context, args: map[string]string{}, platform: in.Platform, target: in.Build.Target}
	if out.context == "" {
		out.context = "."
	}
	if clean, ok := inside(out.context); ok {
		out.context = clean
	} else {
		out.notes = append(out.notes, fmt.Sprintf("The build context %q is outside of this folder, which Kiln cannot read. Move the definition up, or the files in.", in.Build.Context))
		out.context = "."
	}
	if in.Build.Dockerfile != "" && in.Build.Dockerfile != "Dockerfile" {
		if clean, ok := inside(in.Build.Dockerfile); ok {
			out.file = clean
		} else {
			out.notes = append(out.notes, fmt.Sprintf("The Dockerfile %q is outside of the context; move it in.", in.Build.Dockerfile))
		}
	}
	if in.Build.DockerfileInline != "" {
		out.notes = append(out.notes, "The Compose file holds this Dockerfile inline. Write it to a file named Dockerfile in the context.")
	}
	for k, v := range in.Build.Args {
		if v == nil {
			out.notes = append(out.notes, fmt.Sprintf("The build argument %s came from the machine's environment; set it here if the Dockerfile needs it.", k))
			continue
		}
		out.args[k] = quote(*v)
	}
	for k := range in.Build.AdditionalContexts {
		out.notes = append(out.notes, fmt.Sprintf("The additional context %s is not carried over; Kiln's contexts are other images: contexts = { %s = image.NAME }.", k, k))
	}
	slices.Sort(out.notes)
	if !validPlatform(out.platform) {
		out.platform = ""
	}
	c.out.images = append(c.out.images, out)
	c.exposeOfDockerfile(out, s)
	return out.name
}

// exposeOfDockerfile takes the ports that the image itself exposes.
func (c *composition) exposeOfDockerfile(i image, s *service) {
	file := i.file
	if file == "" {
		file = "Dockerfile"
	}
	src, err := read(c.fsys, joinPath(i.context, file))
	if err != nil {
		return // Compose may build from what is not here yet
	}
	st, err := parseDockerfile(src, strings.ToLower(i.target))
	if err != nil {
		return
	}
	for _, e := range st.expose {
		s.expose(e)
	}
}

// pulled returns the name of the image block of a reference.
func (c *composition) pulled(in types.ServiceConfig) string {
	reference, notes := normalReference(in.Image)
	if name, ok := c.images[reference]; ok {
		return name
	}
	out := image{name: c.imageSet.make(in.Name), reference: reference, notes: notes, platform: in.Platform}
	if !validPlatform(out.platform) {
		out.platform = ""
	}
	c.images[reference] = out.name
	c.out.images = append(c.out.images, out)
	return out.name
}

// routes makes the public routes of published ports.
func (c *composition) routes(in types.ServiceConfig, s service) {
	published := service{name: s.name}
	listen := "127.0.0.1"
	numbers := map[int]int{}
	for _, p := range in.Ports {
		at := s.port(int(p.Target))
		if at < 0 {
			continue
		}
		published.ports = append(published.ports, s.ports[at])
		numbers[s.ports[at].number] = publishedPort(p.Published, s.ports[at].number)
	}
	for _, r := range routesOf(published, s.name+".localhost", listen) {
		if r.port == "" && len(s.ports) > 0 && s.ports[0].name != published.ports[0].name {
			r.port = published.ports[0].name
		}
		if r.listen != "" {
			host, number, _ := strings.Cut(r.listen, ":")
			for from, to := range numbers {
				if fmt.Sprint(from) == number {
					r.listen = fmt.Sprintf("%s:%d", host, to)
					break
				}
			}
		}
		c.out.routes = append(c.out.routes, r)
	}
}

// uniqueRoutes gives routes names of their own that are short enough, and drops
// second claims of an address.
func (c *composition) uniqueRoutes() {
	taken, claimed := names{}, map[string]bool{}
	var out []route
	for _, r := range c.out.routes {
		if r.listen != "" && claimed[r.listen] {
			c.notes = append(c.notes, fmt.Sprintf("%s is published twice in the Compose file; service %s has no route for it.", r.listen, r.service))
			continue
		}
		claimed[r.listen] = true
		r.name = taken.make(r.name)
		out = append(out, r)
	}
	c.out.routes = out
}
