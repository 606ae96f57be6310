package uring

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	setupCQSize       = 1 << 3
	setupClamp        = 1 << 4
	setupSubmitAll    = 1 << 7
	setupCoopTaskrun  = 1 << 8
	setupTaskrunFlag  = 1 << 9
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	enterGetevents = 1 << 0
	enterExtArg    = 1 << 3

	featSingleMmap   = 1 << 0
	featNodrop       = 1 << 1
	featSubmitStable = 1 << 2
	featExtArg       = 1 << 8
	needFeatures     = featSingleMmap | featNodrop | featSubmitStable | featExtArg

	sqFlagCQOverflow = 1 << 1
	sqFlagTaskrun    = 1 << 2

	offSQRing = 0
	offSQEs   = 0x10000000
)

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sqOff                                                                  struct {
		head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
		userAddr                                                    uint64
	}
	cqOff struct {
		head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
		userAddr                                                    uint64
	}
}

// Ring is one io_uring. Only the goroutine (and thread) that made it may use it.
type Ring struct {
	fd       int
	ringMem  []byte
	sqeMem   []byte
	sqes     []SQE
	cqes     []CQE
	sqHead   *uint32
	sqTail   *uint32
	sqFlags  *uint32
	cqHead   *uint32
	cqTail   *uint32
	sqMask   uint32
	cqMask   uint32
	tail     uint32   // of entries filled in, not yet shown to the kernel
	shown    uint32   // of entries shown to the kernel
	deferred bool     // completions are run by Enter only
	ts       timespec // here and not on the stack: arg holds its address as a number
	arg      geteventsArg
}

