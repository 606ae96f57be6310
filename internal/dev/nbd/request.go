package nbd

import (
	"slices"
	"sync"

	"vdev/devsw"
)

// request is one thing that the server is to do: a transfer, or a flush, a trim or zeroes somebody
// waits for. All of it is under client.mu, but that the goroutine which has set busy may touch the
// transfer's memory without.
//
// Its life: it waits for a connection (client.pending), or for blocks that are held back
// (client.held), or in a connection's queue; then it is in flight on that connection until the
// server has answered or the connection is lost, which puts it back. Whoever asked for it is told
// once (client.finishLocked); a request that is given up while it is in flight stays there, without
// memory, until the server has answered: an orphan.
type request struct {
	cmd       uint16
	flags     uint16           // NBD_CMD_FLAG_*
	thenFlush bool             // FUA, of a server that has only FLUSH
	buf       *devsw.Buf       // the transfer, until it is ended; nil where there is none
	wait      chan devsw.Errno // who waits where there is no transfer: it has room for the answer
	by        *conn            // asked on this connection or not at all; nil: on any
	off       int64            // on the disk, bytes
	total     int64            // bytes
	seq       uint64           // the older one has the smaller
	finished  bool             // whoever asked has been told

	pos int64 // bytes done, by earlier requests of the protocol's size
	n   int64 // bytes asked of the server now

	// While it is in flight:
	cookie     uint64
	start, end int64       // where in the stream of bytes to the server it is
	sent       int64       // bytes of the payload taken from memory
	busy       bool        // a goroutine of the connection's touches the memory
	gone       bool        // it is to be given up as soon as it is not busy
	answered   bool        // the server has said its last word
	retry      bool        // which was that it is going
	err        devsw.Errno // what went wrong
	covers     uint64      // of a flush: how many writes were answered before
	rest       []byte      // of a write given up in the middle: what is still to be sent of it
	got        spans       // of a read: what has come
}

// modifies tells whether the request changes what is on the disk.
func (r *request) modifies() bool {
	return r.cmd == cmdWrite || r.cmd == cmdTrim || r.cmd == cmdWriteZeroes
}

// orphan tells whether the server may still do something that nobody wants any more.
func (r *request) orphan() bool { return r.finished && r.modifies() }

// touches tells whether the request is about any of the n bytes from off on.
func (r *request) touches(off, n int64) bool {
	return r.cmd != cmdFlush && off < r.off+r.total && r.off < off+n
}

// unsent makes the request as it was before it was sent.
func (r *request) unsent() {
	r.cookie, r.start, r.end, r.sent = 0, 0, 0, 0
	r.busy, r.gone, r.answered, r.retry, r.err, r.rest = false, false, false, false, 0, nil
	r.got = r.got[:0]
}

// unstable makes a write that is to be flushed begin anew: a server that has gone may have
// forgotten what it had answered.
func (r *request) unstable() {
	if r.thenFlush {
		r.cmd, r.pos = cmdWrite, 0
	}
}

// span is the bytes lo to hi of a read.
type span struct{ lo, hi int64 }

// maxSpans is how many holes a read may have at one time. Real servers answer in order, or in a few
// large parts.
const maxSpans = 256

// spans is what has come of a read, in order, with gaps between.
type spans []span

// add notes bytes that have come. It fails where they had come before, or where there are too many
// gaps.
func (s *spans) add(lo, hi int64) bool {
	i, _ := slices.BinarySearchFunc(*s, lo, func(x span, lo int64) int {
		if x.hi < lo {
			return -1
		}
		return 1
	})
	// i is the first span that ends at lo or later.
	if i == len(*s) {
		*s = append(*s, span{lo, hi})
		return len(*s) <= maxSpans
	}
	x := &(*s)[i]
	switch {
	case x.hi == lo:
		if i+1 < len(*s) && (*s)[i+1].lo < hi {
			return false
		}
		x.hi = hi
		if i+1 < len(*s) && (*s)[i+1].lo == hi {
			x.hi = (*s)[i+1].hi
			*s = slices.Delete(*s, i+1, i+2)
		}
		return true
	case x.lo < hi:
		return false
	case x.lo == hi:
		x.lo = lo
		return true
	}
	*s = slices.Insert(*s, i, span{lo, hi})
	return len(*s) <= maxSpans
}

// all tells whether the bytes 0 to n have come.
func (s spans) all(n int64) bool { return len(s) == 1 && s[0].lo == 0 && s[0].hi == n }

// ending is a word to whoever asked for a request.
type ending struct {
	buf   *devsw.Buf
	resid int64
	wait  chan devsw.Errno
	err   devsw.Errno
}

// tell ends the transfer, or tells who waits. in is the context that the caller is in, or nil.
func (e *ending) tell(in devsw.Watcher) {
	if e.buf == nil {
		e.wait <- e.err
		return
	}
	if in != nil {
		w, ok := e.buf.AIO.(devsw.Watcher)
		e.buf.InContext = ok && w == in
	}
	if e.err != 0 {
		e.buf.Fail(e.err)
		return
	}
	e.buf.Error, e.buf.Resid = 0, e.resid
	e.buf.Biodone()
}

// endings are lists of them, to be used again.
var endings = sync.Pool{New: func() any { return new([]ending) }}
