package vhostuser_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// A script is what FuzzConnection sends: records of a byte for the descriptors that come along (the
// number in the upper half, the kind in the lower), a byte for the length, and that many bytes of
// the stream.
type script struct{ bytes.Buffer }

const (
	fuzzEventfd = iota
	fuzzMemory
	fuzzSocket
	fuzzNull
	// no descriptor: the memory file is cut to the length's number of pages, and nothing is sent
	fuzzTruncate
	fuzzRegion // a file of regionSize bytes
	fuzzKinds
)

func (s *script) raw(kind, n byte, b []byte) {
	for first := true; first || len(b) > 0; first = false {
		k := min(len(b), 255)
		s.Write([]byte{n<<4 | kind, byte(k)})
		s.Write(b[:k])
		b, n = b[k:], 0
	}
}

func (s *script) message(kind, n byte, req vhostuser.Request, payload []byte) {
	h := vhostuser.Header{
		Request: uint32(req), Flags: vhostuser.FlagVersion | vhostuser.FlagNeedReply, Size: uint32(len(payload)),
	}
	s.raw(kind, n, append(h.Append(nil), payload...))
}

const fuzzMemSize = 1 << 16

// fuzzGuest makes the memory and the ring that the scripts know: its addresses are always the same.
func fuzzGuest(t testing.TB) (*virtqtest.Mem, *virtqtest.Driver) {
	t.Helper()
	mem, err := virtqtest.NewMem(virtqtest.Range{GuestPhys: 0, Size: fuzzMemSize})
	if err != nil {
		t.Fatal(err)
	}
	d := virtqtest.New(mem, 8, 0)
	seg := virtqtest.Seg{Addr: fuzzMemSize - 4096, Len: 16}
	d.Add([]virtqtest.Seg{seg}, []virtqtest.Seg{seg})
	d.Kick()
	return mem, d
}

