package devsw

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
)

// Errno is what drivers answer with. Operations return it as an error, nil
// being success; a Buf carries it as it is, 0 being success. The numbers are
// the host's; only the names are NetBSD's.
type Errno = syscall.Errno

// The errors that have a meaning in this package and in specfs. Drivers may
// use any other.
const (
	EPERM     = syscall.EPERM     // not permitted
	ENOENT    = syscall.ENOENT    // no such file
	EINTR     = syscall.EINTR     // a sleep was interrupted
	EIO       = syscall.EIO       // the device failed
	ENXIO     = syscall.ENXIO     // no such device, or no longer
	EBADF     = syscall.EBADF     // the node was revoked while it was being opened
	EAGAIN    = syscall.EAGAIN    // would have to sleep
	ENOMEM    = syscall.ENOMEM    // nothing left to allot
	EACCES    = syscall.EACCES    // not allowed
	EFAULT    = syscall.EFAULT    // the memory of a transfer is gone
	EBUSY     = syscall.EBUSY     // open, claimed or closing
	EEXIST    = syscall.EEXIST    // taken already
	ENODEV    = syscall.ENODEV    // the driver does not have this operation
	EINVAL    = syscall.EINVAL    // bad argument
	ENOTTY    = syscall.ENOTTY    // the driver does not know this ioctl
	EFBIG     = syscall.EFBIG     // too large
	ENOSPC    = syscall.ENOSPC    // the store behind the device is full
	EROFS     = syscall.EROFS     // the device is read-only
	ERANGE    = syscall.ERANGE    // out of range
	ETIMEDOUT = syscall.ETIMEDOUT // took too long
	// what was written is lost, and the opener does not know; see FRESUME
	ESTALE     = syscall.ESTALE
	ECANCELED  = syscall.ECANCELED  // interrupted by d_cancel
	EOPNOTSUPP = syscall.EOPNOTSUPP // not supported by this device
)

// ToErrno gives the errno of an error: 0 for nil, the Errno the error wraps,
// the nearest one for the errors of packages context and io/fs, and EIO for
// anything else.
func ToErrno(err error) Errno {
	if err == nil {
		return 0
	}
	var e Errno
	if errors.As(err, &e) {
		if e == 0 {
			return EIO
		}
		return e
	}
	for _, m := range [...]struct {
		is error
		e  Errno
	}{
		{context.Canceled, ECANCELED},
		{context.DeadlineExceeded, ETIMEDOUT},
		{fs.ErrInvalid, EINVAL},
		{fs.ErrPermission, EACCES},
		{fs.ErrExist, EEXIST},
		{fs.ErrNotExist, ENOENT},
		{fs.ErrClosed, EBADF},
	} {
		if errors.Is(err, m.is) {
			return m.e
		}
	}
	return EIO
}
