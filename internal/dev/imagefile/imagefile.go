// Package imagefile opens the files that disks are made of.
package imagefile

import (
	"errors"
	"fmt"
	"syscall"

	"vdev/devsw"
	"vdev/internal/sys"
)

// File is an open file that is, or goes into, a disk.
type File struct {
	FD    *sys.FD // owned by whoever opened the image
	Path  string
	Block bool  // a block device, and no regular file
	Size  int64 // bytes, when it was opened
	Stat  sys.FileStat

	// MayBlock: a file whose file system may hold up whoever touches it, as sys.MayBlock tells.
	MayBlock bool
}

// Open opens the file at path, which must be a regular file or a block device: EINVAL, naming what
// it is, for anything else. Errors name the path and the cause.
func Open(path string, fl sys.OpenFlags) (*File, error) {
	// Looking first, since opening a FIFO waits for its other end.
	st, err := sys.Stat(path)
	if err != nil {
		return nil, PathError(path, err)
	}
	if err := checkType(path, st.Type); err != nil {
		return nil, err
	}
	// On a regular file O_EXCL without O_CREAT means nothing, and promises nothing.
	fl.Exclusive = fl.Exclusive && st.Type == sys.TypeBlock
	fd, err := sys.OpenFile(path, fl)
	if err != nil {
		return nil, openError(path, fl, err)
	}
	img := &File{FD: fd, Path: path}
	if err := img.inspect(fl); err != nil {
		fd.Close()
		return nil, err
	}
	return img, nil
}

func (img *File) inspect(fl sys.OpenFlags) (err error) {
	if img.Stat, err = img.FD.Stat(); err != nil {
		return PathError(img.Path, err)
	}
	if err := checkType(img.Path, img.Stat.Type); err != nil {
		return err
	}
	img.Block = img.Stat.Type == sys.TypeBlock
	if !img.Block {
		if img.MayBlock, err = sys.MayBlock(img.FD.Int()); err != nil {
			return PathError(img.Path, err)
		}
	}
	if img.Block && fl.Write {
		// Linux lets a read-only block device be opened for writing, and fails the writes.
		ro, err := sys.BlockReadOnly(img.FD.Int())
		if err != nil {
			return PathError(img.Path, err)
		}
		if ro {
			return fmt.Errorf("%s: the block device is read-only, and cannot be used for writing: %w", img.Path, devsw.EROFS)
		}
	}
	img.Size, err = img.Length()
	return err
}

// Length gives the image's size in bytes as it is now.
func (img *File) Length() (int64, error) {
	if img.Block {
		n, err := sys.BlockSize64(img.FD.Int())
		return n, PathError(img.Path, err)
	}
	st, err := img.FD.Stat()
	return st.Size, PathError(img.Path, err)
}

// Load fills p from the image's beginning. Parts of the file that are holes are skipped: p is zero
// there already.
func (img *File) Load(p []byte) error {
	for off := int64(0); off < int64(len(p)); {
		data, err := sys.SeekData(img.FD.Int(), off)
		if errors.Is(err, syscall.ENXIO) {
			return nil // nothing but a hole is left
		}
		if err != nil {
			data = off // no holes known here
		}
		hole, err := sys.SeekHole(img.FD.Int(), data)
		if err != nil {
			hole = int64(len(p))
		}
		for off = data; off < min(hole, int64(len(p))); {
			n, errno := sys.Preadv(img.FD.Int(), [][]byte{p[off:min(hole, int64(len(p)))]}, off)
			if errno != 0 {
				return PathError(img.Path, fmt.Errorf("read at byte %d: %w", off, errno))
			}
			if n == 0 {
				return fmt.Errorf("%s: ended at byte %d, %d were expected: %w", img.Path, off, len(p), devsw.EIO)
			}
			off += int64(n)
		}
	}
	return nil
}

func checkType(path string, t sys.FileType) error {
	if t == sys.TypeRegular || t == sys.TypeBlock {
		return nil
	}
	return fmt.Errorf("%s: is a %s, not a regular file or block device: %w", path, t, devsw.EINVAL)
}

// openError says what an open failed for in terms of what was wanted.
func openError(path string, fl sys.OpenFlags, err error) error {
	switch {
	case fl.Write && (errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EPERM)):
		return fmt.Errorf("%s: cannot be opened for writing (use it read-only?): %w", path, err)
	case fl.Direct && errors.Is(err, syscall.EINVAL):
		return fmt.Errorf("%s: its file system has no direct I/O (O_DIRECT): %w", path, err)
	case fl.Exclusive && errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%s: the block device is in use by the host (mounted, or part of another device?): %w", path, err)
	}
	return PathError(path, err)
}

// PathError puts the path before an error; nil stays nil.
func PathError(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", path, err)
}
