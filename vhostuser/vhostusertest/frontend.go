// Package vhostusertest is a vhost-user front-end in Go, for tests and benchmarks of back-ends: it
// does what QEMU does on the other end of the socket. A Frontend sends single messages: well-formed
// ones by methods of their own, and any others with Send. Handshake, AddMemory and Ring send them
// in QEMU's order.
//
// A Frontend belongs to one goroutine, and so does a Ring. Guest memory, and the guest driver's
// side of the rings, are those of package virtqtest.
package vhostusertest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/virtq/virtqtest"
)

// Timeout is how long a Frontend waits for a back-end before it gives up with an error.
const Timeout = 30 * time.Second

// ErrRefused is wrapped when a back-end acknowledges a message with a number other than 0, or
// answers GET_CONFIG without a payload.
var ErrRefused = errors.New("refused by the back-end")

// ErrHungUp is wrapped when the back-end has hung up or ended, whether a message was to be sent or
// received.
var ErrHungUp = errors.New("the back-end has hung up")

// hungUp returns ErrHungUp where an error of the connection tells that, or else the error. The
// system says EPIPE to who writes. To who reads, it says ECONNRESET if the back-end has not read
// everything.
func hungUp(err error) error {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, end) {
			return ErrHungUp
		}
	}
	return err
}

// Socket is what a Frontend needs of a connected Unix socket.
type Socket interface {
	io.ReadWriteCloser
	// ReadMsgUnix and WriteMsgUnix are those of a net.UnixConn, whose oob has descriptors.
	ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error)
	WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error)
	// SetReadDeadline and SetWriteDeadline are those of a net.Conn.
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// Frontend is a connection to a back-end.
type Frontend struct {
	conn     Socket
	protocol vhostuser.ProtocolFeatures
	features uint64
	channel  *net.UnixConn // our end of the back-end channel
}

// Dial connects to a back-end that listens on path.
func Dial(path string) (*Frontend, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return New(c), nil
}

// New uses a connected socket, which it owns.
func New(c Socket) *Frontend { return &Frontend{conn: c} }

// Pair returns a front-end and the socket for the back-end it is connected to.
func Pair() (*Frontend, *net.UnixConn, error) {
	a, b, err := sys.SocketPair()
	if err != nil {
		return nil, nil, err
	}
	return New(a), b, nil
}

// Close hangs up.
func (f *Frontend) Close() error {
	if f.channel != nil {
		f.channel.Close()
		f.channel = nil
	}
	return f.conn.Close()
}

// Conn returns the connection, for what a Frontend does not do. It is nil where that is no socket
// of the system's.
func (f *Frontend) Conn() *net.UnixConn {
	c, _ := f.conn.(*net.UnixConn)
	return c
}

// Channel returns our end of the back-end channel, nil before SetBackendReqFD. It stays f's, which
// closes it when there is another one.
func (f *Frontend) Channel() *net.UnixConn { return f.channel }

// Features returns what SetFeatures sent last.
func (f *Frontend) Features() uint64 { return f.features }

// ProtocolFeatures returns what SetProtocolFeatures sent last.
func (f *Frontend) ProtocolFeatures() vhostuser.ProtocolFeatures { return f.protocol }

// Send sends a message as it is told, with the descriptors fds, which stay the caller's.
func (f *Frontend) Send(h vhostuser.Header, payload []byte, fds ...int) error {
	return f.SendRaw(append(h.Append(nil), payload...), fds...)
}

// SendRaw sends bytes, with the descriptors fds.
func (f *Frontend) SendRaw(b []byte, fds ...int) error {
	f.conn.SetWriteDeadline(time.Now().Add(Timeout))
	n, _, err := f.conn.WriteMsgUnix(b, sys.Rights(fds...), nil)
	if err == nil && n < len(b) {
		_, err = f.conn.Write(b[n:])
	}
	return hungUp(err)
}

// Request sends a request of version 1 with these further flags.
func (f *Frontend) Request(req vhostuser.Request, flags uint32, payload []byte, fds ...int) error {
	h := vhostuser.Header{Request: uint32(req), Flags: vhostuser.FlagVersion | flags, Size: uint32(len(payload))}
	if err := f.Send(h, payload, fds...); err != nil {
		return fmt.Errorf("%v: %w", req, err)
	}
	return nil
}

// Receive reads the next message of the back-end.
func (f *Frontend) Receive() (vhostuser.Header, []byte, error) {
	return receive(f.conn)
}

