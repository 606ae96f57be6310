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

// prover compares connections, in a slot of its own and with memory of its own, until the proof is
// given: a guest may write for long what proves nothing, and its writes are to allocate nothing.
type prover struct {
	cl   *client
	due  chan trial // has room for one
	done chan struct{}
	told func(*devsw.Buf) // of buf: done has it
	buf  devsw.Buf
	seen [4][proofSize]byte
}

// trial is what is to be compared: n bytes from byte off on, of two connections.
type trial struct {
	one, other *conn
	off, n     int64
}

// newProver starts a prover in the caller's slot.
func (cl *client) newProver() *prover {
	p := &prover{cl: cl, due: make(chan trial, 1), done: make(chan struct{}, 1)}
	p.told = func(*devsw.Buf) { p.done <- struct{}{} }
	go p.run()
	return p
}

// proveLocked begins to look whether another connection shows what c, by which all goes, has
// written to n bytes from byte off on. Where there is no other one, a later write is looked at.
func (cl *client) proveLocked(c *conn, off, n int64) {
	if c != cl.only || cl.givenUp {
		return
	}
	for _, other := range cl.conns {
		if other != c && !other.quit {
			cl.proof = proofRuns
			cl.prover.due <- trial{c, other, off, min(n, proofSize)}
			return
		}
	}
}

// run looks whether two connections show the same, again and again until that is known or the
// client is given up.
func (p *prover) run() {
	cl := p.cl
	defer cl.leave()
	for {
		var t trial
		select {
		case t = <-p.due:
		case <-cl.ctx.Done():
			return
		}
		same, split := p.compare(t)
		cl.mu.Lock()
		cl.proof = proofLacks
		switch {
		case same:
			cl.proof, cl.only, cl.prover = proofGiven, nil, nil
		case split:
			cl.flushed.split, cl.flushed.lost = true, max(1, cl.flushed.acked)
			cl.lostLocked()
		}
		cl.unlock(nil)
		if same {
			return
		}
	}
}

// compare reads the same bytes by two connections, in turns. Zeroes that are the same prove
// nothing: there may have been zeroes before. What changes meanwhile proves nothing, either.
func (p *prover) compare(t trial) (same, split bool) {
	for range proofTries {
		var seen [4][]byte
		for i := range seen {
			c := t.one
			if i%2 == 1 {
				c = t.other
			}
			seen[i] = p.seen[i][:t.n]
			if !p.read(c, t.off, seen[i]) {
				return false, false
			}
		}
		switch {
		case !bytes.Equal(seen[0], seen[2]) || !bytes.Equal(seen[1], seen[3]):
			return false, false
		case bytes.Equal(seen[0], seen[1]):
			return !bytes.Equal(seen[0], zeroes[:t.n]), false
		}
	}
	return false, true
}

// read reads by one connection alone, and tells whether it could.
func (p *prover) read(c *conn, off int64, data []byte) bool {
	cl := p.cl
	b := &p.buf
	b.Reset()
	b.Op, b.Data, b.Bcount, b.Iodone = devsw.BRead, append(b.Data, data), int64(len(data)), p.told
	cl.mu.Lock()
	r := cl.newLocked()
	r.buf, r.off, r.total, r.by = b, off, b.Bcount, c
	cl.enqueueLocked(r)
	cl.unlock(nil)
	<-p.done
	return b.Error == 0
}