// FuzzConnection feeds any bytes with any descriptors to a Backend, which must neither crash nor
// hang nor keep a descriptor.
func FuzzConnection(f *testing.F) {
	mem, d := fuzzGuest(f)
	layout := d.Layout()
	region := vhostuser.MemoryRegion(mem.Regions()[0])
	mem.Close()

	handshake := new(script)
	handshake.message(0, 0, vhostuser.GetFeatures, nil)
	handshake.message(0, 0, vhostuser.SetProtocolFeatures, vhostuser.AppendU64(nil, 0x11b629))
	handshake.message(fuzzSocket, 1, vhostuser.SetBackendReqFD, nil)
	handshake.message(0, 0, vhostuser.SetOwner, nil)
	handshake.message(0, 0, vhostuser.SetFeatures, vhostuser.AppendU64(nil, vhostuser.FProtocolFeatures))
	handshake.message(fuzzMemory, 1, vhostuser.AddMemReg, region.Append(nil))
	ring := new(script)
	state := func(n uint32) []byte { return vhostuser.VringState{Num: n}.Append(nil) }
	ring.message(fuzzEventfd, 1, vhostuser.SetVringErr, vhostuser.AppendU64(nil, 0))
	ring.message(fuzzEventfd, 1, vhostuser.SetVringCall, vhostuser.AppendU64(nil, 0))
	ring.message(0, 0, vhostuser.SetVringNum, state(8))
	ring.message(0, 0, vhostuser.SetVringBase, state(0))
	ring.message(0, 0, vhostuser.SetVringAddr, vhostuser.VringAddr{Desc: layout.Desc, Avail: layout.Avail, Used: layout.Used}.Append(nil))
	ring.message(fuzzEventfd, 1, vhostuser.SetVringKick, vhostuser.AppendU64(nil, 0))
	ring.message(0, 0, vhostuser.SetVringEnable, state(1))
	stop := new(script)
	stop.message(0, 0, vhostuser.SetVringEnable, state(0))
	stop.message(0, 0, vhostuser.GetVringBase, state(0))
	truncate := new(script)
	truncate.raw(fuzzTruncate, 0, nil)
	join := func(parts ...*script) []byte {
		var b []byte
		for _, p := range parts {
			b = append(b, p.Bytes()...)
		}
		return b
	}

	// Guest memory serves as a region, too: the descriptor table is not one of version 1, and what
	// is still zero is new.
	bad, fresh := new(script), new(script)
	bad.message(fuzzMemory, 1, vhostuser.SetInflightFD, vhostuser.Inflight{MmapSize: 4096, NumQueues: 1, QueueSize: 8}.Append(nil))
	fresh.message(fuzzMemory, 1, vhostuser.SetInflightFD,
		vhostuser.Inflight{MmapSize: 4096, MmapOffset: fuzzMemSize - 8192, NumQueues: 2, QueueSize: 8}.Append(nil))

	// And as a log, of all of itself or of its first page.
	log := func(size uint64) *script {
		s := new(script)
		s.message(0, 0, vhostuser.SetProtocolFeatures, vhostuser.AppendU64(nil, 0x11b62b))
		s.message(fuzzMemory, 1, vhostuser.SetLogBase, vhostuser.LogBase{MmapSize: size, MmapOffset: fuzzMemSize - 8192}.Append(nil))
		s.message(fuzzEventfd, 1, vhostuser.SetLogFD, nil)
		s.message(0, 0, vhostuser.SetFeatures, vhostuser.AppendU64(nil, vhostuser.FProtocolFeatures|vhostuser.FLogAll))
		s.message(0, 0, vhostuser.SetVringAddr, vhostuser.VringAddr{
			Flags: vhostuser.VringLog, Desc: layout.Desc, Avail: layout.Avail, Used: layout.Used, Log: d.UsedPhys(),
		}.Append(nil))
		return s
	}

	f.Add(join(handshake, log(8), ring, stop))
	f.Add(join(handshake, ring, log(2), log(1), stop))
	f.Add(join(handshake, ring, log(8), truncate, stop))
	f.Add(join(handshake, ring, stop))
	f.Add(join(handshake, bad, ring, stop))
	f.Add(join(handshake, fresh, ring, stop, fresh, ring, truncate, stop))
	f.Add(join(handshake, fresh, ring, fresh, handshake, ring))
	f.Add(join(handshake, ring, handshake, ring))
	f.Add(join(handshake, ring, truncate, stop))
	f.Add(join(handshake, truncate, ring, stop))
	for _, s := range shapes {
		one := new(script)
		payload := make([]byte, s.size)
		if s.wellFormed != nil {
			payload = s.wellFormed()
		}
		one.message(fuzzMemory, byte(s.fds), s.req, payload)
		f.Add(join(handshake, ring, one, stop))
		f.Add(join(one))
	}

	reactors, err := fuzzReactors()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(reactors.Close)
	have := newFuzzFDs(f)
	f.Cleanup(have.close)
	mem, d = fuzzGuest(f)
	f.Cleanup(mem.Close)
	have.fds[fuzzMemory] = mem.FD()
	pristine := bytes.Clone(mem.Bytes(0, fuzzMemSize))
	before := countFDs(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := vhostuser.New(vhostuser.Config{
			Device: newReverser(2), Reactors: reactors, Trace: func(e vhostuser.Event) { _ = e.String() },
		})
		if err != nil {
			t.Fatal(err)
		}
		// the script before may have cut it
		if err := syscall.Ftruncate(mem.FD(), fuzzMemSize); err != nil {
			t.Fatal(err)
		}
		copy(mem.Bytes(0, fuzzMemSize), pristine)
		c := &scriptedSocket{t: t, have: have, script: data}
		_ = b.ServeSocket(context.Background(), c)
		if !c.closed {
			t.Error("the socket is still open")
		}
		awaitFDs(t, before)
	})
}

// fuzzReactors is one reactor without a thread: switches between threads would take most of the
// time.
func fuzzReactors() (*vhostuser.Reactors, error) {
	return vhostuser.NewReactors(vhostuser.ReactorConfig{Mode: vhostuser.ModeStepped})
}

// fuzzFDs are descriptors to send, by their kind.
type fuzzFDs struct {
	fds   [fuzzKinds]int
	owned []*sys.FD
}

