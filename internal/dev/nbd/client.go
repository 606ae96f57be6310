package nbd

import (
	"cmp"
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"vdev/devsw"
)

// Between two attempts to connect a client waits this long at first, and twice as long each time up
// to the maximum, until a server has answered a request.
const (
	firstRetry = 10 * time.Millisecond
	lastRetry  = 1 * time.Second
)

// client is an open export: its connections, and the requests on their way. It has as many slots as
// there may be connections; a goroutine for each slot has one connection after the other.
//
// Nobody is told of the end of a request, and nothing is read, written or dialed, under mu; that a
// deadline is set is all that is done to a connection there.
type client struct {
	dial      func(ctx context.Context) (*link, error) // checks the export, too
	keep      func(*link) bool                         // see softc.keep; nil: not to be
	notify    func(error)                              // see Driver.Notify
	delay     time.Duration                            // reconnect-delay
	server    Server
	killAfter time.Duration
	unflushed Unflushed
	ctx       context.Context // done when the client is given up
	stop      context.CancelFunc
	idle      chan struct{} // closed when the last slot has gone
	killed    chan struct{} // closed by kill
	done      chan struct{} // closed when the server has been stopped after that

	mu      sync.Mutex
	slots   int     // goroutines that connect
	conns   []*conn // those in use
	pending requests
	held    requests // they wait for orphans
	of      devsw.BufIndex[*request]
	orphans int // writes that were given up, and that the server may still do
	proof   proof
	only    *conn   // by which all goes while proof is narrow; nil: not chosen yet
	prover  *prover // nil where there is nothing to prove
	givenUp bool
	flushed stability
	outages uint64     // the generation of a server that cannot be told from another: see attach
	away    bool       // there was no connection for a time
	news    *LostError // notify is to be told, by unlock
	seq     uint64
	free    []*request
	endings *[]ending // to be told by unlock
	trouble string    // what notify was told while there is no connection

	// timer runs from when the first request had to wait for a connection until a server has
	// answered something: a server that comes back only to go again does not buy time.
	timer   *time.Timer
	timers  int  // how many there were
	expired bool // the timer has: nothing waits any more, until there is a connection
}

// requests is a list of requests.
type requests []*request

func (s *requests) remove(r *request) bool {
	i := slices.Index(*s, r)
	if i < 0 {
		return false
	}
	*s = slices.Delete(*s, i, i+1)
	return true
}

func (s *requests) take() requests {
	all := *s
	*s = nil
	return all
}

// newClient makes a client without connections and without goroutines. It has one slot, which is
// the caller's.
func newClient(conf *Config, dial func(ctx context.Context) (*link, error), notify func(error)) *client {
	cl := &client{
		dial: dial, notify: notify, delay: conf.ReconnectDelay, server: conf.Server, killAfter: conf.KillAfter,
		unflushed: conf.Unflushed, slots: 1,
		idle: make(chan struct{}), killed: make(chan struct{}), done: make(chan struct{}),
	}
	cl.ctx, cl.stop = context.WithCancel(context.Background())
	return cl
}

// start takes the first connection into use, in the caller's slot, and up to n-1 more where the
// server says that several are as good as one.
func (cl *client) start(first *link, n int) {
	if !first.exp.has(canMultiConn) {
		n = 1
	}
	cl.mu.Lock()
	cl.slots += n - 1
	if _, foreign := cl.server.(nobody); foreign && n > 1 {
		cl.proof = proofDue
		cl.slots++
		cl.prover = cl.newProver()
	}
	cl.mu.Unlock()
	c := cl.attach(first)
	go cl.slot(c)
	for range n - 1 {
		go cl.slot(nil)
	}
}

// enter takes a slot for somebody who connects for a reason of his own, unless the client is given
// up.
func (cl *client) enter() bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.givenUp {
		return false
	}
	cl.slots++
	return true
}

// leave frees a slot.
func (cl *client) leave() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.slots--; cl.slots == 0 {
		close(cl.idle)
	}
}

// end waits until the client, which was given up, is idle, and sees to its server.
func (cl *client) end() {
	owed := time.NewTimer(cl.killAfter)
	defer owed.Stop()
	select {
	case <-cl.idle:
	case <-owed.C:
		cl.server.Kill()
	case <-cl.killed:
		cl.server.Kill()
	}
	<-cl.idle
	cl.server.Stop()
	close(cl.done)
}

