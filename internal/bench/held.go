package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"vdev/internal/sys"
)

// newImage makes a file of size bytes full of noise, so that none of it is a hole, and on the disk.
//
// It is written in pages, so that each is by itself in the page cache: larger writes make larger
// folios (ext4 has them since Linux 6.16), and in these a write of a page looks at the state of
// each block of the folio.
func newImage(name string, size int64) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	noise := rand.NewChaCha8([32]byte([]byte("the same noise for each back-end")))
	page := make([]byte, sys.PageSize())
	for left := size; left > 0 && err == nil; left -= int64(len(page)) {
		page = page[:min(left, int64(len(page)))]
		noise.Read(page)
		_, err = f.Write(page)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// heldFile is an image whose pages stay in the page cache: they are mapped and locked.
type heldFile struct {
	f   *os.File
	mem []byte
}

// newHeldFile makes an image, and holds it in memory.
func newHeldFile(name string, size int64) (*heldFile, error) {
	f, err := newImage(name, size)
	if err != nil {
		return nil, err
	}
	h := &heldFile{f: f}
	if h.mem, err = sys.Mmap(int(f.Fd()), 0, int(size), false); err == nil {
		if err = sys.Mlock(h.mem); err != nil {
			err = fmt.Errorf("%s cannot be held in memory, %d bytes (look at 'ulimit -l'): %w", name, size, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// check looks whether all pages are in the page cache.
func (h *heldFile) check() error {
	page := sys.PageSize()
	there, errno := sys.Cached(int(h.f.Fd()), 0, int64(len(h.mem)))
	if errno != 0 {
		return fmt.Errorf("%s: asking for what is cached: %w", h.f.Name(), errno)
	}
	if all := (len(h.mem) + page - 1) / page; there != all {
		return fmt.Errorf("%s: of %d pages the page cache has %d", h.f.Name(), all, there)
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

// newUncachedFile makes an image of which the page cache has nothing.
func newUncachedFile(name string, size int64) error {
	f, err := newImage(name, size)
	if err != nil {
		return err
	}
	sys.DropCached(int(f.Fd()), 0, size)
	return f.Close()
}
