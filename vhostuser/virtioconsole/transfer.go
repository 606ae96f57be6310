package virtioconsole

import (
	"vdev/devsw"
	"vdev/vhostuser"
	"vdev/virtq"
)

// mover moves bytes between a driver and a list of buffers. It allocates nothing once its list has
// grown.
type mover struct {
	uio devsw.Uio
	iov [][]byte // a copy for the driver to shorten
}

// start begins a list of buffers.
func (m *mover) start() { m.uio, m.iov = devsw.Uio{}, m.iov[:0] }

// add adds buffers to the list, which is to have at most limit bytes. The buffers stay as they are.
func (m *mover) add(buffers [][]byte, limit int) {
	for _, b := range buffers {
		if m.uio.Resid == limit {
			break
		}
		b = b[:min(len(b), limit-m.uio.Resid)]
		m.uio.Resid += len(b)
		m.iov = append(m.iov, b)
	}
}

// move has the driver move bytes to or from the list, and returns how many it has moved. The list
// is at its end.
func (m *mover) move(o *opened, rw devsw.UioRw) (n int, err error) {
	want := m.uio.Resid
	m.uio.Iov, m.uio.Rw = m.iov, rw
	if rw == devsw.UIORead {
		err = o.node.Read(&m.uio, devsw.FNONBLOCK)
	} else {
		err = o.node.Write(&m.uio, devsw.FNONBLOCK)
	}
	n = min(max(want-m.uio.Resid, 0), want)
	m.uio.Iov = nil
	if cap(m.iov) > keepBuffers {
		m.iov = nil
	}
	return n, err
}

// keepBuffers is how long a list of buffers may be that is kept for the next chain: 48 KiB of them.
// It is what the chain of an 8 MiB pipe has.
const keepBuffers = 2048

// incoming is the reactor's side of a ring to the guest. One d_read gets several chains: where a
// guest's buffers are small, the system call costs more than the bytes.
type incoming struct {
	mover
	chains     []virtq.Chain // more are made when they are worth it
	first, end int           // of chains those in flight; none when Process returns
	// how many got something of one d_read, the last time that there was something
	worth int
}

// The most that one d_read gets: chains, the bytes behind which no more chains are added, and
// buffers, of which the kernel takes that many (IOV_MAX).
const (
	gatherChains  = 64
	gatherBytes   = 64 << 10
	gatherBuffers = 1024
)

// outgoing is the reactor's side of a ring from the guest. A chain that is taken in pieces stays in
// flight in between.
type outgoing struct {
	mover
	chain  virtq.Chain
	held   bool     // chain is in flight
	of     *port    // that its bytes are for
	left   [][]byte // of the chain's readable buffers, what is not done
	done   int      // bytes
	rest   int      // bytes of left
	resume resume
	flush  []byte // for port.flush
}

// resume says how much of a chain that went back to the ring was done. When it comes again, it goes
// on there.
type resume struct {
	of   *port
	head uint16
	len  int // of the chain, in bytes
	done int // 0: there is no such chain
}

// receive gives the guest what the port's device has. A chain leaves the ring only for that: one
// that was popped for nothing goes back.
func (s *slot) receive(q *vhostuser.Queue) (more bool) {
	s.lookAt()
	p := s.port.Load()
	if p == nil || !s.input.Load() {
		return false
	}
	o := p.open.Load()
	if o == nil {
		return false
	}
	in := &s.in
	defer in.giveBack(q) // a fault on guest memory may end this anywhere
	chains, bytes, work := 0, 0, 0
	try, most := max(in.worth, 1), 0
	for chains < budget && bytes < budgetBytes && work < budgetWork {
		seen := o.readable.Load()
		if o.emptyAt == seen {
			return false
		}
		work += in.gather(q, try)
		if q.Broken() {
			return false
		}
		room := in.uio.Resid
		got, err := 0, error(nil)
		if room > 0 {
			got, err = in.move(o, devsw.UIORead)
		}
		used := in.share(q, p, got)
		if used == 0 && room == 0 {
			return false // the ring is empty
		}
		chains += used
		bytes += got
		if err != nil || got == 0 && room > 0 {
			o.emptyAt = seen
			if err != nil && err != devsw.EAGAIN {
				in.giveBack(q)
				o.failed(q, err)
			}
			return false
		}
		most = max(most, used)
		in.worth = most
		if try = min(2*try, gatherChains); got < room {
			in.giveBack(q)
			try = 1 // there is hardly more
		}
	}
	return true
}

// gather pops chains into a list for d_read, n at most, and tells what work that was.
func (in *incoming) gather(q *vhostuser.Queue, n int) (work int) {
	in.start()
	in.first, in.end = 0, 0
	if len(in.chains) < n {
		in.chains = append(in.chains, make([]virtq.Chain, n-len(in.chains))...)
	}
	for in.end < n && in.uio.Resid < gatherBytes && len(in.iov) < gatherBuffers && work < budgetWork {
		c := &in.chains[in.end]
		if !q.Pop(c) {
			break
		}
		in.end++
		work += c.Work()
		in.add(c.Writable, budgetBytes)
	}
	return work
}