// unlock lets go of mu, and then tells whoever is to be told. in is the context that the caller is
// in, or nil.
func (cl *client) unlock(in devsw.Watcher) {
	list, news := cl.endings, cl.news
	cl.endings, cl.news = nil, nil
	cl.mu.Unlock()
	if news != nil {
		cl.notify(news)
	}
	if list == nil {
		return
	}
	for i := range *list {
		(*list)[i].tell(in)
	}
	clear(*list)
	*list = (*list)[:0]
	endings.Put(list)
}

// slot has one connection after the other, until the client is given up.
func (cl *client) slot(c *conn) {
	defer cl.leave()
	wait := firstRetry
	for {
		if c == nil {
			l, err := cl.dial(cl.ctx)
			if err == nil {
				c = cl.attach(l)
			} else {
				cl.inTrouble(err)
			}
		}
		if c != nil {
			useful, err := c.serve()
			if useful {
				wait = firstRetry
			}
			cl.lost(c)
			if err == errKept {
				c.handOn()
			}
			cl.inTrouble(err)
			c = nil
		}
		// Clients that lost the same server must not all come back at once.
		retry := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-retry.C:
		case <-cl.ctx.Done():
			retry.Stop()
			return
		}
		wait = min(2*wait, lastRetry)
	}
}

// attach takes a connection into use, and gives it what waits for one. It is nil, and the
// connection closed, where the client was given up.
func (cl *client) attach(l *link) *conn {
	c := newConn(cl, l, make([]byte, 0, bufferSize), make([]byte, bufferSize))
	if !cl.use(c) {
		c.raw.Close()
		return nil
	}
	return c
}

// use gives a connection what waits for one, unless the client was given up.
func (cl *client) use(c *conn) bool {
	cl.mu.Lock()
	if cl.givenUp {
		cl.mu.Unlock()
		return false
	}
	cl.conns = append(cl.conns, c)
	if c.unidentified {
		c.generation = cl.outages
		if n := cl.flushed.volatile(); cl.away && n > 0 && cl.unflushed == UnflushedAuto {
			cl.news = &LostError{Writes: n, Perhaps: true, Foreign: true}
		}
	}
	cl.away = false
	if cl.flushed.arrived(c.generation) {
		cl.lostLocked()
	}
	cl.expired = false
	back := cl.trouble != ""
	cl.trouble = ""
	for _, r := range cl.pending.take() {
		cl.enqueueLocked(r)
	}
	cl.unlock(nil)
	if back {
		cl.notify(nil)
	}
	return true
}

// lostLocked has notify told of a loss.
func (cl *client) lostLocked() { cl.news = cl.lossLocked() }

func (cl *client) lossLocked() *LostError {
	_, foreign := cl.server.(nobody)
	return &LostError{Writes: cl.flushed.lost, Foreign: foreign, Split: cl.flushed.split}
}

// stale gives the error of everything, where writes are lost.
func (cl *client) stale() devsw.Errno {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.flushed.lost > 0 {
		return devsw.ESTALE
	}
	return 0
}

// inTrouble tells why there is no connection, unless there is one, or that was told before.
func (cl *client) inTrouble(err error) {
	cl.mu.Lock()
	news := !cl.givenUp && len(cl.conns) == 0 && cl.trouble != err.Error()
	if news {
		cl.trouble = err.Error()
	}
	cl.mu.Unlock()
	if news {
		cl.notify(err)
	}
}

// lost takes a connection out of use, whose goroutines have ended and which is closed. What it had
// to do is done by others, later if need be.
func (cl *client) lost(c *conn) {
	cl.mu.Lock()
	c.current = nil
	cl.conns = slices.DeleteFunc(cl.conns, func(x *conn) bool { return x == c })
	if len(cl.conns) == 0 && !cl.givenUp {
		cl.away = true
		if c.unidentified && cl.unflushed == UnflushedLost {
			cl.outages++
		}
	}
	var again requests
	for _, r := range c.flight {
		switch {
		case r.finished:
			cl.dropLocked(r)
		case c.rogue && r.modifies() && r.start < c.written:
			// Nobody knows what such a server is still up to.
			cl.finishLocked(r, devsw.EIO)
			cl.releaseLocked(r)
		default:
			r.unsent()
			again = append(again, r)
		}
	}
	clear(c.flight)
	again = append(again, c.queue.take()...)
	for _, list := range []requests{again, cl.pending, cl.held} {
		for _, r := range list {
			r.unstable()
		}
	}
	slices.SortFunc(again, func(a, b *request) int { return cmp.Compare(a.seq, b.seq) })
	for _, r := range again {
		cl.enqueueLocked(r)
	}
	cl.resumeLocked(0, math.MaxInt64)
	cl.unlock(nil)
}

