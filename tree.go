package kiln

import "io/fs"

// Tree is a folder by content: what a client sends instead of its files.
// Entries are sorted by path; parents come before what they hold.
type Tree struct {
	Entries []TreeEntry `json:"entries"`
}

// TreeEntry is one file, folder or symbolic link of a tree.
type TreeEntry struct {
	Path   string      `json:"path"` // slash path below the root: never absolute, no "..", no NUL
	Mode   fs.FileMode `json:"mode"` // type and permission bits
	Size   int64       `json:"size,omitempty"`
	Digest Digest      `json:"digest,omitempty"` // of a regular file's content
	Link   string      `json:"link,omitempty"`   // target of a symbolic link, as it stands
}

// Source says where a tree came from. It is shown with a release and never
// part of a digest.
type Source struct {
	Commit string `json:"commit,omitempty"` // full hash, empty outside Git
	Branch string `json:"branch,omitempty"`
	// Dirty is true when the tree has changes that the commit has not.
	Dirty bool `json:"dirty,omitempty"`
}
