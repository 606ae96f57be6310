package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// file is one that a command makes. Until it is written nothing is changed of what is there by its
// name, and it is never there in part, but where the system does not let it be replaced: then it is
// written over. nil is none.
type file struct {
	to *os.File
	// what it becomes; empty where it is written as it is, being no regular file or one of the
	// program's own outputs
	name string
}

// createFile begins a file, or none where the name is empty. write ends it, and so does discard.
func createFile(name string) (*file, error) {
	if name == "" {
		return nil, nil
	}
	real := name
	info, err := os.Stat(name)
	there := err == nil
	if there {
		for _, own := range []*os.File{os.Stdout, os.Stderr} {
			if is, err := own.Stat(); err == nil && os.SameFile(info, is) {
				return &file{to: own}, nil
			}
		}
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return &file{to: f}, nil
		}
		f.Close() // it may be written, and that is all that was asked
		// A link to it stays.
		if real, err = filepath.EvalSymlinks(name); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	} else if _, err := os.Lstat(name); err == nil {
		return nil, fmt.Errorf("%s: is a link to what is not there", name)
	}
	f, err := os.OpenFile(filepath.Join(filepath.Dir(real), fmt.Sprintf(".vdev-%016x", rand.Uint64())), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	made := &file{f, real}
	if there {
		if err := f.Chmod(info.Mode().Perm()); err != nil {
			made.discard()
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return made, nil
}

// write has do write the file, which is there then. What cannot be brought there stays where it was
// written, and the error names that.
func (f *file) write(do func(io.Writer) error) error {
	if f == nil {
		return nil
	}
	if err := errors.Join(do(f.to), f.close()); err != nil || f.name == "" {
		return err
	}
	written := f.to.Name()
	err := os.Rename(written, f.name)
	if err == nil {
		return nil
	}
	// What something is mounted on, or is somebody else's in a sticky folder, cannot be replaced,
	// and yet be written.
	if cerr := writeOver(f.name, written); cerr != nil {
		f.name = "" // discard leaves it
		return fmt.Errorf("%w, %w: what was to be written is in %s", err, cerr, written)
	}
	return nil
}

// writeOver writes what is in the file from into the file name, which is there.
func writeOver(name, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// own tells whether it is one of the program's own outputs.
func (f *file) own() bool { return f != nil && (f.to == os.Stdout || f.to == os.Stderr) }

// close closes what is not the program's own.
func (f *file) close() error {
	if f.own() {
		return nil
	}
	return f.to.Close()
}

// discard forgets a file. One that was written stays, wherever it is.
func (f *file) discard() {
	if f == nil {
		return
	}
	_ = f.close() // written, it is closed, and else it does not matter
	if f.name != "" {
		os.Remove(f.to.Name()) // written, it has another name
	}
}

// sameFile tells whether two names are of one file, which need not be there.
func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	if errA == nil && errB == nil {
		return os.SameFile(infoA, infoB)
	}
	return place(a) == place(b)
}

// place is where a file is to be, by a name that does not depend on the way there, as far as that
// can be told.
func place(name string) string {
	if dir, err := filepath.EvalSymlinks(filepath.Dir(name)); err == nil {
		name = filepath.Join(dir, filepath.Base(name))
	}
	if abs, err := filepath.Abs(name); err == nil {
		return abs
	}
	return name
}