// expire ends the time for which requests wait for a server, unless its n-th timer was stopped when
// it was just over.
func (cl *client) expire(n int) {
	cl.mu.Lock()
	if cl.timer != nil && cl.timers == n {
		cl.timer, cl.expired = nil, true
		for _, r := range cl.pending.take() {
			cl.finishLocked(r, devsw.EIO)
			cl.releaseLocked(r)
		}
	}
	cl.unlock(nil)
}

// answeredLocked notes that a server does what it is for.
func (cl *client) answeredLocked() {
	if cl.timer != nil {
		cl.timer.Stop()
		cl.timer = nil
	}
	cl.expired = false
}

// newLocked gives a request, all zero.
func (cl *client) newLocked() *request {
	cl.seq++
	if n := len(cl.free); n > 0 {
		r := cl.free[n-1]
		cl.free = cl.free[:n-1]
		*r = request{seq: cl.seq, got: r.got[:0]}
		return r
	}
	return &request{seq: cl.seq}
}

// releaseLocked says that nothing refers to a request any more.
func (cl *client) releaseLocked(r *request) { cl.free = append(cl.free, r) }

// finishLocked has whoever asked for r be told of its end.
func (cl *client) finishLocked(r *request, e devsw.Errno) {
	if cl.endings == nil {
		cl.endings = endings.Get().(*[]ending)
	}
	end := ending{buf: r.buf, wait: r.wait, err: e}
	if r.buf != nil {
		end.resid = r.buf.Bcount - r.total
	}
	*cl.endings = append(*cl.endings, end)
	cl.of.Ended(r.buf)
	r.finished, r.buf, r.wait = true, nil, nil
}

// abandonLocked finishes a request that is in flight, which stays there as an orphan if it can do
// harm.
func (cl *client) abandonLocked(r *request, e devsw.Errno) {
	cl.finishLocked(r, e)
	if r.modifies() {
		cl.orphans++
	}
}

// dropLocked forgets a finished request that is in flight no more.
func (cl *client) dropLocked(r *request) {
	if r.orphan() {
		cl.orphans--
	}
	cl.releaseLocked(r)
}

// resumeLocked lets those go on that have waited for orphans which wrote to the n bytes from off
// on. The others wait for other orphans: to look for theirs takes long where there are many.
func (cl *client) resumeLocked(off, n int64) {
	if len(cl.held) == 0 {
		return
	}
	for _, r := range cl.held.take() {
		if r.touches(off, n) {
			cl.enqueueLocked(r)
		} else {
			cl.held = append(cl.held, r)
		}
	}
}

// enqueueLocked puts a request where it has to wait next.
func (cl *client) enqueueLocked(r *request) {
	if cl.givenUp {
		cl.finishLocked(r, devsw.ECANCELED)
		cl.releaseLocked(r)
		return
	}
	if cl.flushed.lost > 0 {
		cl.finishLocked(r, devsw.ESTALE)
		cl.releaseLocked(r)
		return
	}
	if cl.orphans > 0 && cl.disturbedLocked(r) {
		cl.held = append(cl.held, r)
		return
	}
	if cl.proof == proofDue && r.modifies() {
		cl.proof = proofLacks
	}
	best := cl.bestLocked(r)
	switch {
	case best != nil:
		best.queue = append(best.queue, r)
		best.roused(r)
	case cl.expired || cl.delay <= 0 || r.by != nil:
		cl.finishLocked(r, devsw.EIO)
		cl.releaseLocked(r)
	default:
		cl.pending = append(cl.pending, r)
		if cl.timer == nil {
			cl.timers++
			n := cl.timers
			cl.timer = time.AfterFunc(cl.delay, func() { cl.expire(n) })
		}
	}
}

// bestLocked gives the connection for a request, or nil: that of the context it comes from, else
// one that is no context's, else any, and of several the one with the least to do. A context has
// nothing from a second connection but more to look after. But a request may be bound to one, and
// all may be: see proof.
func (cl *client) bestLocked(r *request) (best *conn) {
	only := r.by
	narrow := only == nil && cl.proof.narrow()
	if narrow {
		only = cl.only
	}
	switch {
	case only != nil && !only.quit:
		return only
	case r.by != nil:
		return nil
	}
	var from devsw.Watcher
	if r.buf != nil {
		from, _ = r.buf.AIO.(devsw.Watcher)
	}
	strange := func(c *conn) int {
		switch {
		case from == nil || c.next == from:
			return 0
		case c.next == nil:
			return 1
		}
		return 2
	}
	least := 0
	for _, c := range cl.conns {
		if c.quit {
			continue
		}
		far, load := strange(c), len(c.flight)+len(c.queue)
		if best == nil || far < strange(best) || far == strange(best) && load < least {
			best, least = c, load
		}
	}
	if narrow {
		cl.only = best
	}
	return best
}

