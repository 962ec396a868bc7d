package lint

// Kinds are what rules of secretRules and fileRules find.
func Kinds() (contents, files []string) {
	for _, r := range secretRules() {
		contents = append(contents, r.what)
	}
	for _, r := range fileRules() {
		files = append(files, r.what)
	}
	return contents, files
}

// Bound lowers the bounds of an image's contents, in bytes, and files.
func (l *Lint) Bound(contents int64, files int) { l.maxContents, l.maxFiles = contents, files }
