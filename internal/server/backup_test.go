package server

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
)

func TestABackupComesAsAStream(t *testing.T) {
	broken := kiln.Errorf(kiln.CodeNoRoom, "free some space", "the disk is full")
	for name, c := range map[string]struct {
		store string
		text  string
		err   error
		code  kiln.Code // of a refusal at once
	}{
		"whole":      {store: "", text: strings.Repeat("backup ", 100_000)},
		"refused":    {store: StoreReference, err: broken, code: kiln.CodeNoRoom},
		"broken off": {store: StoreWhole, text: "the first half", err: broken},
		"misspelt":   {store: "hole", code: kiln.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			backup := func(_ context.Context, actor string, request BackupRequest, w io.Writer) error {
				if request.Store != c.store || actor == "" || len(request.Recipients) != 1 {
					t.Errorf("%+v by %q", request, actor)
				}
				if c.text == "" {
					return c.err
				}
				_, err := io.WriteString(w, c.text)
				return errors.Join(err, c.err)
			}
			client := serve(t, func(o *Options) { o.Backup = backup }).client
			d, err := client.Backup(t.Context(), BackupRequest{Store: c.store, Recipients: []string{"age1"}})
			if c.code != "" {
				if !errors.Is(err, &kiln.Error{Code: c.code}) {
					t.Fatalf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = d.Close() }()
			got, err := io.ReadAll(d)
			if err != nil || string(got) != c.text {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if cause := d.Cause(); (cause == nil) != (c.err == nil) || c.err != nil && cause.Error() != c.err.Error() {
				t.Errorf("cause %v", cause)
			}
		})
	}
}
