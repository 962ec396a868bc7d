package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnproject/kiln"
)

// newer is of a program that knows one more schema.
func newer() options {
	o := standard()
	o.steps = append(o.steps, migration{script: "CREATE TABLE more (x INTEGER) STRICT"})
	return o
}

func TestGoingBackTakesTheCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	if have, known, err := Schemas(t.Context(), path); have != 0 || known != len(migrations()) || err != nil {
		t.Fatal(have, known, err)
	}
	check(t, GoBack(t.Context(), path))
	l := openAt(t, path)
	check(t, l.Append(t.Context(), event("p", 1)))
	if have, _, err := Schemas(t.Context(), path); have != len(migrations()) || err != nil { // while another has it
		t.Fatal(have, err)
	}
	check(t, l.Close())
	check(t, GoBack(t.Context(), path)) // there is nothing to undo

	l, err := open(t.Context(), path, newer())
	check(t, err)
	check(t, l.Append(t.Context(), event("p", 2)))
	check(t, l.Close())
	check(t, GoBack(t.Context(), path))
	l = openAt(t, path)
	if r := sound(t, l); r.Events != 1 {
		t.Errorf("%d events", r.Events)
	}
	check(t, l.Append(t.Context(), event("p", 3)))
	check(t, l.Close())
	kept, err := open(t.Context(), fmt.Sprintf("%s.schema-%d", path, len(migrations())+1), newer())
	check(t, err)
	if r := sound(t, kept); r.Events != 2 {
		t.Errorf("the newer ledger was kept with %d events", r.Events)
	}
	check(t, kept.Close())
}

func TestGoingBackWithoutACopySaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l, err := open(t.Context(), path, newer())
	check(t, err)
	check(t, l.Close())
	_ = os.Remove(fmt.Sprintf("%s.schema-%d", path, len(migrations())))
	if err := GoBack(t.Context(), path); !errors.Is(err, &kiln.Error{Code: kiln.CodeNotFound}) {
		t.Error(err)
	}
}