// disturbedLocked tells whether an orphan may still write to the blocks of r.
func (cl *client) disturbedLocked(r *request) bool {
	for _, c := range cl.conns {
		for _, o := range c.flight {
			if o.orphan() && r.touches(o.off+o.pos, o.n) {
				return true
			}
		}
	}
	return false
}

// transfer starts b, of which n bytes from byte off on are on the disk.
func (cl *client) transfer(b *devsw.Buf, off, n int64, exp *export) {
	cl.mu.Lock()
	r := cl.newLocked()
	r.buf, r.off, r.total = b, off, n
	if b.Op == devsw.BWrite {
		r.cmd = cmdWrite
		if b.Flags&devsw.BMediaFUA != 0 || exp.onlyFUA() {
			r.durable(exp)
		}
	}
	cl.enqueueLocked(r)
	cl.unlock(nil)
}

// durable makes a request be on stable storage when it ends, where the server can do that.
func (r *request) durable(exp *export) {
	switch {
	case exp.has(sendFUA):
		r.flags |= cmdFlagFUA
	case exp.has(sendFlush):
		r.thenFlush = true
	}
}

// do has the server do something without a payload, and waits for it.
func (cl *client) do(cmd, flags uint16, off, n int64) devsw.Errno {
	wait := make(chan devsw.Errno, 1)
	cl.mu.Lock()
	r := cl.newLocked()
	r.cmd, r.flags, r.off, r.total, r.wait = cmd, flags, off, n, wait
	cl.enqueueLocked(r)
	cl.unlock(nil)
	return <-wait
}

// giveUp ends everything with ECANCELED, now and from now on. The connections go when the server
// has answered, or dropped, what may still change the disk, and then the server is stopped; done is
// closed then. It does not wait.
func (cl *client) giveUp() {
	cl.stop()
	cl.mu.Lock()
	if !cl.givenUp {
		go cl.end()
	}
	cl.givenUp = true
	if cl.timer != nil {
		cl.timer.Stop()
		cl.timer = nil
	}
	all := append(cl.pending.take(), cl.held.take()...)
	for _, c := range cl.conns {
		all = append(all, c.queue.take()...)
	}
	slices.SortFunc(all, func(a, b *request) int { return cmp.Compare(a.seq, b.seq) })
	for _, r := range all {
		cl.finishLocked(r, devsw.ECANCELED)
	}
	for _, c := range cl.conns {
		c.giveUpLocked()
	}
	cl.unlock(nil)
}

// kill ends the connections, and the server where it is the driver's, whatever it may still do. It
// comes once, after giveUp, and does not wait.
func (cl *client) kill() {
	close(cl.killed)
	cl.mu.Lock()
	conns := slices.Clone(cl.conns)
	cl.mu.Unlock()
	for _, c := range conns {
		c.hangUp()
	}
}

// cancelBuf ends b with ECANCELED, if it is here.
func (cl *client) cancelBuf(b *devsw.Buf) {
	cl.mu.Lock()
	defer cl.unlock(nil)
	r, ok := cl.of.Find(b, cl.seq, cl.transfersLocked)
	if !ok {
		return
	}
	waited := cl.pending.remove(r) || cl.held.remove(r)
	for _, c := range cl.conns {
		if c.flight[r.cookie] == r {
			c.interruptLocked(r)
			return
		}
		waited = waited || c.queue.remove(r)
	}
	if waited {
		cl.finishLocked(r, devsw.ECANCELED)
		cl.releaseLocked(r)
	}
}

// transfersLocked yields the transfers that are not finished, with their requests.
func (cl *client) transfersLocked(yield func(*devsw.Buf, *request) bool) {
	each := func(r *request) bool { return r.buf == nil || yield(r.buf, r) }
	for _, list := range []requests{cl.pending, cl.held} {
		for _, r := range list {
			if !each(r) {
				return
			}
		}
	}
	for _, c := range cl.conns {
		for _, r := range c.queue {
			if !each(r) {
				return
			}
		}
		for _, r := range c.flight {
			if !each(r) {
				return
			}
		}
	}
}
