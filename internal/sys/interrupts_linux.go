package sys

import "golang.org/x/sys/unix"

// mostInterrupts is how often an interrupted call on storage is tried again. A signal interrupts it
// once. A file system whose server (FUSE, a network's) answers EINTR by itself may do so without an
// end. The caller would then use a processor for nothing, and could not be stopped.
const mostInterrupts = 100

// interrupts counts how often a call was interrupted.
type interrupts int

// again tells whether a call that has ended with err is to be made again. Where that was done often
// enough, err becomes EIO: who gets EINTR takes the call for one that was cancelled.
func (n *interrupts) again(err *error) bool {
	if *err != unix.EINTR {
		return false
	}
	if *n == mostInterrupts {
		*err = unix.EIO
		return false
	}
	*n++
	return true
}