func newFuzzFDs(t testing.TB) *fuzzFDs {
	t.Helper()
	event, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	a, b, err := sys.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	region, err := sys.NewMemfd("region", regionSize)
	if err != nil {
		t.Fatal(err)
	}
	h := &fuzzFDs{owned: []*sys.FD{event, sys.NewFD(inherit(t, a)), sys.NewFD(mustDup(t, int(null.Fd()))), region}}
	h.fds[fuzzEventfd], h.fds[fuzzSocket], h.fds[fuzzNull], h.fds[fuzzRegion] = event.Int(), h.owned[1].Int(), h.owned[2].Int(), region.Int()
	return h
}

func (h *fuzzFDs) close() { sys.CloseAll(h.owned) }

// scriptedSocket is a connection over which a script comes, until it ends or the back-end has had
// enough of it. What the back-end answers must be replies.
type scriptedSocket struct {
	t      *testing.T
	have   *fuzzFDs
	script []byte
	rest   []byte // of the record that is being received
	rights []byte // that come with its next byte
	closed bool
	over   atomic.Bool // a deadline has been set, which is past

	answers map[vhostuser.Request][]byte // the last to each; nil where nobody wants to know
}

// ReadMsgUnix receives a part of a record, as it is sent.
func (s *scriptedSocket) ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	for len(s.rest) == 0 {
		if len(s.script) < 2 {
			return 0, 0, 0, nil, io.EOF
		}
		kind, fds := s.script[0]&0xf%fuzzKinds, int(s.script[0]>>4)
		s.rest = s.script[2:min(len(s.script), 2+int(s.script[1]))]
		s.script = s.script[2+len(s.rest):]
		if kind == fuzzTruncate {
			if err := syscall.Ftruncate(s.have.fds[fuzzMemory], int64(len(s.rest))*4096); err != nil {
				s.t.Fatal(err)
			}
			s.rest = nil
			continue
		}
		s.rights = nil
		if len(s.rest) > 0 {
			var sent []int
			for range fds {
				fd, err := sys.NewFD(s.have.fds[kind]).Dup()
				if err != nil {
					s.t.Fatal(err)
				}
				sent = append(sent, fd.Int())
			}
			s.rights = sys.Rights(sent...)
		}
	}
	if s.over.Load() {
		fds, err := sys.ParseRights(s.rights)
		sys.CloseAll(fds)
		return 0, 0, 0, nil, errors.Join(err, os.ErrDeadlineExceeded)
	}
	n, oobn = copy(b, s.rest), copy(oob, s.rights)
	s.rest, s.rights = s.rest[n:], nil
	return n, oobn, 0, nil, nil
}

func (s *scriptedSocket) Write(b []byte) (int, error) {
	if s.closed {
		s.t.Error("something is written to a socket that was closed")
	}
	if len(b) < vhostuser.HeaderSize {
		s.t.Fatalf("an answer of %d bytes", len(b))
	}
	h := vhostuser.ParseHeader(b)
	if h.Flags != vhostuser.FlagVersion|vhostuser.FlagReply || int(h.Size) != len(b)-vhostuser.HeaderSize {
		s.t.Fatalf("an answer of %d bytes begins with %+v", len(b), h)
	}
	if s.over.Load() {
		return 0, os.ErrDeadlineExceeded
	}
	if s.answers != nil {
		s.answers[vhostuser.Request(h.Request)] = bytes.Clone(b[vhostuser.HeaderSize:])
	}
	return len(b), nil
}

func (s *scriptedSocket) WriteMsgUnix(b, oob []byte, _ *net.UnixAddr) (n, oobn int, err error) {
	n, err = s.Write(b)
	return n, len(oob), err
}

func (s *scriptedSocket) SetDeadline(t time.Time) error {
	s.over.Store(!t.IsZero())
	return nil
}

func (s *scriptedSocket) SetReadDeadline(t time.Time) error     { return s.SetDeadline(t) }
func (s *scriptedSocket) SyscallConn() (syscall.RawConn, error) { return nil, os.ErrInvalid }
func (s *scriptedSocket) Close() error                          { s.closed = true; return nil }

// fuzzSession is a connection with guest memory that a fuzz target uses over and over.
type fuzzSession struct {
	reactors *vhostuser.Reactors
	dev      *reverser
	front    *vhostusertest.Frontend
	end      func() error
	mem      *virtqtest.Mem
	kick     *sys.FD
	errs     *sys.FD
}