func receive(c Socket) (vhostuser.Header, []byte, error) {
	c.SetReadDeadline(time.Now().Add(Timeout))
	var b [vhostuser.HeaderSize]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return vhostuser.Header{}, nil, hungUp(err)
	}
	h := vhostuser.ParseHeader(b[:])
	if h.Size > 1<<16 {
		return h, nil, fmt.Errorf("message of %d bytes", h.Size)
	}
	p := make([]byte, h.Size)
	_, err := io.ReadFull(c, p)
	return h, p, hungUp(err)
}

// Ask sends a request that has a reply of its own, and returns the reply's payload.
func (f *Frontend) Ask(req vhostuser.Request, payload []byte, fds ...int) ([]byte, error) {
	if err := f.Request(req, 0, payload, fds...); err != nil {
		return nil, err
	}
	return f.reply(req)
}

func (f *Frontend) reply(req vhostuser.Request) ([]byte, error) {
	h, p, err := f.Receive()
	if err != nil {
		return nil, fmt.Errorf("%v: %w", req, err)
	}
	if want := vhostuser.FlagVersion | vhostuser.FlagReply; h.Request != uint32(req) || h.Flags != want {
		return nil, fmt.Errorf("%v: answered by %v, flags %#x", req, vhostuser.Request(h.Request), h.Flags)
	}
	return p, nil
}

// Tell sends a request without a reply of its own. Where REPLY_ACK was negotiated it asks for an
// acknowledgement and waits for it; ErrRefused is a bad one. Otherwise it returns at once.
func (f *Frontend) Tell(req vhostuser.Request, payload []byte, fds ...int) error {
	if f.protocol&vhostuser.ProtocolReplyAck == 0 {
		return f.Request(req, 0, payload, fds...)
	}
	if err := f.Request(req, vhostuser.FlagNeedReply, payload, fds...); err != nil {
		return err
	}
	p, err := f.reply(req)
	if err != nil {
		return err
	}
	if len(p) != 8 {
		return fmt.Errorf("%v: acknowledgement of %d bytes", req, len(p))
	}
	if v := vhostuser.ParseU64(p); v != 0 {
		return fmt.Errorf("%v: %w (%d)", req, ErrRefused, v)
	}
	return nil
}

// Barrier returns when the back-end has handled all messages before it.
func (f *Frontend) Barrier() error {
	_, err := f.GetFeatures()
	return err
}

func (f *Frontend) askU64(req vhostuser.Request) (uint64, error) {
	p, err := f.Ask(req, nil)
	if err != nil {
		return 0, err
	}
	if len(p) != 8 {
		return 0, fmt.Errorf("%v: reply of %d bytes", req, len(p))
	}
	return vhostuser.ParseU64(p), nil
}

func (f *Frontend) tellU64(req vhostuser.Request, v uint64) error {
	return f.Tell(req, vhostuser.AppendU64(nil, v))
}

func (f *Frontend) tellState(req vhostuser.Request, index int, num uint32) error {
	return f.Tell(req, vhostuser.VringState{Index: uint32(index), Num: num}.Append(nil))
}

// tellFD sends a ring's descriptor, none where fd is negative.
func (f *Frontend) tellFD(req vhostuser.Request, index, fd int) error {
	v := uint64(index)
	if fd < 0 {
		return f.tellU64(req, v|vhostuser.VringNoFD)
	}
	return f.Tell(req, vhostuser.AppendU64(nil, v), fd)
}

// GetFeatures asks for the features offered.
func (f *Frontend) GetFeatures() (uint64, error) { return f.askU64(vhostuser.GetFeatures) }

// SetFeatures negotiates features.
func (f *Frontend) SetFeatures(features uint64) error {
	f.features = features
	return f.tellU64(vhostuser.SetFeatures, features)
}

// GetProtocolFeatures asks for the protocol features offered.
func (f *Frontend) GetProtocolFeatures() (vhostuser.ProtocolFeatures, error) {
	v, err := f.askU64(vhostuser.GetProtocolFeatures)
	return vhostuser.ProtocolFeatures(v), err
}

// SetProtocolFeatures negotiates protocol features. It never asks for an acknowledgement.
func (f *Frontend) SetProtocolFeatures(p vhostuser.ProtocolFeatures) error {
	f.protocol = p
	return f.Request(vhostuser.SetProtocolFeatures, 0, vhostuser.AppendU64(nil, uint64(p)))
}

// SetOwner starts a session.
func (f *Frontend) SetOwner() error { return f.Tell(vhostuser.SetOwner, nil) }

