package qtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

// Registers of a virtio device on a memory bus (virtio 1.2, 4.2.2).
const (
	regDeviceID      = 0x008
	regFeatures      = 0x010 // DeviceFeatures
	regFeaturesSel   = 0x014
	regDriver        = 0x020 // DriverFeatures
	regDriverSel     = 0x024
	regQueueSel      = 0x030
	regQueueNum      = 0x038
	regQueueReady    = 0x044
	regQueueNotify   = 0x050
	regInterruptACK  = 0x064
	regStatus        = 0x070
	regQueueDesc     = 0x080 // low, and high after it
	regQueueDriver   = 0x090
	regQueueDevice   = 0x0a0
	regConfig        = 0x100
	deviceID         = 3 // VIRTIO_ID_CONSOLE
	statusDriver     = 1 | 2
	statusFeaturesOK = statusDriver | 8
	statusDriverOK   = statusFeaturesOK | 4
)

// queues is how many virtqueues the device has.
const queues = 2 * (maxPorts + 1)

// bridge is one connection of a front-end.
type bridge struct {
	q    *QEMU
	conn *net.UnixConn

	regions []vhostuser.MemoryRegion
	ring    [queues]ring
	live    bool // the driver is

	epoll *sys.Epoll
	stop  *sys.FD
	kicks sync.WaitGroup

	mu    sync.Mutex
	calls [queues]*sys.FD
}

type ring struct {
	num  uint32
	addr vhostuser.VringAddr
	kick *sys.FD
}

// Connect makes a front-end whose back-end is QEMU's device. There is one at a time: the one before
// has hung up.
func (q *QEMU) Connect() (*vhostusertest.Frontend, error) {
	front, theirs, err := vhostusertest.Pair()
	if err != nil {
		return nil, err
	}
	b := &bridge{q: q, conn: theirs}
	if b.epoll, err = sys.NewEpoll(); err == nil {
		b.stop, err = sys.NewEventfd()
	}
	if err == nil {
		err = b.epoll.Add(b.stop.Int(), queues)
	}
	if err != nil {
		front.Close()
		theirs.Close()
		return nil, err
	}
	q.sessions.Wait()
	b.kicks.Go(b.pass)
	q.sessions.Go(b.serve)
	return front, nil
}

// pass passes kicks on.
func (b *bridge) pass() {
	runtime.LockOSThread()
	var lines [queues][]byte
	for i := range lines {
		lines[i] = fmt.Appendf(nil, "writel %#x %#x\n", base+regQueueNotify, i)
	}
	ended := false
	for !ended {
		err := b.epoll.Wait(-1, func(tag uint64) {
			if tag == queues {
				ended = true
			} else if b.q.send(lines[tag], nil) != nil {
				ended = true
			}
		})
		if err != nil {
			return
		}
	}
}

// serve answers the front-end until it hangs up.
func (b *bridge) serve() {
	err := b.messages()
	if err != nil && !errors.Is(err, io.EOF) {
		b.q.log(err)
	}
	b.conn.Close()
	_ = sys.EventfdWrite(b.stop.Int())
	b.kicks.Wait()
	_ = b.reset()
	b.q.onInterrupt(nil)
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.ring {
		for _, fd := range []*sys.FD{b.ring[i].kick, b.calls[i]} {
			if fd != nil {
				fd.Close()
			}
		}
	}
	b.stop.Close()
	b.epoll.Close()
}

func (b *bridge) messages() error {
	buf, oob := make([]byte, 4096), make([]byte, 512)
	for {
		var head [vhostuser.HeaderSize]byte
		n, oobn, _, _, err := b.conn.ReadMsgUnix(head[:], oob)
		if err != nil {
			return err
		}
		fds, err := sys.ParseRights(oob[:oobn])
		if err != nil {
			return err
		}
		if n == 0 {
			return io.EOF
		}
		if _, err := io.ReadFull(b.conn, head[n:]); err != nil {
			return err
		}
		h := vhostuser.ParseHeader(head[:])
		p := buf[:h.Size]
		if _, err := io.ReadFull(b.conn, p); err != nil {
			return err
		}
		reply, err := b.message(vhostuser.Request(h.Request), p, &fds)
		sys.CloseAll(fds)
		if err != nil {
			return fmt.Errorf("%v: %w", vhostuser.Request(h.Request), err)
		}
		if reply == nil && h.Flags&vhostuser.FlagNeedReply != 0 {
			reply = vhostuser.AppendU64(nil, 0)
		}
		if reply == nil {
			continue
		}
		h.Flags, h.Size = vhostuser.FlagVersion|vhostuser.FlagReply, uint32(len(reply))
		if _, err := b.conn.Write(append(h.Append(nil), reply...)); err != nil {
			return err
		}
	}
}

