package seal

import (
	"archive/tar"
	"errors"
	"fmt"
	"strings"
)

// paxAttribute is where tar keeps extended attributes.
const paxAttribute = "SCHILY.xattr."

// maxAttributes bounds the bytes of one file's attributes, as on ext4.
const maxAttributes = 64<<10 - 1

// attributes reads the extended attributes that are kept: user.*. All others
// are left out and recorded. File capabilities (security.capability) and
// set-id bits have no effect in an instance, whose root is mounted nosuid in
// a user namespace without new privileges; trusted.* and security.* labels
// belong to the machine where the layer was made; access lists name users of
// that machine.
func (f *flattener) attributes(h *tar.Header) (map[string]string, error) {
	var kept map[string]string
	total := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxAttribute)
		if !ok {
			continue
		}
		suffix, user := strings.CutPrefix(name, "user.")
		if !user {
			f.dropped.add(fmt.Sprintf("attribute %.100s of %s", name, h.Name))
			continue
		}
		if suffix == "" || len(suffix) > maxName-len("user.") || strings.ContainsRune(suffix, 0) {
			return nil, fmt.Errorf("extended attribute %q has no valid name", name)
		}
		if total += len(name) + len(value) + 8; total > maxAttributes {
			return nil, errors.New("its extended attributes are too large")
		}
		if err := f.left.name(len(name) + len(value)); err != nil {
			return nil, err
		}
		if kept == nil {
			kept = map[string]string{}
		}
		kept[strings.Clone(name)] = strings.Clone(value)
	}
	return kept, nil
}
