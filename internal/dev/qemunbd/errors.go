package qemunbd

import (
	"errors"

	"vdev/devsw"
)

// ErrInUse is what a StartError is where another process has the image.
var ErrInUse = errors.New("is in use by another process")

// StartError is why an image cannot be served. It is EINVAL (errors.Is) where trying again would
// not help, and ErrInUse.
type StartError struct {
	File string
	Why  string // in qemu-nbd's words, where it has said something

	inUse, final bool
}

func (e *StartError) Error() string {
	if e.inUse {
		return e.File + ": " + ErrInUse.Error() + " (" + e.Why + ")"
	}
	return e.File + ": " + e.Why
}

// Is implements errors.Is.
func (e *StartError) Is(target error) bool {
	return e.inUse && target == ErrInUse || e.final && !e.inUse && target == devsw.EINVAL
}