// New makes a ring with room for at least entries submissions and cqEntries completions, and tries
// it. The calling goroutine must be locked to its thread. The error is an *os.SyscallError: ENOSYS
// or EPERM where the host has or allows no io_uring, or a part of it alone, as a seccomp filter
// may, with whatever errno that gives.
func New(entries, cqEntries uint32) (*Ring, error) {
	r, err := setup(entries, cqEntries)
	if err != nil {
		return nil, err
	}
	if err := r.try(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// try has the kernel do nothing, once, in the way of everything else.
func (r *Ring) try() error {
	r.Get().Op = OpNop
	for {
		if err := r.Wait(-1); err != nil {
			return err
		}
		if r.Peek() != nil {
			r.Seen()
			return nil
		}
	}
}

// setup makes a ring.
func setup(entries, cqEntries uint32) (*Ring, error) {
	var p params
	var fd uintptr
	var errno syscall.Errno
	base := uint32(setupClamp | setupCQSize)
	for _, flags := range []uint32{
		setupSubmitAll | setupSingleIssuer | setupDeferTaskrun | setupTaskrunFlag, // Linux 6.1
		setupSubmitAll | setupCoopTaskrun | setupTaskrunFlag,                      // Linux 5.19
		0,
	} {
		p = params{flags: base | flags, cqEntries: cqEntries}
		fd, _, errno = unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
		if errno != unix.EINVAL {
			break
		}
	}
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &Ring{fd: int(fd), deferred: p.flags&setupDeferTaskrun != 0}
	unix.CloseOnExec(r.fd)
	if p.features&needFeatures != needFeatures {
		r.Close()
		return nil, fmt.Errorf("io_uring: kernel features %#x lack %#x: %w", p.features, needFeatures&^p.features,
			os.NewSyscallError("io_uring_setup", unix.ENOSYS))
	}
	size := max(uint64(p.sqOff.array)+uint64(p.sqEntries)*4, uint64(p.cqOff.cqes)+uint64(p.cqEntries)*uint64(unsafe.Sizeof(CQE{})))
	var err error
	if r.ringMem, err = unix.Mmap(r.fd, offSQRing, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		r.Close()
		return nil, os.NewSyscallError("mmap", err)
	}
	if r.sqeMem, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(SQE{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		r.Close()
		return nil, os.NewSyscallError("mmap", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.ringMem[off])) }
	r.sqes = unsafe.Slice((*SQE)(unsafe.Pointer(&r.sqeMem[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*CQE)(unsafe.Pointer(&r.ringMem[p.cqOff.cqes])), p.cqEntries)
	r.sqHead, r.sqTail, r.sqFlags = at(p.sqOff.head), at(p.sqOff.tail), at(p.sqOff.flags)
	r.cqHead, r.cqTail = at(p.cqOff.head), at(p.cqOff.tail)
	r.sqMask, r.cqMask = p.sqEntries-1, p.cqEntries-1
	// The indirection array stays the identity: entries are always used in order.
	array := unsafe.Slice(at(p.sqOff.array), p.sqEntries)
	for i := range array {
		array[i] = uint32(i)
	}
	return r, nil
}

// registerWorkers is IORING_REGISTER_IOWQ_MAX_WORKERS (Linux 5.15).
const registerWorkers = 19

// SetWorkers bounds the kernel's threads for the ring's work that cannot be done at once: n for
// files and block devices, and another n for entries with SQEAsync. (The kernel counts the latter
// as unbounded work, since it has not looked at the file by then.) The defaults are four for each
// CPU, and as many as RLIMIT_NPROC allows. There are never more threads than are blocked or at work
// at one time. The bound is the calling thread's, for all its rings. Errors: *os.SyscallError,
// EINVAL where the kernel cannot.
func (r *Ring) SetWorkers(n uint32) error {
	counts := [2]uint32{n, n} // bounded, unbounded
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerWorkers, uintptr(unsafe.Pointer(&counts)), 2, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("io_uring_register", errno)
	}
	return nil
}

// FD is the ring's descriptor; it stays the ring's.
func (r *Ring) FD() int { return r.fd }

// Get returns the next free submission entry, cleared, or nil while the queue is full: Submit makes
// room.
func (r *Ring) Get() *SQE {
	if r.tail-atomic.LoadUint32(r.sqHead) > r.sqMask {
		return nil
	}
	e := &r.sqes[r.tail&r.sqMask]
	*e = SQE{}
	r.tail++
	return e
}

// Pending is the number of entries got and not yet submitted.
func (r *Ring) Pending() int { return int(r.tail - r.shown) }

// TakeBack takes back the pending entries, which are not submitted, and returns their number: they
// are the last that Get returned.
func (r *Ring) TakeBack() int {
	n := r.Pending()
	r.tail = r.shown
	// The kernel looks at this only when it is entered.
	atomic.StoreUint32(r.sqTail, r.tail)
	return n
}

// NeedsEnter tells that completions wait in the kernel until Enter is called, though none is to be
// waited for.
func (r *Ring) NeedsEnter() bool {
	return atomic.LoadUint32(r.sqFlags)&(sqFlagTaskrun|sqFlagCQOverflow) != 0
}

// timespec is struct __kernel_timespec.
type timespec struct{ sec, nsec int64 }

// geteventsArg is struct io_uring_getevents_arg.
type geteventsArg struct {
	sigmask   uint64
	sigmaskSz uint32
	minWaitUs uint32
	ts        uint64
}

// Submit shows the kernel what was got since the last call, and runs completions that wait in the
// kernel. It does not wait for completions. EINTR, EAGAIN and EBUSY are not errors: what was not
// taken stays pending.
func (r *Ring) Submit() error { return r.enter(0, false) }

// Wait submits and sleeps until there is at least one completion, or timeout has passed (negative:
// no limit), or a signal arrived. It enters the Go scheduler's syscall path: other goroutines run
// meanwhile.
func (r *Ring) Wait(timeout time.Duration) error {
	if timeout < 0 {
		return r.enter(1, false)
	}
	r.ts = timespec{sec: int64(timeout / time.Second), nsec: int64(timeout % time.Second)}
	return r.enter(1, true)
}

func (r *Ring) enter(min uint32, timed bool) error {
	if r.shown != r.tail {
		atomic.StoreUint32(r.sqTail, r.tail)
	}
	flags := uintptr(0)
	if min > 0 || r.deferred || r.NeedsEnter() {
		flags |= enterGetevents
	}
	var arg, size uintptr
	if timed {
		r.arg.ts = uint64(uintptr(unsafe.Pointer(&r.ts)))
		flags |= enterExtArg
		arg, size = uintptr(unsafe.Pointer(&r.arg)), unsafe.Sizeof(r.arg)
	}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.tail-r.shown), uintptr(min), flags, arg, size)
	// The result tells either what was taken or how the wait ended; the queue's head always tells
	// what was taken.
	r.shown = atomic.LoadUint32(r.sqHead)
	switch errno {
	case 0, unix.EINTR, unix.EAGAIN, unix.EBUSY, unix.ETIME:
		return nil
	}
	return os.NewSyscallError("io_uring_enter", errno)
}

// Peek returns the oldest completion that was not yet seen, in the ring's own memory: valid until
// Seen.
func (r *Ring) Peek() *CQE {
	head := *r.cqHead // only this side writes it
	if head == atomic.LoadUint32(r.cqTail) {
		return nil
	}
	return &r.cqes[head&r.cqMask]
}

// Seen returns the completion that Peek gave to the kernel, which may overwrite it.
func (r *Ring) Seen() { atomic.StoreUint32(r.cqHead, *r.cqHead+1) }

// Close closes the ring. The kernel cancels what is in flight, after Close has returned.
func (r *Ring) Close() {
	if r.sqeMem != nil {
		unix.Munmap(r.sqeMem)
	}
	if r.ringMem != nil {
		unix.Munmap(r.ringMem)
	}
	unix.Close(r.fd)
	*r = Ring{fd: -1}
}

// SetBuffer points e at p: the request's address and length. p must not be Go memory that nothing
// else keeps alive until the request's end.
func (e *SQE) SetBuffer(p []byte) {
	e.Addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	e.Len = uint32(len(p))
}

// SetIovecs points e at v. The array is read by Submit and free after it; what it points at must
// stay until the request's end.
func (e *SQE) SetIovecs(v []Iovec) {
	e.Addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(v))))
	e.Len = uint32(len(v))
}

// Fill makes v describe p, and returns v cut to its length; v's capacity must suffice.
func Fill(v []Iovec, p [][]byte) []Iovec {
	v = v[:0]
	for _, s := range p {
		v = append(v, Iovec{Base: unsafe.SliceData(s), Len: uint64(len(s))})
	}
	return v
}
