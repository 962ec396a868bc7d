package control

import (
	"sync"

	"github.com/kilnproject/kiln"
)

// feed hands progress to a caller until it is closed, one line at a time.
type feed struct {
	mu   sync.Mutex
	emit func(kiln.Progress)
}

func newFeed(emit func(kiln.Progress)) *feed { return &feed{emit: emit} }

func (f *feed) send(p kiln.Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.emit != nil {
		f.emit(p)
	}
}

// close waits for the line in progress; none comes after it.
func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.emit = nil
}
