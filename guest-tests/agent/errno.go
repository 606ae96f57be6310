package main

import (
	"errors"
	"syscall"
)

// names are the errors that scripts look for.
var names = map[syscall.Errno]string{
	syscall.EIO:        "EIO",
	syscall.ENXIO:      "ENXIO",
	syscall.ENODEV:     "ENODEV",
	syscall.EINVAL:     "EINVAL",
	syscall.EROFS:      "EROFS",
	syscall.EPERM:      "EPERM",
	syscall.EACCES:     "EACCES",
	syscall.ENOSPC:     "ENOSPC",
	syscall.EBUSY:      "EBUSY",
	syscall.ENOENT:     "ENOENT",
	syscall.ETIMEDOUT:  "ETIMEDOUT",
	syscall.EOPNOTSUPP: "EOPNOTSUPP",
	syscall.ENOTTY:     "ENOTTY",
}

func errnoName(err error) string {
	var e syscall.Errno
	if !errors.As(err, &e) {
		return ""
	}
	return names[e]
}
