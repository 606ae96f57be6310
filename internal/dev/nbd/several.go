package nbd

import (
	"bytes"

	"vdev/devsw"
)

// proof is what is known of a server's word (NBD_FLAG_CAN_MULTI_CONN) that all its connections show
// one disk. There are servers that give it and keep a disk for each connection (nbd-server for
// exports that are "temporary"), and a proxy may give each connection to another server. So once
// something has been changed all goes by one connection, until another one shows what was written.
type proof int

const (
	// none is needed: there is one connection, or the server is the driver's
	proofNone  proof = iota
	proofDue         // nothing has been changed yet
	proofLacks       // something has: all goes by client.only
	proofRuns        // likewise; prove looks at what was written
	proofGiven
)

// narrow tells whether all goes by one connection.
func (p proof) narrow() bool { return p == proofLacks || p == proofRuns }

const (
	// proofSize is how much of a write is looked at, in bytes.
	proofSize = 4096
	// proofTries is how often two connections have to differ. A guest may be writing there.
	proofTries = 3
)

// proveLocked begins to look whether another connection shows what c, by which all goes, has
// written to n bytes from byte off on. Where there is no other one, a later write is looked at.
func (cl *client) proveLocked(c *conn, off, n int64) {
	if c != cl.only || cl.givenUp {
		return
	}
	for _, other := range cl.conns {
		if other != c && !other.quit {
			cl.proof = proofRuns
			cl.slots++
			go cl.prove(c, other, off, min(n, proofSize))
			return
		}
	}
}

// prove looks whether two connections show the same, in a slot of its own.
func (cl *client) prove(one, other *conn, off, n int64) {
	defer cl.leave()
	same, split := cl.compare(one, other, off, n)
	cl.mu.Lock()
	cl.proof = proofLacks
	switch {
	case same:
		cl.proof, cl.only = proofGiven, nil
	case split:
		cl.flushed.split, cl.flushed.lost = true, max(1, cl.flushed.acked)
		cl.lostLocked()
	}
	cl.unlock(nil)
}

// compare reads the same n bytes by two connections, in turns. Zeroes that are the same prove
// nothing: there may have been zeroes before. What changes meanwhile proves nothing, either.
func (cl *client) compare(one, other *conn, off, n int64) (same, split bool) {
	zero := make([]byte, n)
	for range proofTries {
		var seen [4][]byte
		for i := range seen {
			c := one
			if i%2 == 1 {
				c = other
			}
			seen[i] = make([]byte, n)
			if !cl.readBy(c, off, seen[i]) {
				return false, false
			}
		}
		switch {
		case !bytes.Equal(seen[0], seen[2]) || !bytes.Equal(seen[1], seen[3]):
			return false, false
		case bytes.Equal(seen[0], seen[1]):
			return !bytes.Equal(seen[0], zero), false
		}
	}
	return false, true
}

// readBy reads by one connection alone, and tells whether it could.
func (cl *client) readBy(c *conn, off int64, p []byte) bool {
	done := make(chan struct{}, 1)
	b := devsw.Buf{
		Op: devsw.BRead, Data: [][]byte{p}, Bcount: int64(len(p)),
		Iodone: func(*devsw.Buf) { done <- struct{}{} },
	}
	cl.mu.Lock()
	r := cl.newLocked()
	r.buf, r.off, r.total, r.by = &b, off, b.Bcount, c
	cl.enqueueLocked(r)
	cl.unlock(nil)
	<-done
	return b.Error == 0
}
