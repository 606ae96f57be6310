package vnd

import (
	"sync"

	"vdev/devsw"
	"vdev/internal/sys"
)

// bounceChunk is how much of one transfer is in memory of ours at a time, in bytes. A multiple of
// any block size.
const bounceChunk = 256 << 10

// op is a transfer that does not go straight to the Buf's memory: what O_DIRECT does not take as it
// is, what the end of the disk cuts short, every write where sectors are smaller than the host's
// blocks, and everything with Config.Bounce. It moves from chunk to chunk, each of whole blocks, in
// the context of the Buf.
//
// The Buf itself stands for each chunk at the AIO, so that whoever looks for it there finds it.
// Meanwhile it has op's Op, Data, Bcount and Context, and asked has its own.
type op struct {
	im    *image
	b     *devsw.Buf
	asked devsw.Buf
	aio   devsw.AIO

	off   int64 // of what is left, bytes
	left  int64 // bytes
	moved int64 // bytes of asked.Data that are done

	lo, hi int64 // the whole blocks that a write touches; locked where the image has ranges
	whole  bool  // it touches no block in part
	held   bool  // lo to hi is locked

	// See ranges.
	claims        []claim // to each block of lo to hi
	missing       int     // how many of those others have
	before, after *op     // that wait, too

	// The chunk in progress.
	start  int64 // of its first block
	take   int64 // how many of its bytes are the Buf's, from off on
	filled bool  // a write's chunk has what is to be written; else it is being read
	mem    []byte
	chunk  [1][]byte // mem, as Data
}

var ops = sync.Pool{New: func() any { return new(op) }}

// bounce starts a transfer of the first n bytes of b.
func (im *image) bounce(b *devsw.Buf, off, n int64, aio devsw.AIO) {
	o := ops.Get().(*op)
	mask := im.geo.offAlign - 1
	*o = op{
		im: im, b: b, aio: aio, off: off, left: n, mem: o.mem, claims: o.claims,
		asked: devsw.Buf{Op: b.Op, Data: b.Data, Bcount: b.Bcount, Context: b.Context},
		lo:    off &^ mask, hi: (off + n + mask) &^ mask,
	}
	o.whole = o.lo == off && o.hi == off+n
	b.Context = o
	if im.ranges != nil && b.Op == devsw.BWrite && !im.ranges.lock(o) {
		return
	}
	o.begin()
}

// resume starts an op that had to wait for its blocks, on the goroutine of whoever had them: not
// that of the op's context, so that its AIO must not be used.
func (o *op) resume() {
	o.aio = &o.im.threads
	o.begin()
}

func (o *op) begin() {
	if !o.im.conf.Bounce && o.whole && o.left == o.asked.Bcount && o.im.aligned(&o.asked, o.off) {
		// Nothing speaks against the Buf's own memory, once the blocks are locked.
		o.start, o.take, o.filled = o.off, o.left, true
		o.issue(o.asked.Op, o.asked.Data, o.left)
		return
	}
	o.next()
}

// next starts the next chunk.
func (o *op) next() {
	if o.im.Cancelled() {
		o.end(devsw.ECANCELED)
		return
	}
	mask := o.im.geo.offAlign - 1
	o.start = o.off &^ mask
	end := min(o.off+o.left, o.start+bounceChunk)
	o.take = end - o.off
	n := (end+mask)&^mask - o.start
	// The memory may be from an op on another image.
	if align := max(o.im.geo.memAlign, o.im.geo.offAlign); int64(cap(o.mem)) < n || !sys.Aligned(o.mem, align) {
		o.mem = sys.AlignedBuffer(int(n), align)
	}
	o.mem = o.mem[:n]
	o.chunk[0] = o.mem
	o.filled = false
	if o.asked.Op == devsw.BWrite && o.take == n {
		o.write()
		return
	}
	o.issue(devsw.BRead, o.chunk[:], n)
}

// write puts the Buf's part into the chunk, and the chunk onto the image.
func (o *op) write() {
	if e := o.move(); e != 0 {
		o.end(e)
		return
	}
	o.filled = true
	o.issue(devsw.BWrite, o.chunk[:], int64(len(o.mem)))
}

// move copies between the chunk and the Buf's memory, in the direction of the transfer.
func (o *op) move() devsw.Errno {
	skip := o.off - o.start
	return o.asked.MoveAt(o.mem[skip:skip+o.take], o.moved)
}

func (o *op) issue(dir devsw.Op, data [][]byte, n int64) {
	o.b.Op, o.b.Data, o.b.Bcount = dir, data, n
	o.im.hand(o.b, o.start, o.aio)
}

// step goes on when the chunk's transfer has ended, after n bytes.
func (o *op) step(n int64, e devsw.Errno) {
	if o.b.Op == devsw.BRead {
		e = o.im.atEOF(n, e, o.b.Bcount)
	} else {
		e = o.im.wrote(n, o.b.Bcount, o.b.Flags, e)
	}
	if e == 0 && !o.filled {
		clear(o.mem[n:])
		if o.asked.Op == devsw.BWrite {
			o.write()
			return
		}
		e = o.move()
	}
	if e != 0 {
		o.end(e)
		return
	}
	o.off += o.take
	o.left -= o.take
	o.moved += o.take
	if o.left == 0 {
		o.end(0)
		return
	}
	o.next()
}

// end ends the Buf's transfer, and the op.
func (o *op) end(e devsw.Errno) {
	b, im := o.b, o.im
	b.Op, b.Data, b.Bcount, b.Context = o.asked.Op, o.asked.Data, o.asked.Bcount, o.asked.Context
	b.Error = e
	b.Resid = b.Bcount - o.moved
	if o.held {
		im.ranges.unlock(o)
	}
	clear(o.claims)
	*o = op{mem: o.mem, claims: o.claims}
	ops.Put(o)
	im.biodone(b)
}
