package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"

	"github.com/kilnproject/kiln"
)

// Key is a public key whose signatures count.
type Key struct {
	// ID is the SHA-256 of the public key in DER, in hex.
	ID     string    `json:"id"`
	Public string    `json:"public"` // PEM
	Origin Origin    `json:"origin"`
	Since  time.Time `json:"since"`
	// Until is when another key took its place; zero while it signs.
	Until time.Time `json:"until,omitzero"`
	// Distrusted is when its signatures ceased to count.
	Distrusted time.Time `json:"distrusted,omitzero"`
}

// Origin is where the private half of a key is.
type Origin string

// The origins of keys.
const (
	OriginOwn     Origin = "own"     // made by Kiln, in its folder
	OriginFile    Origin = "file"    // a file of the operator's
	OriginCommand Origin = "command" // behind a command of the operator's
)

// Bounds of what is read, in bytes: a file with a key, and the list of all that
// ever signed.
const (
	maxKeyFile = 64 << 10
	maxKeyList = 1 << 20
)

const curveHint = "make one with: openssl ecparam -name prime256v1 -genkey -noout"

// signs is the private half of a key.
type signs interface {
	public() *ecdsa.PublicKey
	origin() Origin
	// sign signs content, as ASN.1 DER.
	sign(content []byte) ([]byte, error)
}

// inMemory is a private key that this process has.
type inMemory struct {
	key  *ecdsa.PrivateKey
	from Origin
}

func (k inMemory) public() *ecdsa.PublicKey { return &k.key.PublicKey }
func (k inMemory) origin() Origin           { return k.from }

// sign is deterministic (RFC 6979): the same content has the same signature.
func (k inMemory) sign(content []byte) ([]byte, error) {
	sum := sha256.Sum256(content)
	return k.key.Sign(nil, sum[:], crypto.SHA256)
}

func verifies(key *ecdsa.PublicKey, content, signature []byte) bool {
	sum := sha256.Sum256(content)
	return ecdsa.VerifyASN1(key, sum[:], signature)
}

// describe returns the id and the PEM of a public key.
func describe(key *ecdsa.PublicKey) (id, text string, err error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", "", err
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

// ParsePublic reads a public key of ECDSA over P-256 in PEM. What comes after it
// is ignored.
func ParsePublic(text []byte) (*ecdsa.PublicKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("it has no PUBLIC KEY in PEM")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errCurve
	}
	return key, nil
}

var errCurve = errors.New("it is not a key of ECDSA over P-256")

// ParsePrivate reads the first private key of a PEM file: PKCS #8, SEC 1, or as
// cosign encrypts them, with a password. It must be of ECDSA over P-256.
func ParsePrivate(text, password []byte) (*ecdsa.PrivateKey, error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("it has no private key in PEM")
		}
		text = rest
		var parsed any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			parsed, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY":
			parsed, err = decrypt(block.Bytes, password)
		default:
			continue // such as the parameters that openssl writes first
		}
		if err != nil {
			return nil, err
		}
		key, ok := parsed.(*ecdsa.PrivateKey)
		if !ok || key.Curve != elliptic.P256() {
			return nil, errCurve
		}
		return key, nil
	}
}

func decrypt(sealed, password []byte) (any, error) {
	if len(password) == 0 {
		return nil, errors.New("it is encrypted, and there is no password for it")
	}
	der, err := encrypted.Decrypt(sealed, password)
	if err != nil {
		return nil, errors.New("it cannot be decrypted: the password is another one, or the file is damaged")
	}
	return x509.ParsePKCS8PrivateKey(der)
}

// readSecret reads a file that is its owner's alone. No pipe in its place holds
// anything up.
func readSecret(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is not a file")
	case info.Mode().Perm()&0o077 != 0:
		return nil, kiln.Errorf(kiln.CodeRefused, "chmod 600 "+path, "others than its owner may read or write it: its mode is %#o", info.Mode().Perm())
	}
	return bounded(f, most)
}

func readPublic(path string) (*ecdsa.PublicKey, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := bounded(f, maxKeyFile)
	if err != nil {
		return nil, err
	}
	return ParsePublic(text)
}

func bounded(r io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("it has more than %d bytes", most)
	}
	return b, err
}

// operator returns the operator's key, nil where there is none.
func (opt Options) operator() (signs, error) {
	switch {
	case opt.KeyFile != "" && len(opt.Command.Args) > 0:
		return nil, kiln.Errorf(kiln.CodeInvalid, "leave one of them out", "both a key file and a signing command are given")
	case len(opt.Command.Args) > 0:
		return opt.Command.open()
	case opt.KeyFile == "":
		return nil, nil //nolint:nilnil // none is fine
	}
	text, err := readSecret(opt.KeyFile, maxKeyFile)
	if err != nil {
		return nil, keyError(opt.KeyFile, err)
	}
	key, err := ParsePrivate(text, opt.Password)
	if err != nil {
		return nil, keyError(opt.KeyFile, err)
	}
	return inMemory{key, OriginFile}, nil
}

// keyError names the file of a key that cannot be used.
func keyError(path string, err error) error {
	hint := "name a file with a private key of ECDSA over P-256 in PEM, mode 0600"
	var known *kiln.Error
	switch {
	case errors.As(err, &known):
		hint = known.Hint
	case errors.Is(err, errCurve):
		hint = curveHint
	}
	return kiln.Errorf(kiln.CodeInvalid, hint, "key %s: %w", path, err)
}
