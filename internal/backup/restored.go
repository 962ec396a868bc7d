package backup

import (
	"time"

	"github.com/kilnproject/kiln"
)

// Restored is what a restore made.
type Restored struct {
	Data     string      `json:"data"` // the directory
	Host     string      `json:"host"` // name of the machine of the backup
	At       time.Time   `json:"at"`   // when it was made
	Digest   kiln.Digest `json:"digest"`
	Events   int64       `json:"events"`
	Releases int         `json:"releases"`
	// KeysLeft is true when the backup has keys that were not restored.
	KeysLeft bool `json:"keys_left,omitempty"`
	// Missing are blobs that the backup only refers to, and that are not there.
	Missing      int   `json:"missing,omitempty"`
	MissingBytes int64 `json:"missing_bytes,omitempty"`
}
