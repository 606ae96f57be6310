package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// Mlock brings the pages of b into memory and keeps them there until they are unmapped. It fails
// with ENOMEM or EPERM where the process may not lock that much (RLIMIT_MEMLOCK).
func Mlock(b []byte) error {
	return os.NewSyscallError("mlock", unix.Mlock(b))
}
