package spec

// The bounds of a definition; hclfile bounds each file of it.
const (
	maxFiles      = 100
	maxBlocks     = 2_000 // top-level, of all files
	maxInstances  = 1_000 // of one for_each
	maxAllObjects = 2_000 // images, services, and routes, each
)
