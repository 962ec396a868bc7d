package sign

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
)

// Command is a program of the operator's that signs, such as a client of a key
// management service. It gets what is to be signed on its standard input and
// answers the signature, ASN.1 DER in base64, on its standard output.
type Command struct {
	Args []string // the program first; no shell reads them
	// Digest has it get the 32 bytes of the SHA-256 instead of the content.
	Digest bool
	// PublicKey is the file of the public key, in PEM.
	PublicKey string
	// Timeout is how long one signature may take; 30 seconds when zero.
	Timeout time.Duration
}

const (
	defaultTimeout = 30 * time.Second
	maxAnswer      = 4 << 10 // bytes of a signature in base64, with spaces
	maxComplaint   = 2 << 10 // bytes of standard error that are shown
)

// command is a Command with its public key.
type command struct {
	Command
	key *ecdsa.PublicKey
}

func (c Command) open() (signs, error) {
	key, err := readPublic(c.PublicKey)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "name the file of the public key of the signing command, in PEM, of ECDSA over P-256", "key %s: %w", c.PublicKey, err)
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	return command{c, key}, nil
}

func (c command) public() *ecdsa.PublicKey { return c.key }
func (c command) origin() Origin           { return OriginCommand }

// sign runs the command, and verifies what it answered.
func (c command) sign(content []byte) ([]byte, error) {
	answer, err := c.run(content)
	if err != nil {
		return nil, err
	}
	signature, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(answer)), ""))
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "it must print the signature, ASN.1 DER in base64, and nothing else", "the signing command %s answered what is not base64", c.Args[0])
	}
	if !verifies(c.key, content, signature) {
		return nil, kiln.Errorf(kiln.CodeFailed, "compare the key that it signs with and "+c.PublicKey+", and whether it wants the content or its digest",
			"the signing command %s answered a signature that its public key does not verify", c.Args[0])
	}
	return signature, nil
}

// run returns what the command printed. It and what it started end with the
// time that it has.
func (c command) run(content []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	if sum := sha256.Sum256(content); c.Digest {
		content = sum[:]
	}
	answer, complaint := &confine.Beginning{Most: maxAnswer, Over: cancel}, &confine.Beginning{Most: maxComplaint}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(content), answer, complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		_ = cmd.Cancel() // what it left in its group holds the output open
	}
	switch {
	case answer.Cut():
		err = fmt.Errorf("it printed more than %d bytes", maxAnswer)
	case ctx.Err() != nil:
		err = fmt.Errorf("it took longer than %s", c.Timeout)
	}
	if err == nil {
		return answer.Bytes(), nil
	}
	failed := kiln.Errorf(kiln.CodeFailed, "run it by hand with something to sign on its standard input", "the signing command %s: %w", c.Args[0], err)
	if text := strings.TrimSpace(complaint.String()); text != "" {
		failed.Evidence = strings.Split(text, "\n")
	}
	return nil, failed
}