func newFuzzSession(t testing.TB, reactors *vhostuser.Reactors, ranges ...virtqtest.Range) *fuzzSession {
	t.Helper()
	w := &fuzzSession{reactors: reactors, dev: newReverser(2)}
	b, err := vhostuser.New(vhostuser.Config{Device: w.dev, Reactors: reactors})
	if err != nil {
		t.Fatal(err)
	}
	if w.mem, err = virtqtest.NewMem(ranges...); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []**sys.FD{&w.kick, &w.errs} {
		if *fd, err = sys.NewEventfd(); err != nil {
			t.Fatal(err)
		}
	}
	w.front, w.end = newFuzzPipe(b)
	_, err = w.front.Handshake(vhostusertest.AllProtocolFeatures)
	// The rings keep it for all of the session.
	toErrs := w.message(vhostuser.SetVringErr, vhostuser.AppendU64(nil, 0), w.errs.Int())
	if err := errors.Join(err, w.front.AddMemory(w.mem), toErrs()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *fuzzSession) close() {
	w.front.Close()
	_ = w.end()
	sys.CloseAll([]*sys.FD{w.kick, w.errs})
	w.mem.Close()
}

// ring makes a driver of a ring of fuzzRing descriptors at ringAt, which begins at used.
func (w *fuzzSession) ring(used uint16) *virtqtest.Driver {
	d := virtqtest.NewAt(w.mem, fuzzRing, 0, ringAt, ringAt+0x200, ringAt+0x300)
	d.StartAt(used)
	return d
}

// send sends messages that are not acknowledged, up to an error.
func (w *fuzzSession) send(messages ...func() error) error {
	for _, m := range messages {
		if err := m(); err != nil {
			return err
		}
	}
	return nil
}

func (w *fuzzSession) message(req vhostuser.Request, payload []byte, fds ...int) func() error {
	return func() error { return w.front.Request(req, 0, payload, fds...) }
}

func ringState(n uint32) []byte { return vhostuser.VringState{Num: n}.Append(nil) }

// begin sends what makes the device forget what was before.
func (w *fuzzSession) begin() error {
	return w.send(
		w.message(vhostuser.ResetDevice, nil),
		w.message(vhostuser.SetFeatures, vhostuser.AppendU64(nil, vhostuser.FProtocolFeatures)))
}

// start sends what starts the ring.
func (w *fuzzSession) start(d *virtqtest.Driver) error {
	layout := d.Layout()
	return w.send(
		w.message(vhostuser.SetVringNum, ringState(fuzzRing)),
		w.message(vhostuser.SetVringBase, ringState(uint32(layout.Base))),
		w.message(vhostuser.SetVringAddr, vhostuser.VringAddr{Desc: layout.Desc, Avail: layout.Avail, Used: layout.Used}.Append(nil)),
		w.message(vhostuser.SetVringKick, vhostuser.AppendU64(nil, 0), w.kick.Int()),
		w.message(vhostuser.SetVringEnable, ringState(1)))
}

const (
	regionSize = 8192
	fuzzRing   = 8 // descriptors
	ringAt     = 0x1000
	buffersAt  = 0x2000
)

// FuzzSetInflightFD brings any region, described in any way, for a ring with requests in it.
// Whatever it is, the message is refused, or the ring breaks, or it is served, with each request
// answered at most once.
func FuzzSetInflightFD(f *testing.F) {
	const queueSize = fuzzRing
	fresh := vhostuser.Inflight{MmapSize: 384, NumQueues: 2, QueueSize: queueSize}
	region := func(change func(b []byte)) []byte {
		b := make([]byte, 384)
		b[8], b[10] = 1, queueSize
		change(b)
		return b
	}
	f.Add(fresh.Append(nil), []byte(nil), uint16(0))
	f.Add([]byte("0"), []byte("0"), uint16(1)) // refused: the ring begins where SET_VRING_BASE says
	f.Add(fresh.Append(nil)[:20], region(func([]byte) {}), uint16(0))
	f.Add(fresh.Append(nil), region(func(b []byte) { b[16] = 1 }), uint16(1))
	f.Add(fresh.Append(nil), region(func(b []byte) { b[16+16*2], b[14], b[12] = 1, 3, 2 }), uint16(4))
	f.Add(fresh.Append(nil), region(func(b []byte) { b[8] = 7 }), uint16(4))
	f.Add(vhostuser.Inflight{MmapSize: 8192, MmapOffset: 4088, NumQueues: 1, QueueSize: queueSize}.Append(nil), []byte(nil), uint16(9))

	reactors, err := fuzzReactors()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(reactors.Close)
	have := newFuzzFDs(f)
	f.Cleanup(have.close)
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: fuzzMemSize})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(mem.Close)
	have.fds[fuzzMemory] = mem.FD()
	held, err := sys.Mmap(have.fds[fuzzRegion], 0, regionSize, true)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = sys.Munmap(held) })
	before := countFDs(f)
	f.Fuzz(func(t *testing.T, description, contents []byte, used uint16) {
		if len(description) > 200 || len(contents) > regionSize {
			t.Skip("longer than a message, or than the file")
		}
		b, err := vhostuser.New(vhostuser.Config{Device: newReverser(2), Reactors: reactors})
		if err != nil {
			t.Fatal(err)
		}
		clear(held[copy(held, contents):])
		clear(mem.Bytes(0, fuzzMemSize))
		d := virtqtest.NewAt(mem, queueSize, 0, ringAt, ringAt+0x200, ringAt+0x300)
		d.StartAt(used)
		in, out := virtqtest.Seg{Addr: buffersAt, Len: 16}, virtqtest.Seg{Addr: buffersAt + 16, Len: 16}
		for range 3 {
			d.Add([]virtqtest.Seg{in}, []virtqtest.Seg{out})
		}
		d.Kick()
		layout := d.Layout()
		s := new(script)
		protocol := vhostuser.ProtocolReplyAck | vhostuser.ProtocolInflightSHMFD | vhostuser.ProtocolConfigureMemSlots
		s.message(0, 0, vhostuser.SetProtocolFeatures, vhostuser.AppendU64(nil, uint64(protocol)))
		s.message(0, 0, vhostuser.SetOwner, nil)
		s.message(0, 0, vhostuser.SetFeatures, vhostuser.AppendU64(nil, vhostuser.FProtocolFeatures))
		s.message(fuzzMemory, 1, vhostuser.AddMemReg, vhostuser.MemoryRegion(mem.Regions()[0]).Append(nil))
		s.message(fuzzRegion, 1, vhostuser.SetInflightFD, description)
		s.message(0, 0, vhostuser.SetVringNum, ringState(queueSize))
		s.message(0, 0, vhostuser.SetVringBase, ringState(uint32(used)))
		s.message(0, 0, vhostuser.SetVringAddr, vhostuser.VringAddr{Desc: layout.Desc, Avail: layout.Avail, Used: layout.Used}.Append(nil))
		s.message(fuzzEventfd, 1, vhostuser.SetVringKick, vhostuser.AppendU64(nil, 0))
		s.message(0, 0, vhostuser.SetVringEnable, ringState(1))
		// With the answer all has been done that is going to be.
		s.message(0, 0, vhostuser.GetVringBase, ringState(0))
		c := &scriptedSocket{t: t, have: have, script: s.Bytes(), answers: make(map[vhostuser.Request][]byte)}
		if err := b.ServeSocket(context.Background(), c); err != nil {
			t.Fatal(err)
		}
		stopped := c.answers[vhostuser.GetVringBase]
		if len(stopped) == 0 {
			t.Fatal("GET_VRING_BASE is not answered")
		}
		base := uint16(vhostuser.ParseVringState(stopped).Num)
		told := c.answers[vhostuser.SetInflightFD]
		refused := len(told) != 8 || vhostuser.ParseU64(told) != 0
		awaitFDs(t, before)
		done := d.UsedIdx() - used
		if refused && (done != 3 || base != used+3) {
			t.Fatalf("without a region %d requests were answered, and the ring stops at %d; want 3 and %d", done, base, used+3)
		}
		if done > 2*queueSize {
			t.Fatalf("%d requests were answered", done)
		}
		seen := make(map[uint32]bool)
		for i := range done {
			head := binary.LittleEndian.Uint32(d.UsedBytes()[4+8*(int(used+i)%queueSize):])
			// A region can name any descriptor as one in flight.
			if seen[head] || head >= queueSize {
				t.Fatalf("head %d came twice, or is not one", head)
			}
			seen[head] = true
		}
	})
}
