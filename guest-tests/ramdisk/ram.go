package main

import (
	"context"
	"fmt"
	"io"
	"sync"

	"vdev/devsw"
)

// ram is the storage: a disk in memory whose writes can be made to stall.
type ram struct {
	mem    []byte
	holder uint64    // what is written goes with this memory
	told   io.Writer // what the storage does

	mu   sync.RWMutex
	gate chan struct{} // closed when writes go on; nil: they do not stall
	n    int           // how often they have been made to stall
}

func newRAM(size int64, told io.Writer) *ram {
	return &ram{mem: make([]byte, size), holder: devsw.NewHolder(), told: told}
}

// toggle makes writes stall, or go on.
func (r *ram) toggle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gate == nil {
		r.gate = make(chan struct{})
		r.n++
		fmt.Fprintf(r.told, "writes stall for time %d\n", r.n)
		return
	}
	close(r.gate)
	r.gate = nil
	fmt.Fprintf(r.told, "writes go on for time %d\n", r.n)
}

func (r *ram) Info() (devsw.DiskInfo, error) {
	return devsw.DiskInfo{Size: int64(len(r.mem)), Holds: devsw.HoldsAlways, Holder: r.holder}, nil
}

func (r *ram) Open(context.Context, devsw.Flag) error { return nil }

func (r *ram) Close() {}

func (r *ram) ReadAt(_ context.Context, p []byte, off int64) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	copy(p, r.mem[off:])
	return nil
}

func (r *ram) WriteAt(ctx context.Context, p []byte, off int64) error {
	r.mu.RLock()
	gate := r.gate
	r.mu.RUnlock()
	if gate != nil {
		fmt.Fprintf(r.told, "a write at %d stalls\n", off)
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.mem[off:], p)
	return nil
}

func (r *ram) Flush(context.Context) error { return nil }
