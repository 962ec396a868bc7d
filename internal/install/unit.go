package install

import (
	"embed"
	"path/filepath"
	"strings"
)

//go:embed unit
var units embed.FS

// defaultData is the data directory that kilnd has when nobody says another.
const defaultData = "/var/lib/kiln"

// unit is a unit's text, or that of the configuration, with its places filled.
func unit(name string, o Options) []byte {
	text, err := units.ReadFile("unit/" + name)
	if err != nil {
		panic(err) // it is in the program
	}
	return []byte(strings.NewReplacer("@BIN@", filepath.Join(o.Prefix, "bin"), "@DATA@", o.Data).Replace(string(text)))
}

// defaultConfig is the configuration, all of it comments but a data directory
// of one's own.
func defaultConfig(o Options) []byte {
	text := unit("kilnd.hcl", o)
	if o.Data != defaultData {
		text = []byte(strings.Replace(string(text), "# data = ", "data = ", 1))
	}
	return text
}
