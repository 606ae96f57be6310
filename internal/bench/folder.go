package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vdev/internal/sys"
)

// folder is where a run has its images and sockets. A file in it is locked as long as the run
// lasts, however it ends.
type folder struct {
	path string
	held *os.File
}

const (
	folderPrefix = "vdev-bench-" // of their names
	heldName     = "running"     // of the file, once it is locked

	mostName       = 24  // bytes of the name of a socket in it
	mostSocketPath = 107 // bytes (sockaddr_un, unix(7))
)

// newFolder makes a folder in parent, and removes those there of runs that were killed.
func newFolder(parent string) (_ *folder, err error) {
	others, err := os.ReadDir(parent)
	if err != nil {
		return nil, err
	}
	for _, other := range others {
		if strings.HasPrefix(other.Name(), folderPrefix) {
			removeKilled(filepath.Join(parent, other.Name()))
		}
	}
	d := &folder{}
	if d.path, err = os.MkdirTemp(parent, folderPrefix); err != nil {
		return nil, err
	}
	if longest := filepath.Join(d.path, strings.Repeat("x", mostName)); len(longest) > mostSocketPath {
		return nil, errors.Join(fmt.Errorf("%s: the path is too long: a socket's in it could be %d bytes long, and may be %d", parent, len(longest), mostSocketPath), d.remove())
	}
	name := filepath.Join(d.path, heldName)
	if d.held, err = os.Create(name + ".new"); err == nil {
		err = errors.Join(sys.LockShared(int(d.held.Fd()), 0, 0), os.Rename(d.held.Name(), name))
	}
	if err != nil {
		return nil, errors.Join(err, d.remove())
	}
	return d, nil
}

// removeKilled removes a run's folder if nobody holds it any more, and it can be removed: somebody
// else's cannot.
func removeKilled(path string) {
	name := filepath.Join(path, heldName)
	if info, err := os.Lstat(name); err != nil || !info.Mode().IsRegular() {
		return
	}
	f, err := os.Open(name)
	if err != nil {
		return
	}
	defer f.Close()
	if held, _, err := sys.LockHeld(int(f.Fd()), 0, 0); err == nil && !held {
		_ = os.RemoveAll(path)
	}
}

// remove removes the folder, and all that is in it.
func (d *folder) remove() error {
	err := os.RemoveAll(d.path)
	if d.held != nil {
		err = errors.Join(err, d.held.Close())
	}
	return err
}