// share uses the chains that n bytes have gone to, and those between them that have no room, and
// tells how many. The others stay in flight.
func (in *incoming) share(q *vhostuser.Queue, p *port, n int) (used int) {
	p.count.in.Add(uint64(n))
	for ; in.first < in.end; used++ {
		c := &in.chains[in.first]
		room := c.WritableLen()
		some := min(n, room)
		if some == 0 && room > 0 {
			break
		}
		if room == 0 {
			p.count.odd.Add(1)
		}
		n -= some
		in.first++
		q.Push(c, uint32(some))
		in.trim(c)
	}
	return used
}

// giveBack returns to the ring what is in flight.
func (in *incoming) giveBack(q *vhostuser.Queue) {
	for ; in.first < in.end; in.end-- {
		q.Unpop(&in.chains[in.end-1])
		in.trim(&in.chains[in.end-1])
	}
}

// trim has a chain that is not in flight keep no more than its share of memory.
func (in *incoming) trim(c *virtq.Chain) {
	if cap(c.Writable)+cap(c.Readable) > keepBuffers/len(in.chains) {
		*c = virtq.Chain{}
	}
}

// transmit gives the port's device what the guest has written. What a console's device does not
// take goes to the backlog, and the chain is used at once. Any other port's chain waits.
func (s *slot) transmit(q *vhostuser.Queue) (more bool) {
	p := s.port.Load()
	var o *opened
	if p != nil {
		o = p.open.Load()
	}
	out := &s.out
	if out.held && out.of != p {
		// The port has gone, and nobody is there to take the rest.
		out.finish(q)
	}
	if o != nil && !p.backlog.empty() && o.fullAt != o.writable.Load() {
		if out.flush == nil {
			out.flush = make([]byte, flushSize)
		}
		if err := p.flush(o, out.flush); err != nil && err != devsw.EAGAIN {
			o.failed(q, err)
		}
	}
	bytes, work := 0, 0
	for n := 0; n < budget && bytes < budgetBytes && work < budgetWork; n++ {
		waits := p != nil && !p.Console
		if waits && (o == nil || o.fullAt == o.writable.Load()) {
			return false
		}
		if !out.held {
			if !q.Pop(&out.chain) {
				return false
			}
			out.begin(p)
			work += out.chain.Work()
		}
		limit := min(out.rest, budgetBytes-bytes)
		bytes += limit
		var err error
		switch {
		case limit == 0:
		case p == nil:
			out.advance(limit)
		case waits:
			err = out.give(q, o, limit)
		default:
			err = out.giveConsole(q, o, limit)
		}
		switch {
		case err == devsw.EFAULT:
			return false // the guest's memory is gone, and the ring is broken
		case err != nil && p.open.Load() != o:
			o = nil // it was revoked, or is being closed
		}
		if out.rest == 0 {
			out.finish(q)
		}
	}
	return true
}

// begin begins with the chain that was popped.
func (out *outgoing) begin(p *port) {
	c := &out.chain
	out.held, out.of, out.left, out.done, out.rest = true, p, c.Readable, 0, c.ReadableLen()
	if p != nil && (out.rest == 0 || c.WritableLen() > 0) {
		p.count.odd.Add(1)
	}
	r := out.resume
	out.resume = resume{}
	if r.done > 0 && r.of == p && r.head == c.Head && r.len == out.rest {
		out.advance(r.done)
	}
}

// advance notes that n more bytes of the chain are done.
func (out *outgoing) advance(n int) {
	out.done += n
	out.rest -= n
	for n > 0 {
		if n < len(out.left[0]) {
			out.left[0] = out.left[0][n:]
			return
		}
		n -= len(out.left[0])
		out.left = out.left[1:]
	}
}

// finish uses the chain.
func (out *outgoing) finish(q *vhostuser.Queue) {
	out.held, out.of, out.left, out.rest = false, nil, nil, 0
	q.Push(&out.chain, 0)
	if cap(out.chain.Readable)+cap(out.chain.Writable) > keepBuffers {
		out.chain = virtq.Chain{}
	}
}

// give gives the driver the next bytes of the chain.
func (out *outgoing) give(q *vhostuser.Queue, o *opened, limit int) error {
	seen := o.writable.Load()
	out.start()
	out.add(out.left, limit)
	n, err := out.move(o, devsw.UIOWrite)
	out.advance(n)
	o.port.count.out.Add(uint64(n))
	if err != nil || n < limit {
		o.fullAt = seen
		if err != nil && err != devsw.EAGAIN {
			o.failed(q, err)
		}
	}
	return err
}

// giveConsole is give for a console: all that the driver does not take goes to the backlog, and
// everything does while something is there.
func (out *outgoing) giveConsole(q *vhostuser.Queue, o *opened, limit int) (err error) {
	p := out.of
	left := out.rest - limit
	if o != nil && p.backlog.empty() && o.fullAt != o.writable.Load() {
		err = out.give(q, o, limit)
	}
	for over := out.rest - left; over > 0; over = out.rest - left {
		b := out.left[0][:min(over, len(out.left[0]))]
		p.keep(b)
		out.advance(len(b))
	}
	return err
}

// park returns the chain in flight to the ring, of which it is the newest, and remembers how much
// of it was done. On the reactor, when the ring is paused or stopped.
func (r *ring) park(q *vhostuser.Queue) {
	if r.kind != ringPortOut || !r.slot.out.held {
		return
	}
	out := &r.slot.out
	out.resume = resume{of: out.of, head: out.chain.Head, len: out.chain.ReadableLen(), done: out.done}
	out.held, out.of, out.left, out.rest = false, nil, nil, 0
	q.Unpop(&out.chain)
}
