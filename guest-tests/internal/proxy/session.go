package proxy

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
)

// session is one connection of a front-end.
type session struct {
	proxy       *Proxy
	front, back *net.UnixConn
	epoll       *sys.Epoll
	quit        *sys.FD // an eventfd that ends the goroutine behind epoll
	pid         int     // of the front-end
	wait        sync.WaitGroup

	mu       sync.Mutex
	regions  []*region
	rings    map[uint32]*ring
	inflight *inflight
	calls    map[uint64]*call // by their number in epoll
	nextCall uint64
	asked    time.Time // when the last GET_VRING_BASE went to the back-end
	counted  uint64    // used elements of starts that are over
}

// region is a part of guest memory, mapped.
type region struct {
	vhostuser.MemoryRegion
	fd  *sys.FD
	mem []byte
}

// ring is what the front-end has said of a split ring.
type ring struct {
	num     uint32
	addr    vhostuser.VringAddr
	started bool
	first   uint16 // used.idx when it was started
	last    uint16 // of completed, the last seen
	done    uint64 // used elements since it was started
	calls   []*call
}

// call hands on signals from the back-end (mine) to the front-end (theirs).
type call struct {
	id     uint64
	ring   uint32
	mine   *sys.FD
	theirs *sys.FD
}

// inflight is the region of SET_INFLIGHT_FD, as vdev lays it out: one part for each queue, each a
// multiple of 64 bytes.
type inflight struct {
	mem    []byte
	queues int
	size   int
}

const (
	inflightHead  = 16 // bytes before the descriptors' states (vhost-user, "Inflight I/O tracking")
	inflightState = 16
)

// marked returns the heads of a queue that are recorded as under way.
func (f *inflight) marked(queue int) (heads []uint16) {
	part := (inflightHead + inflightState*f.size + 63) &^ 63
	if queue >= f.queues || (queue+1)*part > len(f.mem) {
		return nil
	}
	states := f.mem[queue*part+inflightHead:]
	for i := range f.size {
		if states[i*inflightState] == 1 {
			heads = append(heads, uint16(i))
		}
	}
	return heads
}

func newSession(p *Proxy, front, back *net.UnixConn) (*session, error) {
	pid, err := peer(front)
	if err != nil {
		return nil, err
	}
	epoll, err := sys.NewEpoll()
	if err != nil {
		return nil, err
	}
	quit, err := sys.NewEventfd()
	if err != nil {
		epoll.Close()
		return nil, err
	}
	s := &session{proxy: p, front: front, back: back, epoll: epoll, quit: quit, pid: pid,
		rings: map[uint32]*ring{}, calls: map[uint64]*call{}, nextCall: 1}
	if err := epoll.Add(quit.Int(), 0); err != nil {
		epoll.Close()
		quit.Close()
		return nil, err
	}
	return s, nil
}

// peer returns the process at the other end of a connection.
func peer(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// shut makes run return.
func (s *session) shut() {
	s.front.Close()
	s.back.Close()
}

// run hands messages on until one of the sides has gone, and returns when nothing of the session
// moves any more.
func (s *session) run() {
	ended := make(chan struct{})
	var left atomic.Bool // the front-end has gone, and first
	var died bool        // the back-end has
	s.wait.Go(func() {
		defer close(ended)
		for {
			m, err := receive(s.back)
			if err != nil {
				died = !left.Load()
				s.front.Close()
				return
			}
			s.fromBack(m)
			if m.send(s.front) != nil {
				continue // the other direction tells the back-end
			}
		}
	})
	s.wait.Go(s.signals)
	for {
		m, err := receive(s.front)
		if err != nil {
			break
		}
		s.fromFront(m)
		if m.send(s.back) != nil {
			break
		}
	}
	left.Store(true)
	s.front.Close()
	s.back.CloseWrite()
	select {
	case <-ended:
		if !died {
			s.proxy.running(false)
			s.ended()
		}
	case <-time.After(brokenLimit):
		s.proxy.find("the back-end has not closed its side %v after QEMU had", brokenLimit)
	}
	s.back.Close()
	_ = sys.EventfdWrite(s.quit.Int())
	s.wait.Wait()
}

// exitLimit is how long QEMU may take to exit once it has closed its connection, if it does exit.
const exitLimit = time.Second

// gone waits until the front-end's process is no more. It may live on: a device can be taken out
// with its chardev.
func (s *session) gone() bool {
	for begin := time.Now(); time.Since(begin) < exitLimit; time.Sleep(5 * time.Millisecond) {
		if syscall.Kill(s.pid, 0) != nil {
			return true
		}
	}
	return false
}

// ended watches guest memory after the connection's end, which the back-end has handled: it has
// closed its side.
func (s *session) ended() {
	p := s.proxy
	p.mu.Lock()
	hold, stopped := p.hold, p.stopped
	p.mu.Unlock()
	if hold == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.regions) == 0 || !s.gone() {
		return
	}
	before, err := s.snapshot()
	if err == nil {
		if stopped != nil {
			stopped()
		}
		time.Sleep(10 * hold)
		_, err = s.compare(before, "after the connection's end")
	}
	if err != nil {
		p.find("the proxy cannot look at guest memory: %v", err)
		return
	}
	p.update(func(r *Report) { r.Ends++ })
}

