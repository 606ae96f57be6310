package virtq

import "io"

// Chain is one descriptor chain, as buffers. Its owner uses it again and again: it allocates
// nothing once its slices have grown. The zero Chain is ready for Pop.
//
// The buffers are the guest's memory. They are valid from Pop until Push, Suspend or Unpop, also
// when the memory of the Queue is changed meanwhile; the guest may change their content at any
// time. Where a descriptor's buffer crosses from one region of memory to the next it becomes two
// slices, and a descriptor of length 0 becomes none, so the number of slices says nothing about the
// number of descriptors. The owner may reslice and reorder the slices.
type Chain struct {
	Head     uint16   // index of the first descriptor, which names the chain
	Readable [][]byte // device-readable buffers, in order
	Writable [][]byte // device-writable buffers, in order

	readableLen, writableLen int
	descs                    int // descriptors
	read, written            cursor
	// its number in the order of fetching, which it keeps when it is popped again
	seq uint64
	pop uint64      // its number in the order of popping
	gen *generation // the memory its buffers lie in; nil unless in flight
	// its writable buffers, noted while the queue marks what is written
	dirty []span
}

// cursor is a place in a list of buffers.
type cursor struct {
	buf, off int
}

// ReadableLen returns the bytes in all device-readable buffers together, as they were popped.
func (c *Chain) ReadableLen() int { return c.readableLen }

// WritableLen returns the bytes in all device-writable buffers together, as they were popped.
func (c *Chain) WritableLen() int { return c.writableLen }

// Work tells how long it took to pop c, and will take to end it, in descriptors that were
// read: those of length 0 count as well, and a writable MiB as one, since its pages may have to be
// marked. It is for who shares out time among queues.
func (c *Chain) Work() int { return c.descs + c.writableLen>>20 }

// InFlight tells whether c was popped, and neither pushed, suspended nor given to Unpop since.
func (c *Chain) InFlight() bool { return c.gen != nil }

// Read copies the next bytes from Readable. At its end it returns io.EOF. It implements io.Reader;
// each Pop starts anew.
func (c *Chain) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) && c.read.buf < len(c.Readable) {
		k := copy(p[n:], c.Readable[c.read.buf][c.read.off:])
		n += k
		c.read.off += k
		if c.read.off == len(c.Readable[c.read.buf]) {
			c.read = cursor{c.read.buf + 1, 0}
		}
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Write copies p to the next bytes of Writable. What does not fit is left out, with
// io.ErrShortWrite. It implements io.Writer; each Pop starts anew. The sum of what it returned is
// what Push is to be told, if nothing else wrote.
func (c *Chain) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) && c.written.buf < len(c.Writable) {
		k := copy(c.Writable[c.written.buf][c.written.off:], p[n:])
		n += k
		c.written.off += k
		if c.written.off == len(c.Writable[c.written.buf]) {
			c.written = cursor{c.written.buf + 1, 0}
		}
	}
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// clear makes the chain empty, and keeps the room in its slices.
func (c *Chain) clear() {
	c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
	c.readableLen, c.writableLen = 0, 0
	c.read, c.written = cursor{}, cursor{}
	c.dirty = c.dirty[:0]
}
