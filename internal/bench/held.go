package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"vdev/internal/sys"
)

// heldFile is a file whose pages stay in the page cache: they are mapped and locked.
type heldFile struct {
	f   *os.File
	mem []byte
}

// newHeldFile makes a file of size bytes full of noise, so that none of it is a hole, and holds it in memory.
func newHeldFile(name string, size int64) (*heldFile, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	h := &heldFile{f: f}
	if err := h.fill(size); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *heldFile) fill(size int64) error {
	noise := rand.NewChaCha8([32]byte([]byte("the same noise for each back-end")))
	chunk := make([]byte, 1<<20)
	for left := size; left > 0; {
		n := min(left, int64(len(chunk)))
		noise.Read(chunk[:n])
		if _, err := h.f.Write(chunk[:n]); err != nil {
			return err
		}
		left -= n
	}
	if err := h.f.Sync(); err != nil {
		return err
	}
	var err error
	if h.mem, err = sys.Mmap(int(h.f.Fd()), 0, int(size), false); err != nil {
		return err
	}
	if err := sys.Mlock(h.mem); err != nil {
		return fmt.Errorf("%s cannot be held in memory, %d bytes (look at 'ulimit -l'): %w", h.f.Name(), size, err)
	}
	return nil
}

// Close lets go of the pages. The file stays.
func (h *heldFile) Close() error {
	var err error
	if h.mem != nil {
		err = sys.Munmap(h.mem)
	}
	return errors.Join(err, h.f.Close())
}
