// Package sys is the project's only door to the host's system calls, io_uring apart (see internal/uring).
// Each file holds one topic. Functions return *os.SyscallError, so that errors.Is works with the constants of
// syscall.Errno, and say in their comments who owns a descriptor afterwards.
package sys
