package scan

import (
	"context"
	"encoding/json"
	"io/fs"

	"github.com/kilnproject/kiln"
)

// Task names the work of Inspect, which kilnd starts as a process of its own.
const Task = "inspect"

// Request is what Inspect is asked.
type Request struct {
	Image kiln.Digest `json:"image"` // of the platform's manifest
	// Marks is passed on to who marks the image, as it is.
	Marks json.RawMessage `json:"marks,omitempty"`
}

// Answer is what Inspect says of an image.
type Answer struct {
	Inventory kiln.Inventory `json:"inventory"`
	// Marks are what somebody else found in the same pass, "" for nobody.
	Marks json.RawMessage `json:"marks,omitempty"`
}

// Image is a flattened image.
type Image struct {
	Root  fs.FS
	Layer func(path string) kiln.Digest // that a path came with
	// Mark looks at the image besides, and what it answers becomes the answer's
	// Marks; nil is nobody.
	Mark func(ctx context.Context, request json.RawMessage) (any, error)
}

// Inspect does a Request on an image, in the process of a worker.
func Inspect(ctx context.Context, image Image, request json.RawMessage) (Answer, error) {
	var r Request
	if err := json.Unmarshal(request, &r); err != nil {
		return Answer{}, kiln.Errorf(kiln.CodeInternal, "", "read the request: %w", err)
	}
	var a Answer
	var err error
	if a.Inventory, err = Inventory(ctx, image.Root, image.Layer); err != nil {
		return Answer{}, err
	}
	a.Inventory.Image = r.Image
	if image.Mark == nil {
		return a, nil
	}
	marks, err := image.Mark(ctx, r.Marks)
	if err != nil {
		return Answer{}, err
	}
	a.Marks, err = json.Marshal(marks)
	return a, err
}
