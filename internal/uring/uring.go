// Package uring is a thin binding of Linux's io_uring (io_uring(7)): one ring, its submission queue
// entries and its completions, and nothing that waits, retries or allocates on its own.
//
// A Ring belongs to one goroutine that is locked to one thread, from New to Close: where the kernel
// can (IORING_SETUP_SINGLE_ISSUER, DEFER_TASKRUN, Linux 6.1), completions are run only when that
// thread enters the kernel, so no other work is interrupted by them.
package uring

import "vdev/internal/sys"

// Op is the opcode of a submission queue entry (enum io_uring_op).
type Op uint8

// The opcodes that vdev uses, with the kernel's names.
const (
	OpNop         Op = 0
	OpReadv       Op = 1
	OpWritev      Op = 2
	OpFsync       Op = 3
	OpPollAdd     Op = 6
	OpAsyncCancel Op = 14
	OpRead        Op = 22
	OpWrite       Op = 23
)

// Flags of a submission queue entry (IOSQE_*).
const (
	SQEAsync uint8 = 1 << 4 // do not try in line
)

// Flags of a completion (IORING_CQE_F_*).
const (
	CQEMore uint32 = 1 << 1 // a multishot request goes on
)

// PollMultishot, in SQE.Len of OpPollAdd, asks for a completion at every wake-up
// (IORING_POLL_ADD_MULTI).
const PollMultishot = 1 << 0

// The events of OpPollAdd that vdev asks for (poll(2)).
const (
	PollIn = 0x1
)

// RWFDsync in SQE.OpFlags makes one write durable before it completes (pwritev2(2)).
const RWFDsync = 0x2

// SQE is struct io_uring_sqe. Get clears it; the fields' meaning depends on Op.
type SQE struct {
	Op       Op
	Flags    uint8
	Ioprio   uint16
	FD       int32
	Off      uint64
	Addr     uint64
	Len      uint32
	OpFlags  uint32
	UserData uint64
	BufIndex uint16
	_        uint16
	FileIdx  int32
	Addr3    uint64
	_        uint64
}

// CQE is struct io_uring_cqe: the result of the request whose UserData it carries.
type CQE struct {
	UserData uint64
	Res      int32
	Flags    uint32
}

// Iovec is struct iovec: what OpReadv and OpWritev take an array of.
type Iovec = sys.Iovec
