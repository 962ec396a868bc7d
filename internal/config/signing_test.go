package config

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
)

func TestSigning(t *testing.T) {
	tests := map[string]struct {
		text string
		want Signing
		err  string // in what is said
	}{
		"key":              {`key = "/k"`, Signing{Key: "/k"}, ""},
		"encrypted key":    {"key = \"/k\"\npassword_file = \"/p\"", Signing{Key: "/k", PasswordFile: "/p"}, ""},
		"command":          {"command = [\"/bin/sign\", \"-x\"]\npublic_key = \"/k.pub\"\ndigest = true", Signing{Command: []string{"/bin/sign", "-x"}, PublicKey: "/k.pub", Digest: true}, ""},
		"nothing":          {``, Signing{}, "No key"},
		"both":             {"key = \"/k\"\ncommand = [\"/bin/sign\"]", Signing{}, "signed by one key"},
		"no public key":    {`command = ["/bin/sign"]`, Signing{}, "No public key"},
		"no program":       {"command = []\npublic_key = \"/k.pub\"", Signing{}, "No program"},
		"relative program": {"command = [\"sign\"]\npublic_key = \"/k.pub\"", Signing{}, "Not a program"},
		"relative key":     {`key = "k"`, Signing{}, "Not a file"},
		"whose password":   {"command = [\"/bin/sign\"]\npublic_key = \"/k.pub\"\npassword_file = \"/p\"", Signing{}, "Not with command"},
		"trust alone":      {"trust \"ci\" { key = \"/c\" }\ntrust \"b\" { key = \"/b\" }", Signing{Trust: []Trust{{"b", "/b"}, {"ci", "/c"}}}, ""},
		"trust and key":    {"key = \"/k\"\ntrust \"ci\" { key = \"/c\" }", Signing{Key: "/k", Trust: []Trust{{"ci", "/c"}}}, ""},
		"trust twice":      {"trust \"ci\" { key = \"/c\" }\ntrust \"ci\" { key = \"/d\" }", Signing{}, "Duplicate trust"},
		"trust no key":     {"trust \"ci\" { }", Signing{}, "Missing argument"},
		"relative trust":   {"trust \"ci\" { key = \"c\" }", Signing{}, "Not a file"},
		"trust a password": {"password_file = \"/p\"\ntrust \"ci\" { key = \"/c\" }", Signing{}, "Not with trust alone"},
		"digest of a key":  {"key = \"/k\"\ndigest = true", Signing{}, "It is for a command"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c, _, err := Parse("kilnd.hcl", []byte("signing {\n"+test.text+"\n}\n"), Options{})
			switch {
			case test.err == "" && (err != nil || !c.Signing.Same(test.want) || !slices.Equal(c.Signing.Trust, test.want.Trust)):
				t.Errorf("%+v, %v", c.Signing, err)
			case test.err != "" && (err == nil || !strings.Contains(toldOf(err), test.err)):
				t.Errorf("%v, want %q", err, test.err)
			}
		})
	}
}

// TestSigningFiles: what could be read or exchanged by others is refused.
func TestSigningFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("x"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := map[string]struct{ text, err string }{
		"key":                  {`key = "` + write("key", 0o600) + `"`, ""},
		"key that others read": {`key = "` + write("open", 0o644) + `"`, "others than its owner may read or change it"},
		"key that is away":     {`key = "` + dir + `/away"`, "cannot be read"},
		"command":              {`command = ["` + write("sign", 0o755) + `"]` + "\npublic_key = \"" + write("pub", 0o644) + `"`, ""},
		"trust":                {`trust "ci" { key = "` + write("ci.pub", 0o644) + `" }`, ""},
		"others change trust":  {`trust "ci" { key = "` + write("any.pub", 0o666) + `" }`, "others than its owner may change it"},
		"trust that is away":   {`trust "ci" { key = "` + dir + `/gone" }`, "cannot be read"},
		"not executable":       {`command = ["` + write("text", 0o644) + `"]` + "\npublic_key = \"" + write("pub", 0o644) + `"`, "cannot be executed"},
		"others change it":     {`command = ["` + write("shared", 0o777) + `"]` + "\npublic_key = \"" + write("pub", 0o644) + `"`, "others than its owner may change it"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := write("kilnd.hcl", 0o600)
			if err := os.WriteFile(path, []byte("signing {\n"+test.text+"\n}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := Load(path, Options{})
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(toldOf(err), test.err)) {
				t.Errorf("%v, want %q", err, test.err)
			}
		})
	}
}

func TestDebianKeyring(t *testing.T) {
	for text, want := range map[string]string{
		`keyring = "/k.gpg"`: "", `keyring = "k.gpg"`: "Not a file", ``: "Missing argument",
	} {
		c, _, err := Parse("kilnd.hcl", []byte("debian {\n"+text+"\n}\n"), Options{})
		if want == "" && (err != nil || c.Debian.Keyring != "/k.gpg") || want != "" && (err == nil || !strings.Contains(toldOf(err), want)) {
			t.Errorf("%s: %+v, %v", text, c.Debian, err)
		}
	}
	dir := t.TempDir()
	for mode, want := range map[os.FileMode]string{0o644: "", 0o666: "others than its owner may change it"} {
		keyring, path := filepath.Join(dir, "keyring"), filepath.Join(dir, "kilnd.hcl")
		err := errors.Join(
			os.WriteFile(keyring, []byte("x"), mode), os.Chmod(keyring, mode),
			os.WriteFile(path, []byte("debian {\n  keyring = \""+keyring+"\"\n}\n"), 0o600),
		)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = Load(path, Options{})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(toldOf(err), want)) {
			t.Errorf("mode %#o: %v, want %q", mode, err, want)
		}
	}
}

// toldOf is all that an error says, diagnostics included.
func toldOf(err error) string {
	var known *kiln.Error
	text := err.Error()
	if errors.As(err, &known) {
		text += kiln.Diagnostics(known.Diagnostics).Error()
	}
	return text
}
