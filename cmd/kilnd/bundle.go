package main

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/advisory"
	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/durable"
	"github.com/kilnproject/kiln/internal/sign"
)

// runDatabase is "kilnd database bundle", which kiln db bundle runs: it needs no
// control plane and no data directory, and prints JSON.
func runDatabase(ctx context.Context, args []string, data, speech io.Writer) int {
	made, err := bundleAs(ctx, args)
	if err == nil {
		err = json.NewEncoder(data).Encode(made)
	}
	if err != nil {
		return cli.Explain(speech, err)
	}
	return cli.ExitOK
}

func bundleAs(ctx context.Context, args []string) (made cli.Bundled, err error) {
	flags := pflag.NewFlagSet("kilnd database", pflag.ContinueOnError)
	flags.Usage = func() {}
	_ = flags.String("data", "", "") // kiln says it to every command of kilnd
	keyFile := flags.String("key", "", "")
	from := flags.String("from", "", "")
	if err := flags.Parse(args); err != nil || flags.NArg() < 3 || flags.Arg(0) != "bundle" {
		return made, invalid("kiln db bundle --help", "kilnd database is for kiln db")
	}
	key, err := privateKey(*keyFile)
	if err != nil {
		return made, err
	}
	file := flags.Arg(1)
	dir, err := os.MkdirTemp(filepath.Dir(file), durable.Unfinished+"bundle-")
	if err != nil {
		return made, fmt.Errorf("write %s: %w", file, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	made.File, made.Dated = file, time.Now().UTC()
	var sources []advisory.Source
	server := advisory.Server{URL: strings.TrimSuffix(*from, "/")}
	for i, name := range flags.Args()[2:] {
		s, closes, err := source(ctx, server, name, filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return made, err
		}
		defer closes()
		sources = append(sources, s)
		made.Ecosystems = append(made.Ecosystems, s.Ecosystem)
		if s.Dated.Before(made.Dated) { // a bundle is as old as the oldest of it
			made.Dated = s.Dated
		}
	}
	made.Dated = made.Dated.Truncate(time.Second)
	return made, writeBundle(ctx, dir, file, sources, made.Dated, key)
}

// source is the zip of ECOSYSTEM, which a server has, or of ECOSYSTEM=FILE.
func source(ctx context.Context, server advisory.Server, name, temporary string) (s advisory.Source, closes func(), err error) {
	ecosystem, path, local := strings.Cut(name, "=")
	if !local {
		f, err := os.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return s, nil, err
		}
		got, err := server.Fetch(ctx, ecosystem, "", f)
		if err != nil {
			return s, nil, errors.Join(err, f.Close())
		}
		got.Dated = time.Now().UTC()
		return *got, func() { _ = f.Close() }, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return s, nil, kiln.Errorf(kiln.CodeNotFound, "ECOSYSTEM=FILE names a zip of OSV records", "%w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = kiln.Errorf(kiln.CodeInvalid, "ECOSYSTEM=FILE names a zip of OSV records", "%s is not a file", path)
	}
	if err != nil {
		return s, nil, errors.Join(err, f.Close())
	}
	return advisory.Source{Ecosystem: ecosystem, Zip: f, Size: info.Size(), Dated: advisory.DatedBy(f, info.Size(), time.Now().UTC())}, func() { _ = f.Close() }, nil
}

// writeBundle makes the file, which has its name once it is whole.
func writeBundle(ctx context.Context, dir, file string, sources []advisory.Source, dated time.Time, key *ecdsa.PrivateKey) error {
	temporary := filepath.Join(dir, "bundle")
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644) //nolint:gosec // it is signed and for others
	if err != nil {
		return err
	}
	err = advisory.WriteBundle(ctx, f, sources, dated, key)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, file); err != nil {
		return err
	}
	return durable.SyncFolder(filepath.Dir(file))
}

// privateKey reads the key that signs a bundle, in PEM, without a password.
func privateKey(file string) (*ecdsa.PrivateKey, error) {
	const hint = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY makes one"
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, hint, "read the key: %w", err)
	}
	key, err := sign.ParsePrivate(text, nil)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, hint, "read the key %s: %w", file, err)
	}
	return key, nil
}