// ResetOwner disables all rings, by the message that is deprecated.
func (f *Frontend) ResetOwner() error { return f.Tell(vhostuser.ResetOwner, nil) }

// ResetDevice resets the device.
func (f *Frontend) ResetDevice() error { return f.Tell(vhostuser.ResetDevice, nil) }

// GetQueueNum asks for the number of queues.
func (f *Frontend) GetQueueNum() (int, error) {
	v, err := f.askU64(vhostuser.GetQueueNum)
	return int(v), err
}

// GetMaxMemSlots asks for the number of memory regions that the back-end takes.
func (f *Frontend) GetMaxMemSlots() (int, error) {
	v, err := f.askU64(vhostuser.GetMaxMemSlots)
	return int(v), err
}

// GetStatus asks for the device status.
func (f *Frontend) GetStatus() (uint8, error) {
	v, err := f.askU64(vhostuser.GetStatus)
	return uint8(v), err
}

// SetStatus sets the device status.
func (f *Frontend) SetStatus(status uint8) error {
	return f.tellU64(vhostuser.SetStatus, uint64(status))
}

// GetConfig reads n bytes of the configuration space from off on.
func (f *Frontend) GetConfig(off, n int) ([]byte, error) {
	p, err := f.Ask(vhostuser.GetConfig, vhostuser.ConfigSpace{Offset: uint32(off), Data: make([]byte, n)}.Append(nil))
	if err != nil {
		return nil, err
	}
	if len(p) == 0 {
		return nil, fmt.Errorf("GET_CONFIG: %w", ErrRefused)
	}
	c, err := vhostuser.ParseConfigSpace(p)
	if err != nil || c.Offset != uint32(off) || len(c.Data) != n {
		return nil, fmt.Errorf("GET_CONFIG: reply for %d bytes at %d: %w", len(c.Data), c.Offset, err)
	}
	return c.Data, nil
}

// SetConfig writes to the configuration space, as the guest does.
func (f *Frontend) SetConfig(off int, p []byte) error {
	return f.Tell(vhostuser.SetConfig, vhostuser.ConfigSpace{Offset: uint32(off), Data: p}.Append(nil))
}

// describe returns regions of m as messages have them.
func describe(regions []virtqtest.Region) []vhostuser.MemoryRegion {
	out := make([]vhostuser.MemoryRegion, len(regions))
	for i, r := range regions {
		out[i] = vhostuser.MemoryRegion(r)
	}
	return out
}

// SetMemTable makes m all of guest memory.
func (f *Frontend) SetMemTable(m *virtqtest.Mem) error {
	regions := describe(m.Regions())
	fds := make([]int, len(regions))
	for i := range fds {
		fds[i] = m.FD()
	}
	return f.Tell(vhostuser.SetMemTable, vhostuser.AppendMemoryTable(nil, regions), fds...)
}

// AddMemReg adds a region of the file fd to guest memory.
func (f *Frontend) AddMemReg(r vhostuser.MemoryRegion, fd int) error {
	return f.Tell(vhostuser.AddMemReg, r.Append(nil), fd)
}

// RemMemReg removes a region from guest memory.
func (f *Frontend) RemMemReg(r vhostuser.MemoryRegion) error {
	return f.Tell(vhostuser.RemMemReg, r.Append(nil))
}

// AddMemory adds every region of m to guest memory: one by one where CONFIGURE_MEM_SLOTS was
// negotiated, else by one SET_MEM_TABLE.
func (f *Frontend) AddMemory(m *virtqtest.Mem) error {
	if f.protocol&vhostuser.ProtocolConfigureMemSlots == 0 {
		return f.SetMemTable(m)
	}
	for _, r := range describe(m.Regions()) {
		if err := f.AddMemReg(r, m.FD()); err != nil {
			return err
		}
	}
	return nil
}

// RemoveMemory removes every region of m again.
func (f *Frontend) RemoveMemory(m *virtqtest.Mem) error {
	for _, r := range describe(m.Regions()) {
		if err := f.RemMemReg(r); err != nil {
			return err
		}
	}
	return nil
}

// SetVringNum sets the size of a ring.
func (f *Frontend) SetVringNum(index int, num uint32) error {
	return f.tellState(vhostuser.SetVringNum, index, num)
}

// SetVringBase sets where a ring begins.
func (f *Frontend) SetVringBase(index int, base uint32) error {
	return f.tellState(vhostuser.SetVringBase, index, base)
}