// message does what a message says, and returns its own reply, nil for none. It takes those of fds
// that it keeps.
func (b *bridge) message(req vhostuser.Request, p []byte, fds *[]*sys.FD) ([]byte, error) {
	take := func() (fd *sys.FD) {
		if len(*fds) > 0 {
			fd, *fds = (*fds)[0], (*fds)[1:]
		}
		return fd
	}
	u64 := func(v uint64) ([]byte, error) { return vhostuser.AppendU64(nil, v), nil }
	switch req {
	case vhostuser.GetFeatures:
		f, err := b.features()
		if err != nil {
			return nil, err
		}
		return u64(f | vhostuser.FProtocolFeatures)
	case vhostuser.GetProtocolFeatures:
		return u64(uint64(vhostuser.ProtocolMQ | vhostuser.ProtocolConfig | vhostuser.ProtocolReplyAck))
	case vhostuser.GetQueueNum:
		return u64(queues)
	case vhostuser.SetProtocolFeatures, vhostuser.SetOwner, vhostuser.SetVringErr, vhostuser.SetVringBase:
		return nil, nil
	case vhostuser.SetMemTable:
		var err error
		b.regions, err = vhostuser.ParseMemoryTable(p)
		return nil, err
	case vhostuser.GetConfig:
		c, err := vhostuser.ParseConfigSpace(p)
		if err != nil {
			return nil, err
		}
		for i := range c.Data {
			v, err := b.q.ask(fmt.Sprintf("readb %#x", base+regConfig+int(c.Offset)+i))
			if err != nil {
				return nil, err
			}
			c.Data[i] = byte(v)
		}
		return c.Append(nil), nil
	case vhostuser.SetFeatures:
		return nil, b.negotiate(vhostuser.ParseU64(p) &^ vhostuser.FProtocolFeatures)
	case vhostuser.SetVringNum:
		s := vhostuser.ParseVringState(p)
		return nil, b.with(s.Index, func(r *ring) error { r.num = s.Num; return nil })
	case vhostuser.SetVringAddr:
		a := vhostuser.ParseVringAddr(p)
		return nil, b.with(a.Index, func(r *ring) error { r.addr = a; return nil })
	case vhostuser.SetVringCall:
		i, fd := uint32(vhostuser.ParseU64(p)), take()
		return nil, b.with(i, func(*ring) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if old := b.calls[i]; old != nil {
				old.Close()
			}
			b.calls[i] = fd
			return nil
		})
	case vhostuser.SetVringKick:
		i, fd := uint32(vhostuser.ParseU64(p)), take()
		return nil, b.with(i, func(r *ring) error {
			if r.kick != nil {
				_ = b.epoll.Remove(r.kick.Int())
				r.kick.Close()
			}
			r.kick = fd
			return errors.Join(b.setUp(int(i)), b.epoll.Add(fd.Int(), uint64(i)))
		})
	case vhostuser.SetVringEnable:
		on := vhostuser.ParseVringState(p).Num != 0
		switch {
		case on && !b.live:
			b.live = true
			b.q.onInterrupt(b.called)
			return nil, b.q.set(regStatus, statusDriverOK)
		case !on && b.live:
			return nil, b.reset()
		}
		return nil, nil
	case vhostuser.GetVringBase:
		return vhostuser.VringState{Index: vhostuser.ParseVringState(p).Index}.Append(nil), nil
	}
	return nil, errors.New("not known here")
}

func (b *bridge) with(i uint32, do func(*ring) error) error {
	if i >= queues {
		return fmt.Errorf("ring %d", i)
	}
	return do(&b.ring[i])
}

// called tells the guest driver of an interrupt, which does not say of which ring.
func (b *bridge) called() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, fd := range b.calls {
		if fd != nil {
			_ = sys.EventfdWrite(fd.Int())
		}
	}
}

func (b *bridge) reset() error {
	b.live = false
	return b.q.set(regStatus, 0)
}

// features reads the features that the device offers.
func (b *bridge) features() (f uint64, err error) {
	for half := range uint32(2) {
		if err := b.q.set(regFeaturesSel, half); err != nil {
			return 0, err
		}
		v, err := b.q.get(regFeatures)
		if err != nil {
			return 0, err
		}
		f |= uint64(v) << (32 * half)
	}
	return f, nil
}

// negotiate has a driver begin.
func (b *bridge) negotiate(f uint64) error {
	if err := errors.Join(b.reset(), b.q.set(regStatus, statusDriver)); err != nil {
		return err
	}
	for half := range uint32(2) {
		if err := errors.Join(b.q.set(regDriverSel, half), b.q.set(regDriver, uint32(f>>(32*half)))); err != nil {
			return err
		}
	}
	if err := b.q.set(regStatus, statusFeaturesOK); err != nil {
		return err
	}
	if s, err := b.q.get(regStatus); err != nil || s != statusFeaturesOK {
		return fmt.Errorf("features %#x: status %#x: %w", f, s, err)
	}
	return nil
}

// setUp tells the device where a ring is.
func (b *bridge) setUp(i int) error {
	r := &b.ring[i]
	errs := []error{b.q.set(regQueueSel, uint32(i)), b.q.set(regQueueNum, r.num)}
	for reg, user := range map[int]uint64{regQueueDesc: r.addr.Desc, regQueueDriver: r.addr.Avail, regQueueDevice: r.addr.Used} {
		phys, err := b.phys(user)
		errs = append(errs, err, b.q.set(reg, uint32(phys)), b.q.set(reg+4, uint32(phys>>32)))
	}
	return errors.Join(append(errs, b.q.set(regQueueReady, 1))...)
}

// phys gives the guest physical address of one in the front-end's address space.
func (b *bridge) phys(user uint64) (uint64, error) {
	for _, r := range b.regions {
		if off := user - r.UserAddr; off < r.Size {
			return r.GuestPhys + off, nil
		}
	}
	return 0, fmt.Errorf("address %#x is not in guest memory", user)
}
