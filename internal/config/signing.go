package config

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

// Signing is the key that signs images: a file or a command; without either Kiln
// has one of its own.
type Signing struct {
	Key string // file of the private key
	// PasswordFile has the password of an encrypted key; Password reads it.
	PasswordFile string
	Command      []string // the program first, absolute
	PublicKey    string   // file of the command's public key
	Digest       bool     // the command gets the SHA-256 instead of the content
	// Trust are keys of others, by name; they sign nothing here.
	Trust []Trust
}

// Trust is somebody whose signatures say who made an image.
type Trust struct {
	Name string
	Key  string // file of public keys, which PublicKeys reads
}

// PublicKeys reads public keys in PEM, which others must not change.
func PublicKeys(path string) ([]byte, error) { return readSafe(path, trusted(), maxSecret) }

// Same says whether two say the same of the key that signs.
func (s Signing) Same(as Signing) bool {
	return slices.Equal(s.Command, as.Command) && s.Key == as.Key && s.PasswordFile == as.PasswordFile &&
		s.PublicKey == as.PublicKey && s.Digest == as.Digest
}

// String says by what images are signed, and whose signatures are known.
func (s Signing) String() string {
	all := []string{s.by()}
	for _, t := range s.Trust {
		all = append(all, t.Name+" by "+t.Key)
	}
	return strings.Join(all, ", ")
}

func (s Signing) by() string {
	switch {
	case s.Key != "":
		return "key " + s.Key
	case len(s.Command) > 0:
		return "command " + s.Command[0]
	}
	return "(own key)"
}

func signingBlock() hclfile.Block {
	return hclfile.Block{
		Name: "signing", Single: true, Doc: "The key that images are signed with, where it is not Kiln's own: `key`, or `command` with `public_key`. Another one takes a restart of kilnd; the key before stays trusted for what it signed. And keys of others, in blocks `trust`, which can change while kilnd runs.",
		Blocks: []hclfile.Block{{
			Name: "trust", Labels: []string{"name"}, Doc: "Somebody whose signatures say who made an image of a registry. It lets nothing run: a gate may ask for it, by `signed_by`.",
			Arguments: []hclfile.Argument{
				{Name: "key", Type: "string", Required: true, Range: "absolute path of a file that only its owner may change", Doc: "Public keys in PEM, of ECDSA over P-256, as `cosign generate-key-pair` and `kiln key show --pem` write them. Of several, one after the other, each counts."},
			},
		}},
		Arguments: []hclfile.Argument{
			{Name: "key", Type: "string", Range: "absolute path of a file that only its owner may read", Doc: "The private key in PEM, of ECDSA over P-256: PKCS #8, SEC 1, or encrypted as cosign does."},
			{Name: "password_file", Type: "string", Range: "absolute path of a file that only its owner may read", Doc: "The password of an encrypted `key`. One line break at its end does not count."},
			{Name: "command", Type: "list of strings", Range: "a program by its absolute path, and its arguments", Doc: "Signs what it gets on its standard input and prints the signature in base64. No shell reads it."},
			{Name: "public_key", Type: "string", Range: "absolute path", Doc: "The public key of `command` in PEM."},
			{Name: "digest", Type: "bool", Default: "`false`", Doc: "`command` gets the 32 bytes of the SHA-256 instead of the content."},
		},
	}
}

// signing reads the block.
func (r *reader) signing(d *hclfile.Decoder) Signing {
	s := Signing{
		Key: d.Checked("key", "Not a file", badPath), PasswordFile: d.Checked("password_file", "Not a file", badPath),
		PublicKey: d.Checked("public_key", "Not a file", badPath), Digest: d.Bool("digest", false),
	}
	for n, i := range d.List("command") {
		if n == 0 && !filepath.IsAbs(i.Text) {
			r.report.Error(i.At, "Not a program", "%s is not an absolute path: no PATH is searched, so that nothing else is run.", i.Whole.Show(i.Text))
		}
		s.Command = append(s.Command, i.Text)
	}
	for _, b := range d.Blocks("trust", 1) {
		inner := r.decoder(b.Body)
		s.Trust = append(s.Trust, Trust{Name: b.Labels[0], Key: inner.Checked("key", "Not a file", badPath)})
	}
	hclfile.CheckUnique("trust", d.Blocks("trust", 1), r.report)
	slices.SortFunc(s.Trust, func(a, b Trust) int { return cmp.Compare(a.Name, b.Name) })
	both := func(name, than, why string) {
		if d.Has(name) {
			r.report.Error(d.At(name), "Not with "+than, "%s", why)
		}
	}
	switch {
	case d.Has("key"):
		both("command", "key", "Images are signed by one key: name a file, or a command.")
		both("public_key", "key", "It is the command's; the one of a key follows from the key.")
		both("digest", "key", "It is for a command.")
	case d.Has("command"):
		both("password_file", "command", "It is the password of a key.")
		if len(s.Command) == 0 {
			r.report.Error(d.At("command"), "No program", "An empty list runs nothing. Name a program, or remove the argument.")
		}
		if !d.Has("public_key") {
			r.report.Error(d.At("command"), "No public key", "What the command signs is verified with its public key: public_key = \"/path/to/key.pub\".")
		}
	case len(s.Trust) > 0:
		for _, name := range []string{"password_file", "public_key", "digest"} {
			both(name, "trust alone", "It is of the key that signs, and the block names none.")
		}
	default:
		r.report.Error(d.Body.SrcRange, "No key", "The block names no key: key = \"/path/to/key.pem\", or command and public_key. Without the block Kiln has a key of its own.")
	}
	return s
}

// checkSigning looks at the files of the block.
func (r *reader) checkSigning(s Signing) {
	d := r.single("signing")
	for name, path := range map[string]string{"key": s.Key, "password_file": s.PasswordFile} {
		if path == "" {
			continue
		}
		if _, err := Secret(path); err != nil {
			r.file(d.At(name), err)
		}
	}
	for _, b := range d.Blocks("trust", 1) {
		inner := r.decoder(b.Body)
		if _, file, ok := inner.Text("key"); ok {
			if _, err := PublicKeys(file); err != nil {
				r.file(inner.At("key"), err)
			}
		}
	}
	if len(s.Command) == 0 {
		return
	}
	if _, err := readSafe(s.PublicKey, trusted(), maxSecret); err != nil {
		r.file(d.At("public_key"), err)
	}
	if err := safeProgram(s.Command[0]); err != nil {
		r.file(d.At("command"), err)
	}
}

// safeProgram refuses a program that another user could exchange.
func safeProgram(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return unreadable(path, err)
	}
	if err := safeFolders(filepath.Dir(real)); err != nil {
		return err
	}
	info, err := os.Stat(real)
	if err != nil {
		return unreadable(path, err)
	}
	if err := trusted().check(path, info); err != nil {
		return err
	}
	if info.Mode().Perm()&0o111 == 0 {
		return kiln.Errorf(kiln.CodeInvalid, "chmod +x "+path, "%s cannot be executed", path)
	}
	return nil
}
