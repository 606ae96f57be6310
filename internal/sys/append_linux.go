package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// OpenAppend opens the file at path for reading, and for writing at its end. It makes one with
// these permissions, less the process's umask, where there is none. It may block. Package os would
// ask the file system whether one can wait for the file, and hold up other goroutines meanwhile.
func OpenAppend(path string, perm os.FileMode) (*FD, error) {
	for n := interrupts(0); ; {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_NOCTTY|unix.O_CLOEXEC, uint32(perm.Perm()))
		if err == nil {
			return NewFD(fd), nil
		}
		if !n.again(&err) {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}