// SetVringAddr sets the addresses of a ring.
func (f *Frontend) SetVringAddr(a vhostuser.VringAddr) error {
	return f.Tell(vhostuser.SetVringAddr, a.Append(nil))
}

// SetVringEnable enables or disables a ring.
func (f *Frontend) SetVringEnable(index int, enable bool) error {
	num := uint32(0)
	if enable {
		num = 1
	}
	return f.tellState(vhostuser.SetVringEnable, index, num)
}

// GetVringBase stops a ring and returns where it is to begin again.
func (f *Frontend) GetVringBase(index int) (uint16, error) {
	p, err := f.Ask(vhostuser.GetVringBase, vhostuser.VringState{Index: uint32(index)}.Append(nil))
	if err != nil {
		return 0, err
	}
	if len(p) != 8 {
		return 0, fmt.Errorf("GET_VRING_BASE: reply of %d bytes", len(p))
	}
	s := vhostuser.ParseVringState(p)
	if s.Index != uint32(index) || s.Num > 0xffff {
		return 0, fmt.Errorf("GET_VRING_BASE of ring %d: reply for ring %d, %#x", index, s.Index, s.Num)
	}
	return uint16(s.Num), nil
}

// SetVringKick starts a ring. With fd -1 it is to be polled.
func (f *Frontend) SetVringKick(index, fd int) error {
	return f.tellFD(vhostuser.SetVringKick, index, fd)
}

// SetVringCall sets where a ring's completions are signalled; -1 for nowhere.
func (f *Frontend) SetVringCall(index, fd int) error {
	return f.tellFD(vhostuser.SetVringCall, index, fd)
}

// SetVringErr sets where a broken ring is signalled; -1 for nowhere.
func (f *Frontend) SetVringErr(index, fd int) error {
	return f.tellFD(vhostuser.SetVringErr, index, fd)
}

// SetBackendReqFD gives the back-end a channel for messages of its own, which ReceiveBackend reads.
// It replaces the one before.
func (f *Frontend) SetBackendReqFD() error {
	ours, theirs, err := sys.SocketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	if f.channel != nil {
		f.channel.Close()
	}
	f.channel = ours
	raw, err := theirs.SyscallConn()
	if err != nil {
		return err
	}
	var told error
	if err := raw.Control(func(fd uintptr) { told = f.Tell(vhostuser.SetBackendReqFD, nil, int(fd)) }); err != nil {
		return err
	}
	return told
}

// ReceiveBackend reads the next message of the back-end channel.
func (f *Frontend) ReceiveBackend() (vhostuser.BackendRequest, error) {
	h, _, err := receive(f.channel)
	return vhostuser.BackendRequest(h.Request), err
}

// BackendQuiet tells whether nothing waits on the back-end channel.
func (f *Frontend) BackendQuiet() bool {
	raw, err := f.channel.SyscallConn()
	quiet := false
	if err == nil {
		err = raw.Control(func(fd uintptr) { quiet = !sys.Readable(int(fd)) })
	}
	return err == nil && quiet
}

// Handshake begins a session as QEMU does at device_add, also for another one on the same
// connection: features, protocol features (all that are offered and in want), number of queues,
// memory slots, back-end channel, SET_OWNER, and features once more. It returns the features
// offered.
func (f *Frontend) Handshake(want vhostuser.ProtocolFeatures) (features uint64, err error) {
	if _, err := f.GetFeatures(); err != nil {
		return 0, err
	}
	offered, err := f.GetProtocolFeatures()
	if err != nil {
		return 0, err
	}
	if err := f.SetProtocolFeatures(offered & want); err != nil {
		return 0, err
	}
	if f.protocol&vhostuser.ProtocolMQ != 0 {
		if _, err := f.GetQueueNum(); err != nil {
			return 0, err
		}
	}
	if f.protocol&vhostuser.ProtocolConfigureMemSlots != 0 {
		if _, err := f.GetMaxMemSlots(); err != nil {
			return 0, err
		}
	}
	if f.protocol&vhostuser.ProtocolBackendReq != 0 {
		if err := f.SetBackendReqFD(); err != nil {
			return 0, err
		}
	}
	// QEMU never asks for an acknowledgement of SET_OWNER.
	if err := f.Request(vhostuser.SetOwner, 0, nil); err != nil {
		return 0, err
	}
	return f.GetFeatures()
}

// AllProtocolFeatures is a want for Handshake: whatever is offered.
const AllProtocolFeatures = ^vhostuser.ProtocolFeatures(0)
