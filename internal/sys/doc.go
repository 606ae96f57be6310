// Package sys makes the project's system calls, but for io_uring's (see internal/uring); no other
// package makes any. Each file holds one topic. Functions return *os.SyscallError, so that
// errors.Is works with the constants of syscall.Errno. Their comments say who owns a descriptor
// afterwards.
package sys