func (s *session) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		c.mine.Close()
		c.theirs.Close()
	}
	s.quit.Close()
	s.epoll.Close()
	for _, r := range s.regions {
		r.release()
	}
	s.regions = nil
	if s.inflight != nil {
		_ = sys.Munmap(s.inflight.mem)
		s.inflight = nil
	}
}

func (r *region) release() {
	_ = sys.Munmap(r.mem)
	r.fd.Close()
}

// signals hands on what the back-end signals.
func (s *session) signals() {
	for quit := false; !quit; {
		err := s.epoll.Wait(-1, func(id uint64) {
			if id == 0 {
				quit = true
				return
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if c := s.calls[id]; c != nil {
				s.handOnLocked(c)
			}
		})
		if err != nil {
			s.proxy.find("the proxy cannot wait: %v", err)
			return
		}
	}
}

// handOnLocked takes a signal, if there is one, and gives it to the front-end.
func (s *session) handOnLocked(c *call) {
	if _, err := sys.EventfdRead(c.mine.Int()); err != nil {
		return
	}
	if r := s.rings[c.ring]; r != nil && !r.started {
		s.proxy.find("ring %d: a call after the ring had stopped", c.ring)
	}
	_ = sys.EventfdWrite(c.theirs.Int())
}

func (s *session) ring(index uint32) *ring {
	if s.rings[index] == nil {
		s.rings[index] = new(ring)
	}
	return s.rings[index]
}

// fromFront takes note of a message to the back-end, and changes SET_VRING_CALL's descriptor.
func (s *session) fromFront(m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(m.payload) < minPayload[m.request] {
		return
	}
	var err error
	switch m.request {
	case vhostuser.SetMemTable:
		var list []vhostuser.MemoryRegion
		if list, err = vhostuser.ParseMemoryTable(m.payload); err != nil || len(list) != len(m.fds) {
			break
		}
		for _, r := range s.regions {
			r.release()
		}
		s.regions = nil
		for i, r := range list {
			if err = s.addRegion(r, m.fds[i]); err != nil {
				break
			}
		}
	case vhostuser.AddMemReg:
		if len(m.fds) == 1 {
			err = s.addRegion(vhostuser.ParseMemoryRegion(m.payload), m.fds[0])
		}
	case vhostuser.RemMemReg:
		gone := vhostuser.ParseMemoryRegion(m.payload)
		for i, r := range s.regions {
			if r.GuestPhys == gone.GuestPhys && r.Size == gone.Size {
				r.release()
				s.regions = append(s.regions[:i:i], s.regions[i+1:]...)
				break
			}
		}
	case vhostuser.SetVringNum:
		v := vhostuser.ParseVringState(m.payload)
		s.ring(v.Index).num = v.Num
	case vhostuser.SetVringAddr:
		v := vhostuser.ParseVringAddr(m.payload)
		s.ring(v.Index).addr = v
	case vhostuser.SetVringKick:
		r := s.ring(uint32(vhostuser.ParseU64(m.payload) & vhostuser.VringIndexMask))
		r.started = true
		s.proxy.running(true)
		if used, ok := s.usedArea(r); ok {
			r.first = binary.LittleEndian.Uint16(used[2:])
			r.last, r.done = r.first, 0
		}
		s.proxy.update(func(r *Report) { r.Starts++ })
	case vhostuser.SetVringCall:
		err = s.interpose(m)
	case vhostuser.GetVringBase:
		s.asked = time.Now()
	case setInflightFD:
		err = s.setInflight(m)
	case vhostuser.ResetDevice:
		for _, r := range s.rings {
			r.started = false
		}
	}
	if err != nil {
		s.proxy.find("the proxy does not understand %v: %v", m.request, err)
	}
}

// minPayload is what fromFront and fromBack rely on.
var minPayload = map[vhostuser.Request]int{
	vhostuser.SetMemTable: 8, vhostuser.AddMemReg: 40, vhostuser.RemMemReg: 40, vhostuser.SetVringNum: 8, vhostuser.SetVringAddr: 40,
	vhostuser.SetVringKick: 8, vhostuser.SetVringCall: 8, vhostuser.GetVringBase: 8, setInflightFD: 20,
}

func (s *session) addRegion(r vhostuser.MemoryRegion, fd *sys.FD) error {
	for _, known := range s.regions {
		if known.GuestPhys == r.GuestPhys && known.Size == r.Size {
			return nil // a new session of the same connection
		}
	}
	mine, err := fd.Dup()
	if err != nil {
		return err
	}
	mem, err := sys.Mmap(mine.Int(), int64(r.MmapOffset), int(r.Size), true)
	if err != nil {
		mine.Close()
		return err
	}
	s.regions = append(s.regions, &region{r, mine, mem})
	return nil
}

// interpose puts an eventfd of the proxy's own in the place of the one in SET_VRING_CALL.
func (s *session) interpose(m *message) error {
	index := uint32(vhostuser.ParseU64(m.payload) & vhostuser.VringIndexMask)
	r := s.ring(index)
	if len(m.fds) != 1 {
		return nil
	}
	mine, err := sys.NewEventfd()
	if err != nil {
		return err
	}
	send, err := mine.Dup()
	if err != nil {
		mine.Close()
		return err
	}
	c := &call{id: s.nextCall, ring: index, mine: mine, theirs: m.fds[0]}
	s.nextCall++
	m.fds[0] = send
	s.calls[c.id] = c
	r.calls = append(r.calls, c)
	return s.epoll.Add(mine.Int(), c.id)
}

func (s *session) setInflight(m *message) error {
	if len(m.fds) != 1 {
		return nil
	}
	size, off := vhostuser.ParseU64(m.payload), vhostuser.ParseU64(m.payload[8:])
	mem, err := sys.Mmap(m.fds[0].Int(), int64(off), int(size), false)
	if err != nil {
		return err
	}
	if s.inflight != nil {
		_ = sys.Munmap(s.inflight.mem)
	}
	s.inflight = &inflight{mem, int(binary.NativeEndian.Uint16(m.payload[16:])), int(binary.NativeEndian.Uint16(m.payload[18:]))}
	return nil
}

// fromBack looks at an answer of the back-end before the front-end sees it.
func (s *session) fromBack(m *message) {
	if m.request != vhostuser.GetVringBase || m.flags&flagReply == 0 || len(m.payload) < 8 {
		return
	}
	p := s.proxy
	p.mu.Lock()
	hold, stopped := p.hold, p.stopped
	p.mu.Unlock()

	index := vhostuser.ParseVringState(m.payload).Index
	s.mu.Lock()
	defer s.mu.Unlock()
	took := time.Since(s.asked)
	r := s.ring(index)
	// What was signalled before the answer is no offence.
	for _, c := range r.calls {
		s.handOnLocked(c)
	}
	for len(r.calls) > 1 { // the back-end has forgotten those
		c := r.calls[0]
		r.calls = r.calls[1:]
		delete(s.calls, c.id)
		_ = s.epoll.Remove(c.mine.Int())
		c.mine.Close()
		c.theirs.Close()
	}
	was := r.started
	s.countLocked(r)
	s.counted += r.done
	r.done, r.started = 0, false
	if was && !s.startedLocked() {
		p.running(false)
	}
	pending, watched := 0, 0
	if was && hold > 0 {
		w := s.watch(index, r)
		pending, watched = w.pending, w.bytes()
		if stopped != nil {
			stopped()
		}
		time.Sleep(hold)
		w.look(p)
	}
	p.update(func(rep *Report) {
		rep.Stops++
		rep.Pending += pending
		rep.Watched += watched
		rep.LongestStop = max(rep.LongestStop, took)
	})
}

func (s *session) startedLocked() bool {
	for _, r := range s.rings {
		if r.started {
			return true
		}
	}
	return false
}

// completed counts the used elements of the session. Rings count modulo 65536, so it must be asked
// often enough.
func (s *session) completed() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.counted
	for _, r := range s.rings {
		s.countLocked(r)
		n += r.done
	}
	return n
}

func (s *session) countLocked(r *ring) {
	if !r.started {
		return
	}
	if used, ok := s.usedArea(r); ok {
		idx := binary.LittleEndian.Uint16(used[2:])
		r.done += uint64(idx - r.last)
		r.last = idx
	}
}

// user returns n bytes at an address of the front-end's.
func (s *session) user(addr uint64, n int) ([]byte, bool) {
	for _, r := range s.regions {
		if addr >= r.UserAddr && addr-r.UserAddr < r.Size && uint64(n) <= r.Size-(addr-r.UserAddr) {
			return r.mem[addr-r.UserAddr:][:n:n], true
		}
	}
	return nil, false
}

// phys returns n bytes at a guest-physical address.
func (s *session) phys(addr uint64, n int) ([]byte, bool) {
	for _, r := range s.regions {
		if addr >= r.GuestPhys && addr-r.GuestPhys < r.Size && uint64(n) <= r.Size-(addr-r.GuestPhys) {
			return r.mem[addr-r.GuestPhys:][:n:n], true
		}
	}
	return nil, false
}

// usedArea is the part of a ring that the device writes, avail_event included.
func (s *session) usedArea(r *ring) ([]byte, bool) { return s.user(r.addr.Used, 6+8*int(r.num)) }
