package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
)

// image is the root of a system with nothing but accounts' files.
type image struct {
	t   *testing.T
	dir string
}

func newImage(t *testing.T) image {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("gives files to root")
	}
	m := image{t, t.TempDir()}
	m.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	m.write("/etc/group", "root:x:0:\n")
	return m
}

func (m image) path(name string) string { return filepath.Join(m.dir, name) }

func (m image) write(name, content string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.path(name)), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(m.path(name), []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m image) read(name string) string {
	m.t.Helper()
	b, err := os.ReadFile(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

// options are of an installation whose programs say the version.
func (m image) options(version string) Options {
	m.t.Helper()
	sources := m.t.TempDir()
	for _, name := range []string{"kiln", "kilnd"} {
		if err := os.WriteFile(filepath.Join(sources, name), []byte(name+" "+version), 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
	return Options{
		Root: m.dir, Prefix: "/usr/local", Data: "/var/lib/kiln", Version: version, Run: m.run,
		Kiln: filepath.Join(sources, "kiln"), Kilnd: filepath.Join(sources, "kilnd"),
		Pages: []Page{{"man/man1/kiln.1.gz", []byte("page " + version)}, {"bash-completion/completions/kiln", []byte("completion")}},
	}
}

// run does what the programs of accounts do, as far as these tests look.
func (m image) run(_ context.Context, program string, args ...string) error {
	if len(args) < 3 || args[0] != "--prefix" || args[1] != m.dir {
		return fmt.Errorf("%s %q is not for the image", program, args)
	}
	name := args[len(args)-1]
	files := map[string][]string{
		"groupadd": {"/etc/group"}, "useradd": {"/etc/passwd", "/etc/group"}, "groupdel": {"/etc/group"}, "userdel": {"/etc/passwd"},
	}
	for _, file := range files[program] {
		all := slices.Collect(strings.Lines(m.read(file)))
		had := len(all)
		all = slices.DeleteFunc(all, func(line string) bool { return strings.HasPrefix(line, name+":") })
		adds := strings.HasSuffix(program, "add")
		if adds == (len(all) != had) {
			return fmt.Errorf("%s %s: wrong for what %s has", program, name, file)
		}
		if adds {
			all = append(all, fmt.Sprintf("%s:x:%d:%d\n", name, 900+had, 900+had))
		}
		m.write(file, strings.Join(all, ""))
	}
	return nil
}

func (m image) install(o Options) {
	m.t.Helper()
	if err := Install(m.t.Context(), o, quietly); err != nil {
		m.t.Fatal(err)
	}
}

func (m image) uninstall(purge bool) {
	m.t.Helper()
	if err := Uninstall(m.t.Context(), RemoveOptions{Root: m.dir, Purge: purge, Run: m.run}, quietly); err != nil {
		m.t.Fatal(err)
	}
}

func quietly(Step) error { return nil }

// tree is everything in the image: mode, owner and content by path.
func (m image) tree() map[string]string {
	m.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(m.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(b)
		case info.Mode()&fs.ModeSymlink != 0:
			if content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		out[strings.TrimPrefix(path, m.dir)] = fmt.Sprintf("%s %s %s", info.Mode(), owner(info), content)
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// actions are the steps' actions by name.
func actions(t *testing.T, steps []Step, err error) map[string]Action {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Action{}
	for _, s := range steps {
		out[s.Item.Name] = s.Action
	}
	return out
}

func TestWhatIsInstalledIsTheList(t *testing.T) {
	m := newImage(t)
	o := m.options("1")
	m.install(o)
	got := m.tree()
	for _, i := range Items(o) {
		at := got[i.Name]
		switch i.Kind {
		case KindGroup, KindUser:
			if !strings.Contains(m.read("/etc/group"), "\n"+i.Name+":") {
				t.Errorf("no group %s", i.Name)
			}
		case KindFolder:
			if want := fmt.Sprintf("%s ", i.Mode|fs.ModeDir); !strings.HasPrefix(at, want) {
				t.Errorf("%s: %q, want %q", i.Name, at, want)
			}
		case KindLink:
			if !strings.HasSuffix(at, " "+i.Target) {
				t.Errorf("%s: %q", i.Name, at)
			}
		case KindFile:
			if !strings.HasPrefix(at, i.Mode.String()+" ") || i.Text != nil && !strings.HasSuffix(at, string(i.Text)) {
				t.Errorf("%s: %q", i.Name, at)
			}
		}
	}
	if config := got[ConfigFile]; !strings.HasPrefix(config, "-rw-r----- 0:901 ") { // the group kiln's
		t.Errorf("the configuration: %q", config)
	}
	if got["/usr/local/bin/kilnd"] != "-rwxr-xr-x 0:0 kilnd 1" {
		t.Errorf("kilnd: %q", got["/usr/local/bin/kilnd"])
	}
}

func TestASecondInstallationChangesNothing(t *testing.T) {
	m := newImage(t)
	m.install(m.options("1"))
	before := m.tree()
	for name, action := range planned(t, m.options("1")) {
		if action != Same {
			t.Errorf("%s: %s", name, action)
		}
	}
	m.install(m.options("1"))
	if diff := cmp.Diff(before, m.tree()); diff != "" {
		t.Error(diff)
	}
}

func planned(t *testing.T, o Options) map[string]Action {
	t.Helper()
	steps, err := Plan(o)
	return actions(t, steps, err)
}

func TestANewVersionReplacesWhatTheOldOneWrote(t *testing.T) {
	m := newImage(t)
	m.install(m.options("1"))
	got := planned(t, m.options("2"))
	want := map[string]Action{"/usr/local/bin/kiln": Replace, "/usr/local/share/man/man1/kiln.1.gz": Replace, "/etc/systemd/system/kilnd.service": Same, GroupName: Same}
	for name, action := range want {
		if got[name] != action {
			t.Errorf("%s: %s, want %s", name, got[name], action)
		}
	}
	m.install(m.options("2"))
	if m.read("/usr/local/bin/kiln") != "kiln 2" {
		t.Error("it was not replaced")
	}
	m.uninstall(true)
}

func TestWhatOthersWroteIsInTheWay(t *testing.T) {
	for name, c := range map[string]struct {
		foreign string
		spoil   func(m image)
	}{
		"a foreign file": {"/usr/local/bin/kiln", func(m image) { m.write("/usr/local/bin/kiln", "mine") }},
		"a changed file": {"/etc/systemd/system/kilnd.service", func(m image) {
			m.install(m.options("0"))
			m.write("/etc/systemd/system/kilnd.service", "mine")
		}},
		"a folder": {"/usr/local/bin/kilnd", func(m image) { m.write("/usr/local/bin/kilnd/mine", "") }},
		"a link": {"/usr/local/bin/kilnd", func(m image) {
			m.write("/usr/local/bin/other", "kilnd 1")
			if err := os.Symlink("other", m.path("/usr/local/bin/kilnd")); err != nil {
				m.t.Fatal(err)
			}
		}},
		"a link at boot": {"/etc/systemd/system/multi-user.target.wants/kilnd.service", func(m image) {
			m.write("/etc/systemd/system/multi-user.target.wants/x", "")
			if err := os.Symlink("/dev/null", m.path("/etc/systemd/system/multi-user.target.wants/kilnd.service")); err != nil {
				m.t.Fatal(err)
			}
		}},
		"a file for a folder": {"/var/lib/kiln is not a folder", func(m image) { m.write("/var/lib/kiln", "mine") }},
	} {
		t.Run(name, func(t *testing.T) {
			m := newImage(t)
			c.spoil(m)
			before := m.tree()
			err := Install(t.Context(), m.options("1"), quietly)
			var conflict *kiln.Error
			if !errors.As(err, &conflict) || conflict.Code != kiln.CodeConflict || !slices.Equal(conflict.Evidence, []string{c.foreign}) {
				t.Errorf("%v %+v", err, conflict)
			}
			if diff := cmp.Diff(before, m.tree()); diff != "" {
				t.Errorf("something was done before that: %s", diff)
			}
		})
	}
}

func TestForceReplacesWhatIsInTheWay(t *testing.T) {
	m := newImage(t)
	m.write("/usr/local/bin/kiln", "mine")
	o := m.options("1")
	o.Force = true
	m.install(o)
	if got := m.read("/usr/local/bin/kiln"); got != "kiln 1" {
		t.Error(got)
	}
}

func TestTheConfigurationIsNeverOverwritten(t *testing.T) {
	m := newImage(t)
	m.write(ConfigFile, "log { level = \"debug\" }\n")
	o := m.options("1")
	o.Force = true
	m.install(o)
	if got := planned(t, o)[ConfigFile]; got != Keep {
		t.Errorf("%s", got)
	}
	if !strings.Contains(m.read(ConfigFile), "debug") {
		t.Error("it was overwritten")
	}
	m.uninstall(false)
	if !strings.Contains(m.read(ConfigFile), "debug") {
		t.Error("it was removed")
	}
}

func TestWhoTookTheStartAtBootAwayKeepsItSo(t *testing.T) {
	m := newImage(t)
	m.install(m.options("1"))
	const link = "/etc/systemd/system/multi-user.target.wants/kilnd.service"
	if err := os.Remove(m.path(link)); err != nil {
		t.Fatal(err)
	}
	m.install(m.options("2"))
	if _, err := os.Lstat(m.path(link)); err == nil {
		t.Error("it starts at boot again")
	}
}

func TestLinksDoNotLeadOutOfTheImage(t *testing.T) {
	for name, links := range map[string]map[string]string{
		"absolute":      {"/usr/local": "OUTSIDE"},
		"relative":      {"/usr/local": "../../../../../../../../../../../../..OUTSIDE"},
		"configuration": {"/etc/kiln": "OUTSIDE"},
		"accounts":      {"/etc/passwd": "OUTSIDE/passwd"},
		"record":        {"/etc/kiln/installed.json": "OUTSIDE/installed.json"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newImage(t)
			outside := t.TempDir()
			for _, file := range []string{"passwd", "installed.json"} {
				if err := os.WriteFile(filepath.Join(outside, file), []byte("{}"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for path, target := range links {
				if err := os.MkdirAll(filepath.Dir(m.path(path)), 0o755); err != nil {
					t.Fatal(err)
				}
				_ = os.Remove(m.path(path))
				if err := os.Symlink(strings.ReplaceAll(target, "OUTSIDE", outside), m.path(path)); err != nil {
					t.Fatal(err)
				}
			}
			if err := Install(t.Context(), m.options("1"), quietly); err == nil {
				t.Error("it was installed")
			}
			entries, err := os.ReadDir(outside)
			if err != nil || len(entries) != 2 {
				t.Errorf("%v %v", entries, err)
			}
			if b, err := os.ReadFile(filepath.Join(outside, "passwd")); err != nil || string(b) != "{}" {
				t.Errorf("%q %v", b, err)
			}
		})
	}
}

func TestWhatWasInstalledIsRemoved(t *testing.T) {
	m := newImage(t)
	m.write("/usr/local/bin/other", "not ours")
	before := m.tree()
	m.install(m.options("1"))
	m.write("/var/lib/kiln/ledger/ledger.db", "history")
	m.uninstall(false)

	got := m.tree()
	for _, gone := range []string{"/usr/local/bin/kiln", "/usr/local/share", "/etc/systemd", ConfigFile} {
		if _, there := got[gone]; there {
			t.Errorf("%s is left", gone)
		}
	}
	if m.read("/var/lib/kiln/ledger/ledger.db") != "history" || !strings.Contains(m.read("/etc/passwd"), GatewayUser) {
		t.Error("the data directory or the users whose files are in it are gone")
	}
	record, err := Read(m.dir)
	if err != nil || record == nil || len(record.Items) != 7 {
		t.Errorf("what is kept is not known any more: %+v %v", record, err)
	}

	m.uninstall(true)
	after := m.tree()
	for _, dir := range []string{"", "/etc", "/etc/group", "/etc/passwd"} { // the fakes write these anew
		delete(before, dir)
		delete(after, dir)
	}
	delete(after, "/var") // the parents of a folder that was there in between
	delete(after, "/var/lib")
	if diff := cmp.Diff(before, after); diff != "" {
		t.Error(diff)
	}
	for _, file := range []string{"/etc/passwd", "/etc/group"} {
		if strings.Contains(m.read(file), "kiln") {
			t.Errorf("%s: %s", file, m.read(file))
		}
	}
	if err := Uninstall(t.Context(), RemoveOptions{Root: m.dir}, quietly); !errors.Is(err, &kiln.Error{Code: kiln.CodeNotFound}) {
		t.Errorf("once more: %v", err)
	}
}

func TestWhatWasChangedIsKept(t *testing.T) {
	m := newImage(t)
	m.install(m.options("1"))
	const unit = "/etc/systemd/system/kilnd.service"
	m.write(unit, "mine")
	m.write(ConfigFile, "mine")
	m.uninstall(false)
	if m.read(unit) != "mine" || m.read(ConfigFile) != "mine" {
		t.Error("what was changed is gone")
	}
	m.uninstall(true)
	if got := m.tree(); got[unit] != "" || got[ConfigDir] != "" {
		t.Errorf("%q %q", got[unit], got[ConfigDir])
	}
}

// TestCutShortItIsDoneAgainOrUndone stops at every step, and both ways lead to
// the same as without the stop.
func TestCutShortItIsDoneAgainOrUndone(t *testing.T) {
	whole := newImage(t)
	whole.install(whole.options("1"))
	whole.install(whole.options("2"))
	steps := len(Items(whole.options("2")))
	for at := range steps {
		m := newImage(t)
		m.install(m.options("1"))
		left := at
		stop := errors.New("cut short")
		cut := func(Step) error {
			if left--; left < 0 {
				return stop
			}
			return nil
		}
		if err := Install(t.Context(), m.options("2"), cut); !errors.Is(err, stop) {
			t.Fatalf("step %d: %v", at, err)
		}
		again := newCopy(t, m)
		again.install(again.options("2"))
		if diff := cmp.Diff(whole.tree(), again.tree()); diff != "" {
			t.Errorf("cut short at step %d and done again: %s", at, diff)
		}
		m.uninstall(true)
		if got := m.tree(); got["/usr/local/bin/kiln"] != "" || got[ConfigDir] != "" {
			t.Errorf("cut short at step %d and undone: %v", at, got)
		}
	}
}

func newCopy(t *testing.T, m image) image {
	t.Helper()
	out := image{t, t.TempDir()}
	if err := os.CopyFS(out.dir, os.DirFS(m.dir)); err != nil {
		t.Fatal(err)
	}
	for path, what := range m.tree() { // CopyFS has neither modes nor owners
		info, err := os.Lstat(m.path(path))
		if err != nil {
			t.Fatal(err)
		}
		who := owner(info)
		if err := os.Lchown(out.path(path), who.uid, who.gid); err != nil {
			t.Fatal(err)
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			if err := os.Chmod(out.path(path), info.Mode()); err != nil {
				t.Fatal(what, err)
			}
		}
	}
	return out
}

func TestRefusals(t *testing.T) {
	m := newImage(t)
	for name, c := range map[string]struct {
		change func(*Options)
		code   kiln.Code
	}{
		"a prefix that a unit cannot name":         {func(o *Options) { o.Prefix = "/opt/my kiln" }, kiln.CodeInvalid},
		"a prefix that a unit would expand":        {func(o *Options) { o.Prefix = "/opt/%h" }, kiln.CodeInvalid},
		"a data directory that is not clean":       {func(o *Options) { o.Data = "/var/lib/../kiln" }, kiln.CodeInvalid},
		"a data directory that ends a unit's line": {func(o *Options) { o.Data = "/x\nExecStart=/y" }, kiln.CodeInvalid},
		"a root that is not there":                 {func(o *Options) { o.Root = filepath.Join(m.dir, "no") }, kiln.CodeNotFound},
	} {
		o := m.options("1")
		c.change(&o)
		if _, err := Plan(o); !errors.Is(err, &kiln.Error{Code: c.code}) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.install(m.options("1"))
	o := m.options("1")
	o.Prefix = "/opt/kiln"
	if _, err := Plan(o); !errors.Is(err, &kiln.Error{Code: kiln.CodeConflict}) {
		t.Errorf("another prefix: %v", err)
	}
	packaged := newImage(t)
	packaged.write("/usr/lib/systemd/system/kilnd.service", "")
	if _, err := Plan(packaged.options("1")); !errors.Is(err, &kiln.Error{Code: kiln.CodeConflict}) {
		t.Errorf("beside a package: %v", err)
	}
}

func TestUnitsAreFilled(t *testing.T) {
	o := Options{Prefix: "/opt/kiln", Data: "/srv/kiln"}
	for _, name := range []string{DaemonUnit, KeeperUnit, SliceUnit, "kilnd.hcl"} {
		if text := string(unit(name, o)); strings.Contains(text, "@BIN@") || strings.Contains(text, "@DATA@") {
			t.Errorf("%s: %s", name, text)
		}
	}
	if text := string(unit(DaemonUnit, o)); !strings.Contains(text, "\nExecStart=/opt/kiln/bin/kilnd\n") || !strings.Contains(text, "KILN_DATA=/srv/kiln ") {
		t.Error(text)
	}
	if text := string(defaultConfig(o)); !strings.Contains(text, "\ndata = \"/srv/kiln\"\n") {
		t.Error(text)
	}
	o.Data = defaultData
	for line := range strings.Lines(string(defaultConfig(o))) {
		if line != "\n" && !strings.HasPrefix(line, "#") {
			t.Errorf("the configuration says %q", line)
		}
	}
}

func TestWhatRunsIsNotRemoved(t *testing.T) {
	record := Record{Items: []Entry{{Kind: KindFile, Name: "/usr/local/bin/kiln"}}}
	other := processes{{pid: 7, uid: 999, program: "/usr/local/bin/kiln", command: "kiln keep --data /other"}, {pid: 8, uid: 1, program: "/bin/sh"}}
	var conflict *kiln.Error
	if err := other.refuse(record); !errors.As(err, &conflict) || conflict.Code != kiln.CodeConflict || !slices.Equal(conflict.Evidence, []string{"7 kiln keep --data /other"}) {
		t.Errorf("%v %+v", err, conflict)
	}
	if err := other[1:].refuse(record); err != nil {
		t.Error(err)
	}
	ours := processes{
		{program: "/usr/local/bin/kiln", command: "kiln keep --service"},
		{program: "/usr/local/bin/kiln", command: "kiln gateway --data /var/lib/kiln"},
	}
	if got := append(ours, other...).others("/var/lib/kiln"); len(got) != 1 || got[0].pid != 7 {
		t.Errorf("%+v", got)
	}
	if other.as(999) == "" || other.as(998) != "" {
		t.Errorf("%q %q", other.as(999), other.as(998))
	}
	m := newImage(t)
	m.install(m.options("1"))
	h, err := openHost(m.dir, m.run)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	id, _, err := h.account(KindUser, GatewayUser)
	if err != nil {
		t.Fatal(err)
	}
	installed, err := h.record()
	if err != nil {
		t.Fatal(err)
	}
	steps, err := h.removal(*installed, true, processes{{pid: 9, uid: id, command: "x"}})
	got := actions(t, steps, err)
	if got[GatewayUser] != Keep || got[ReaderUser] != Remove || got[ConfigDir] != Keep {
		t.Errorf("%v", got)
	}
}

func TestThisMachinesProcessesAreSeen(t *testing.T) {
	all, err := running()
	if err != nil {
		t.Fatal(err)
	}
	parent := slices.IndexFunc(all, func(p process) bool { return p.pid == os.Getppid() })
	if parent < 0 || all[parent].uid != os.Geteuid() || all[parent].command == "" {
		t.Errorf("%+v", all)
	}
}
