package devsw

import "sync/atomic"

// DEVBSIZE is the unit of Buf.Blkno and of d_psize in bytes, whatever the
// device's sector size. NetBSD: DEV_BSIZE.
const DEVBSIZE = 512

// Op is the direction of a transfer.
type Op uint8

// The directions.
const (
	BRead  Op = iota // from the device into Data
	BWrite           // from Data to the device
)

// String gives "read" or "write".
func (o Op) String() string {
	if o == BWrite {
		return "write"
	}
	return "read"
}

// BufFlag qualifies a transfer.
type BufFlag uint8

// The flags of a transfer.
const (
	// BMediaFUA: the write is on stable storage before biodone.
	// NetBSD: B_MEDIA_FUA.
	BMediaFUA BufFlag = 1 << iota
	// BMayBlock: the file below may block whoever touches it, for as long as it likes (a network's,
	// FUSE). An AIO then leaves even the attempt to another thread. NetBSD has nothing like it.
	BMayBlock
)

// Section is what a drain waits for while a Buf is in progress. specfs sets it; nobody else needs
// it.
type Section interface {
	// Leave ends the section. Biodone calls it once, after Iodone. inContext is
	// the Buf's InContext.
	Leave(inContext bool)
}

// Buf is one block transfer. NetBSD: struct buf, buf(9).
//
// Ownership: a Buf is its issuer's until strategy gets it, then the driver's until Biodone, which
// returns it by calling Iodone. That holds for the struct, for Data and for the memory Data points
// to. Whoever does not own it must not read or write any of them.
//
// A Buf must not be copied once used.
type Buf struct {
	// Set by the issuer. From d_strategy to Biodone they are the driver's. It may put others in
	// their place, such as memory of its own, and puts these back before Biodone.

	Op     Op       // what is to be done
	Flags  BufFlag  // how
	Dev    Dev      // set by specfs; by the issuer only for Table.BdevStrategy
	Blkno  int64    // where on the device, in units of DEVBSIZE
	Data   [][]byte // the memory, in order; the lengths add up to Bcount
	Bcount int64    // length in bytes

	// Iodone is called once, by Biodone and on its goroutine. The Buf is the
	// issuer's again, who may reuse it at once. Iodone must not block, and must
	// not start another transfer or call another operation: it may run inside
	// d_strategy, under a driver's lock. Nil: nobody wants to know.
	Iodone func(*Buf)

	// AIO does asynchronous file I/O in the context that issued the transfer.
	// Where it is nil the driver uses goroutines of its own.
	AIO AIO

	Context any // the issuer's

	// Set by the driver, before Biodone.

	Resid int64 // bytes not transferred
	Error Errno // 0: all went well

	// InContext says that Biodone is called on the goroutine that issued the
	// transfer: a driver sets it where it ends the transfer before d_strategy
	// returns, and an AIO before it calls AIODone. An issuer that has to end
	// its request there is spared the way from one goroutine to another. False
	// is always right.
	InContext bool

	section Section
	// 1 from Biodone to Reset. Atomic in Biodone alone, and not there with InContext.
	done uint32
}

// Reset makes b ready for another use: all fields are zero but Data, which is empty and keeps its
// capacity. b is the caller's: never used, or returned by Iodone.
func (b *Buf) Reset() {
	clear(b.Data) // keep nobody's memory alive
	*b = Buf{Data: b.Data[:0]}
}

// Rearm makes b ready to be issued again as it is: the result is cleared and
// nothing else. b is the caller's, as for Reset.
func (b *Buf) Rearm() {
	b.Resid, b.Error, b.InContext, b.section, b.done = 0, 0, false, nil, 0
}

// SetSection is for specfs: s.Leave is called when the transfer has ended.
func (b *Buf) SetSection(s Section) { b.section = s }

// Biodone says that the transfer has ended, well or not: Resid and Error are
// set. It is called by the owner of b, exactly once, on any goroutine; a second
// call before Reset or Rearm panics, since it would hand one transfer's result
// to another. It calls Iodone, then ends the I/O section, so that once a
// device is drained every Iodone has returned. NetBSD: biodone(9).
func (b *Buf) Biodone() {
	inContext := b.InContext
	switch {
	case !inContext && atomic.CompareAndSwapUint32(&b.done, 0, 1):
	case inContext && b.done == 0:
		// Nobody but this goroutine has b: a locked instruction less.
		b.done = 1
	default:
		panic("devsw: biodone twice for " + b.Op.String() + " on device " + b.Dev.String())
	}
	// Iodone may issue b again, with another section.
	section := b.section
	b.section = nil
	if b.Iodone != nil {
		b.Iodone(b)
	}
	step("iodone returned")
	if section != nil {
		section.Leave(inContext)
	}
}

// Fail ends the transfer with an error and nothing transferred: Error is e,
// Resid is Bcount, then Biodone.
func (b *Buf) Fail(e Errno) {
	b.Error = e
	b.Resid = b.Bcount
	b.Biodone()
}
