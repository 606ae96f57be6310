package nbd

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
	"vdev/internal/test/disktest"
)

// diskUnderTest is an open disk.
type diskUnderTest struct {
	*disktest.Disk
	r *rig
}

// begin issues a transfer. Its end is told once, or the test fails.
func (d *diskUnderTest) begin(op devsw.Op, flags devsw.BufFlag, off int64, data ...[]byte) (*devsw.Buf, chan struct{}) {
	d.r.t.Helper()
	b, done := d.Buf(op, flags, off, data...)
	d.Issue(b)
	return b, done
}

// pattern gives n bytes that are like no others.
func pattern(n int, seed uint64) []byte {
	p := make([]byte, n)
	g := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = g.Read(p)
	return p
}

// guarded gives n bytes of memory within more, in two pieces, and a function that tells whether
// those around are as they were.
func guarded(n int) (data [][]byte, intact func() bool) {
	const guard = 4096
	fence := pattern(guard, 99)
	all := make([]byte, 3*guard+n)
	cut := n / 3
	for _, at := range []int{0, guard + cut, 2*guard + n} {
		copy(all[at:], fence)
	}
	data = [][]byte{all[guard : guard+cut : guard+cut], all[2*guard+cut : 2*guard+n : 2*guard+n]}
	return data, func() bool {
		for _, at := range []int{0, guard + cut, 2*guard + n} {
			if !bytes.Equal(all[at:at+guard], fence) {
				return false
			}
		}
		return true
	}
}

// The disk is asked for size bytes at byte at.
const (
	readAt   = 8192
	readSize = 96 << 10
)

var (
	wanted = pattern(readSize, 1)
	zeroed = append(append(bytes.Clone(wanted[:8192]), make([]byte, 4096)...), wanted[12288:]...)
)

// replies are what a server may say to a read of readSize bytes at readAt.
var replies = []struct {
	name  string
	modes []int
	say   func(c *fakeConn, q fakeRequest) [][]byte
	want  []byte      // the data, or nil where there is an
	err   devsw.Errno // error
	rogue bool        // the client hangs up
}{
	{name: "data", modes: []int{simpleMode, structuredMode, extendedMode}, want: wanted,
		say: func(c *fakeConn, q fakeRequest) [][]byte { return [][]byte{c.read(q, wanted)} }},
	{name: "byte by byte at first", modes: []int{simpleMode, structuredMode, extendedMode}, want: wanted,
		say: func(c *fakeConn, q fakeRequest) (parts [][]byte) {
			all := c.read(q, wanted)
			for i := range 100 {
				parts = append(parts, all[i:i+1])
			}
			return append(parts, all[100:])
		}},
	{name: "chunks out of order", modes: []int{structuredMode, extendedMode}, want: wanted,
		say: func(c *fakeConn, q fakeRequest) (parts [][]byte) {
			for _, at := range []int{64 << 10, 0, 32 << 10} {
				parts = append(parts, c.chunk(0, replyOffsetData, q.cookie, offsetData(q.off+uint64(at), wanted[at:at+32<<10])))
			}
			return append(parts, c.ok(q.cookie))
		}},
	{name: "a hole", modes: []int{structuredMode, extendedMode}, want: zeroed,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{
				c.chunk(0, replyOffsetHole, q.cookie, offsetHole(q.off+8192, 4096)),
				c.chunk(0, replyOffsetData, q.cookie, offsetData(q.off, wanted[:8192])),
				c.chunk(replyFlagDone, replyOffsetData, q.cookie, offsetData(q.off+12288, wanted[12288:])),
			}
		}},
	{name: "a simple error", modes: []int{simpleMode, structuredMode}, err: devsw.ENOSPC,
		say: func(_ *fakeConn, q fakeRequest) [][]byte { return [][]byte{simpleReply(q.cookie, 28)} }},
	{name: "an error of which nobody has heard", modes: []int{simpleMode}, err: devsw.EINVAL,
		say: func(_ *fakeConn, q fakeRequest) [][]byte { return [][]byte{simpleReply(q.cookie, 12345)} }},
	{name: "an error chunk", modes: []int{structuredMode, extendedMode}, err: devsw.EIO,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{c.chunk(replyFlagDone, replyError, q.cookie, errorChunk(5, "the disk is on fire"))}
		}},
	{name: "an error in the middle", modes: []int{structuredMode, extendedMode}, err: devsw.EPERM,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{
				c.chunk(0, replyOffsetData, q.cookie, offsetData(q.off, wanted[:8192])),
				c.chunk(0, replyErrorOffset, q.cookie, append(errorChunk(1, "no"), make([]byte, 8)...)),
				c.ok(q.cookie),
			}
		}},
	{name: "an error of a type to come", modes: []int{structuredMode, extendedMode}, err: devsw.EOPNOTSUPP,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{c.chunk(replyFlagDone, replyErrorBit+77, q.cookie, append(errorChunk(95, "x"), 1, 2, 3))}
		}},

	{name: "another magic", modes: []int{simpleMode, structuredMode, extendedMode}, rogue: true,
		say: func(*fakeConn, fakeRequest) [][]byte { return [][]byte{[]byte("HTTP/1.1 200 OK\r\n")} }},
	{name: "a cookie of nobody's", modes: []int{simpleMode, structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte { q.cookie++; return [][]byte{c.read(q, wanted)} }},
	{name: "a simple reply where structured ones are due", modes: []int{structuredMode}, rogue: true,
		say: func(_ *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{append(simpleReply(q.cookie, 0), wanted...)}
		}},
	{name: "a compact reply where extended ones are due", modes: []int{extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			compact := fakeConn{exp: &export{structured: true}}
			return [][]byte{compact.read(q, wanted)}
		}},
	{name: "data before the read", modes: []int{structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte { q.off--; return [][]byte{c.read(q, wanted)} }},
	{name: "data beyond the read", modes: []int{structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{c.read(q, append(bytes.Clone(wanted), 1))}
		}},
	{name: "data at the end of the world", modes: []int{structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte { q.off = 1<<64 - 4096; return [][]byte{c.read(q, wanted)} }},
	{name: "a chunk of four gigabytes", modes: []int{structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{c.chunkOf(0, replyOffsetData, q.cookie, 1<<32-1, offsetData(q.off, wanted))}
		}},
	{name: "an error message of four gigabytes", modes: []int{structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{c.chunkOf(replyFlagDone, replyError, q.cookie, 1<<32-1, errorChunk(5, "x"))}
		}},
	{name: "an error chunk without an error", modes: []int{structuredMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{c.chunk(replyFlagDone, replyError, q.cookie, errorChunk(0, ""))}
		}},
	{name: "data twice", modes: []int{structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{
				c.chunk(0, replyOffsetData, q.cookie, offsetData(q.off, wanted[:8192])),
				c.chunk(0, replyOffsetData, q.cookie, offsetData(q.off+4096, wanted[4096:])),
			}
		}},
	{name: "too little data", modes: []int{structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte { return [][]byte{c.read(q, wanted[:readSize-1])} }},
	{name: "no data at all", modes: []int{structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte { return [][]byte{c.ok(q.cookie)} }},
	{name: "an empty hole", modes: []int{structuredMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{c.chunk(0, replyOffsetHole, q.cookie, offsetHole(q.off, 0))}
		}},
	{name: "a hole larger than the read", modes: []int{structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{c.chunk(0, replyOffsetHole, q.cookie, offsetHole(q.off, 1<<31))}
		}},
	{name: "crumbs", modes: []int{structuredMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			var all []byte
			for i := range maxSpans + 1 {
				all = append(all, c.chunk(0, replyOffsetData, q.cookie, offsetData(q.off+uint64(2*i), wanted[:1]))...)
			}
			return [][]byte{all}
		}},
	{name: "none with more to come", modes: []int{structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte { return [][]byte{c.chunk(0, replyNone, q.cookie, nil)} }},
	{name: "a chunk of block status", modes: []int{structuredMode, extendedMode}, rogue: true,
		say: func(c *fakeConn, q fakeRequest) [][]byte {
			return [][]byte{c.chunk(replyFlagDone, 5, q.cookie, make([]byte, 12))}
		}},
}

var modeNames = []string{"simple", "structured", "extended"}

func TestReadIsWhatTheServerSaysOrAnErrorAndNothingElseIsTouched(t *testing.T) {
	for _, tt := range replies {
		for _, mode := range tt.modes {
			t.Run(tt.name+"/"+modeNames[mode], func(t *testing.T) {
				f := newFake(t, mode)
				r := newRig(t)
				d, c := f.disk(r, Config{})
				data, intact := guarded(readSize)
				b, done := d.begin(devsw.BRead, 0, readAt, data...)
				q, _ := c.request(true)
				if q.cmd != cmdRead || q.off != readAt || q.n != readSize {
					t.Fatalf("the server gets %+v", q)
				}
				c.send(tt.say(c, q)...)
				d.Wait(done)
				want := tt.err
				if tt.rogue {
					want = devsw.EIO // there is no reconnect-delay
				}
				if b.Error != want {
					t.Errorf("the read ends with %v, want %v", b.Error, want)
				}
				if got := bytes.Join(data, nil); tt.want != nil && !bytes.Equal(got, tt.want) {
					t.Error("the data is not what the server sent")
				}
				if !intact() {
					t.Error("memory beside the read's was touched")
				}
				if tt.rogue {
					if _, err := c.readRequest(); err == nil {
						t.Error("the client goes on with a server that breaks the protocol")
					}
				}
			})
		}
	}
}

func TestReadGoesToAnotherConnectionAfterAViolationAndAWriteFails(t *testing.T) {
	f := newFake(t, structuredMode)
	r := newRig(t)
	d, c := f.disk(r, Config{ReconnectDelay: time.Minute})
	got := make([]byte, 4096)
	w, wdone := d.begin(devsw.BWrite, 0, 64<<10, make([]byte, 4096))
	c.request(true)
	b, done := d.begin(devsw.BRead, 0, 0, got)
	c.request(true)
	c.send([]byte("nonsense, and more of it"))
	d.Wait(wdone)
	if w.Error != devsw.EIO {
		t.Errorf("the write ends with %v", w.Error)
	}
	c = f.next()
	q, _ := c.request(true)
	c.send(c.read(q, wanted[:4096]))
	d.Wait(done)
	if b.Error != 0 || !bytes.Equal(got, wanted[:4096]) {
		t.Errorf("the read ends with %v", b.Error)
	}
}

func TestRequestsAreSentAsTheProtocolWants(t *testing.T) {
	for _, mode := range []int{simpleMode, structuredMode, extendedMode} {
		t.Run(modeNames[mode], func(t *testing.T) {
			f := newFake(t, mode)
			f.exp.flags |= sendFastZero
			f.exp.maxBlock = 64 << 10
			f.noGo = mode == simpleMode
			max := 64 << 10
			if f.noGo {
				max = testSize
			}
			r := newRig(t)
			d, c := f.disk(r, Config{})
			var payload uint16
			if mode == extendedMode {
				payload = cmdFlagPayloadLen
			}

			data := pattern(160<<10, 5)
			b, done := d.begin(devsw.BWrite, devsw.BMediaFUA, 4096, data[:100], data[100:40000], data[40000:])
			var got []byte
			for len(got) < len(data) {
				q, p := c.request(true)
				if q.cmd != cmdWrite || q.flags != cmdFlagFUA|payload || q.off != 4096+uint64(len(got)) || q.n != uint64(min(max, len(data)-len(got))) {
					t.Fatalf("the server gets %+v", q)
				}
				got = append(got, p...)
				c.send(c.ok(q.cookie))
			}
			d.Wait(done)
			if b.Error != 0 || b.Resid != 0 || !bytes.Equal(got, data) {
				t.Errorf("a write ends with %v, resid %d; its data arrives: %v", b.Error, b.Resid, bytes.Equal(got, data))
			}

			answer := func(do func() error, want fakeRequest, code uint32) {
				t.Helper()
				ended := make(chan error, 1)
				go func() { ended <- do() }()
				for {
					q, _ := c.request(true)
					cookie := q.cookie
					if q.cookie = 0; q != want {
						t.Errorf("the server gets %+v, want %+v", q, want)
					}
					if code == 0 {
						c.send(c.ok(cookie))
						break
					}
					if mode == extendedMode {
						c.send(c.chunk(replyFlagDone, replyError, cookie, errorChunk(code, "")))
					} else {
						c.send(simpleReply(cookie, code))
					}
					code = 0
					want.flags &^= cmdFlagFastZero
				}
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
			ioctl := func(cmd devsw.Cmd, data any) func() error {
				return func() error { return r.table.BdevIoctl(d.Dev, cmd, data, devsw.FWRITE) }
			}
			answer(ioctl(devsw.DIOCCACHESYNC, nil), fakeRequest{cmd: cmdFlush}, 0)
			answer(func() error { return r.table.BdevDiscard(d.Dev, 4096, 8192) }, fakeRequest{cmd: cmdTrim, off: 4096, n: 8192}, 0)
			answer(ioctl(devsw.DIOCWRITEZEROES, &devsw.ZeroRange{Pos: 512, N: 1024, Unmap: true}),
				fakeRequest{cmd: cmdWriteZeroes, flags: cmdFlagFastZero, off: 512, n: 1024}, 0)
			answer(ioctl(devsw.DIOCWRITEZEROES, &devsw.ZeroRange{Pos: 512, N: 1024}),
				fakeRequest{cmd: cmdWriteZeroes, flags: cmdFlagFastZero | cmdFlagNoHole, off: 512, n: 1024}, 95)
		})
	}
}

func TestServerWithoutFUAIsFlushed(t *testing.T) {
	f := newFake(t, simpleMode)
	f.exp.flags &^= sendFUA | sendWriteZeroes | sendTrim
	r := newRig(t)
	d, c := f.disk(r, Config{})
	b, done := d.begin(devsw.BWrite, devsw.BMediaFUA, 0, make([]byte, 512))
	for _, want := range []uint16{cmdWrite, cmdFlush} {
		q, _ := c.request(true)
		if q.cmd != want || q.flags != 0 {
			t.Fatalf("the server gets %+v, want command %d", q, want)
		}
		select {
		case <-done:
			t.Fatal("the write has ended before the flush")
		default:
		}
		c.send(c.ok(q.cookie))
	}
	d.Wait(done)
	if b.Error != 0 {
		t.Error(b.Error)
	}
	if err := r.table.BdevDiscard(d.Dev, 0, 512); !errors.Is(err, devsw.ENODEV) {
		t.Errorf("discard: %v", err)
	}
	zeroes := make(chan error, 1)
	go func() {
		zeroes <- r.table.BdevIoctl(d.Dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{Pos: 512, N: 1024}, devsw.FWRITE)
	}()
	q, p := c.request(true)
	c.send(c.ok(q.cookie))
	if err := <-zeroes; err != nil || q.cmd != cmdWrite || q.off != 512 || !bytes.Equal(p, make([]byte, 1024)) {
		t.Errorf("zeroes: %v, the server gets %+v", err, q)
	}
}

// interrupts are the ways in which a transfer is given up.
var interrupts = map[string]func(d *diskUnderTest, b *devsw.Buf){
	"d_cancel":  func(d *diskUnderTest, _ *devsw.Buf) { d.r.cancel(d.Dev) },
	"CancelBuf": func(d *diskUnderTest, b *devsw.Buf) { _ = d.r.table.BdevCancelBuf(b) },
}

func TestLateBytesOfAnAnswerNeverReachMemory(t *testing.T) {
	for name, interrupt := range interrupts {
		for _, early := range []int{0, 1, 50 << 10, 2 << 20} { // bytes that come before
			t.Run(name, func(t *testing.T) {
				wanted := pattern(max(readSize, 2*early), 1)
				f := newFake(t, simpleMode)
				f.exp.size = 64 << 20
				r := newRig(t)
				d, c := f.disk(r, Config{})
				data := make([]byte, len(wanted))
				b, done := d.begin(devsw.BRead, 0, readAt, data)
				q, _ := c.request(true)
				answer := c.read(q, wanted)
				c.send(answer[:16+early])
				for early > bufferSize && contexts == nil && !d.touched(b) {
					// the driver reads straight to the memory, and waits there
					time.Sleep(time.Millisecond)
				}
				if contexts != nil {
					// so has the context come to wait, which touches nothing then
					time.Sleep(10 * time.Millisecond)
				}
				interrupt(d, b)
				d.Wait(done)
				if b.Error != devsw.ECANCELED || b.Resid != b.Bcount {
					t.Fatalf("it ends with %v, resid %d", b.Error, b.Resid)
				}
				mine := pattern(len(data), 7)
				copy(data, mine)
				c.send(answer[16+early:])
				if name == "CancelBuf" {
					// The connection goes on.
					got := make([]byte, 4096)
					b, done := d.begin(devsw.BRead, 0, 0, got)
					q, _ := c.request(true)
					c.send(c.read(q, wanted[:4096]))
					d.Wait(done)
					if b.Error != 0 || !bytes.Equal(got, wanted[:4096]) {
						t.Errorf("the next read ends with %v", b.Error)
					}
				} else {
					r.close(d.Dev)
					r.gone(d.Dev) // when the client has read all
				}
				if !bytes.Equal(data, mine) {
					t.Error("the late answer has reached the memory")
				}
			})
		}
	}
}

// touched tells whether the driver is waiting for bytes with which it fills the memory of b.
func (d *diskUnderTest) touched(b *devsw.Buf) bool {
	cl := d.r.softc(d.Dev).last.Load()
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for _, c := range cl.conns {
		for _, r := range c.flight {
			if r.buf == b {
				return r.busy
			}
		}
	}
	return false
}

// stuff issues a write that is too large for the socket, and waits until the client is in the
// middle of it.
func stuff(t *testing.T, d *diskUnderTest, c *fakeConn, data []byte) (b *devsw.Buf, done chan struct{}, q fakeRequest, head []byte) {
	t.Helper()
	b, done = d.begin(devsw.BWrite, 0, 0, data)
	q, _ = c.request(false)
	head = make([]byte, 100<<10)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	return b, done, q, head
}

func TestWriteGivenUpInTheMiddleIsNotCompletedByACancel(t *testing.T) {
	f := newFake(t, structuredMode)
	f.exp.size = 64 << 20
	r := newRig(t)
	d, c := f.disk(r, Config{})
	data := pattern(16<<20, 3)
	b, done, q, _ := stuff(t, d, c, data)
	r.cancel(d.Dev)
	d.Wait(done)
	if b.Error != devsw.ECANCELED {
		t.Fatalf("it ends with %v", b.Error)
	}
	if err := r.table.BdevClose(d.Dev, rw, devsw.IFBLK); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() { opened <- r.table.BdevOpen(d.Dev, rw, devsw.IFBLK) }()

	rest, err := io.ReadAll(c) // the client shuts its side down
	if err != nil || 100<<10+len(rest) >= int(q.n) {
		t.Fatalf("after the cancel the server gets %d bytes more, %v", len(rest), err)
	}
	select {
	case err := <-opened:
		t.Fatalf("the disk is open again (%v) while the server has not hung up", err)
	case <-f.conns:
		t.Fatal("the client dials while the server has not hung up")
	default:
	}
	c.Close()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	f.next()
}

func TestWriteGivenUpInTheMiddleIsCompletedForTheOthersAndHeldAgainstItsBlocks(t *testing.T) {
	f := newFake(t, structuredMode)
	f.exp.size = 64 << 20
	r := newRig(t)
	d, c := f.disk(r, Config{})
	data := pattern(16<<20, 3)
	sent := bytes.Clone(data)
	b, done, q, head := stuff(t, d, c, data)
	_ = r.table.BdevCancelBuf(b)
	d.Wait(done)
	if b.Error != devsw.ECANCELED {
		t.Fatalf("it ends with %v", b.Error)
	}
	clear(data) // it is ours again

	_, newer := d.begin(devsw.BWrite, 0, 1<<20, pattern(4096, 4))
	given, givenDone := d.begin(devsw.BRead, 0, 512, make([]byte, 512))
	_, other := d.begin(devsw.BWrite, 0, 32<<20, pattern(4096, 5))
	rest := make([]byte, int(q.n)-len(head))
	if _, err := io.ReadFull(c, rest); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(head, rest...), sent) {
		t.Error("the server gets something else than was to be written")
	}
	o, _ := c.request(true)
	if o.off != 32<<20 {
		t.Fatalf("the server gets %+v, whose blocks are not its own yet", o)
	}
	c.send(c.ok(o.cookie))
	d.Wait(other)
	_ = r.table.BdevCancelBuf(given)
	d.Wait(givenDone)

	c.send(c.ok(q.cookie))
	n, _ := c.request(true)
	if n.cmd != cmdWrite || n.off != 1<<20 {
		t.Fatalf("the server gets %+v", n)
	}
	c.send(c.ok(n.cookie))
	d.Wait(newer)
}

func TestOpenWaitsForTheAnswerThatIsOwedAndCanBeCancelled(t *testing.T) {
	for _, how := range []string{"answer", "hang up", "cancel"} {
		t.Run(how, func(t *testing.T) {
			f := newFake(t, structuredMode)
			r := newRig(t)
			d, c := f.disk(r, Config{})
			trimmed := make(chan error, 1)
			go func() { trimmed <- r.table.BdevDiscard(d.Dev, 0, 4096) }()
			q, _ := c.request(true)
			r.close(d.Dev)
			if err := <-trimmed; !errors.Is(err, devsw.ECANCELED) {
				t.Fatalf("the discard ends with %v", err)
			}
			opened := make(chan error, 1)
			go func() { opened <- r.table.BdevOpen(d.Dev, rw, devsw.IFBLK) }()
			for !r.claimed(d.Dev) {
				time.Sleep(time.Millisecond)
			}
			switch how {
			case "cancel":
				r.close(d.Dev)
				if err := <-opened; !errors.Is(err, devsw.ECANCELED) {
					t.Errorf("the open ends with %v", err)
				}
				return
			case "answer":
				c.send(c.ok(q.cookie))
				if q, err := c.readRequest(); err != nil || q.cmd != cmdDisc {
					t.Errorf("after the answer the server gets %+v, %v; not NBD_CMD_DISC", q, err)
				}
			case "hang up":
				c.Close()
			}
			if err := <-opened; err != nil {
				t.Fatal(err)
			}
			f.next()
		})
	}
}

// claimed tells whether a disk is open, or being opened.
func (r *rig) claimed(dev devsw.Dev) bool { return r.d.Claimed(int(dev.Minor())) }

func TestReadsThatAreGivenUpHoldNothingUp(t *testing.T) {
	f := newFake(t, structuredMode)
	r := newRig(t)
	d, c := f.disk(r, Config{})
	b, done := d.begin(devsw.BRead, 0, 0, make([]byte, 4096))
	c.request(true)
	r.close(d.Dev)
	d.Wait(done)
	if b.Error != devsw.ECANCELED {
		t.Errorf("the read ends with %v", b.Error)
	}
	if err := r.table.BdevOpen(d.Dev, rw, devsw.IFBLK); err != nil {
		t.Fatal(err)
	}
	f.next()
}

func TestServerThatShutsDownIsLeftAndItsRequestsAreAskedForAgain(t *testing.T) {
	for _, last := range []string{"says so", "hangs up"} {
		t.Run(last, func(t *testing.T) {
			f := newFake(t, structuredMode)
			r := newRig(t)
			d, c := f.disk(r, Config{ReconnectDelay: time.Minute})
			b1, done1 := d.begin(devsw.BWrite, 0, 0, pattern(4096, 1))
			q1, _ := c.request(true)
			b2, done2 := d.begin(devsw.BWrite, 0, 8192, pattern(4096, 2))
			c.request(true)
			if last == "says so" {
				c.send(simpleReply(q1.cookie, eShutdown))
			}
			c.Close()
			c = f.next()
			for i, off := range []uint64{0, 8192} {
				q, p := c.request(true)
				if q.off != off || !bytes.Equal(p, pattern(4096, uint64(i+1))) {
					t.Errorf("the next server gets %+v", q)
				}
				c.send(c.ok(q.cookie))
			}
			d.Wait(done1)
			d.Wait(done2)
			if b1.Error != 0 || b2.Error != 0 {
				t.Errorf("they end with %v and %v", b1.Error, b2.Error)
			}
		})
	}
}

func TestLossOfTheServerIsTold(t *testing.T) {
	f := newFake(t, simpleMode)
	r := newRig(t)
	told := make(chan error, 16)
	r.d.Notify(func(unit int, err error) {
		if unit != 0 {
			t.Errorf("unit %d", unit)
		}
		told <- err
	})
	_, c := f.disk(r, Config{})
	c.Close()
	if err := <-told; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the loss is %v", err)
	}
	f.next()
	if err := <-told; err != nil {
		t.Errorf("the return is %v", err)
	}
}

func TestServerThatFallsOverARequestDoesNotGetItForEver(t *testing.T) {
	f := newFake(t, simpleMode)
	r := newRig(t)
	d, c := f.disk(r, Config{ReconnectDelay: 200 * time.Millisecond})
	b, done := d.begin(devsw.BRead, 0, 0, make([]byte, 512))
	var falls atomic.Int32
	stop := make(chan struct{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			if _, err := c.readRequest(); err == nil {
				falls.Add(1)
			}
			c.Close()
			select {
			case c = <-f.conns:
			case <-stop:
				return
			}
		}
	}()
	d.Wait(done)
	close(stop)
	<-gone
	if b.Error != devsw.EIO || falls.Load() < 2 {
		t.Errorf("after %d attempts it ends with %v", falls.Load(), b.Error)
	}
}

func TestConnectionsShareTheRequests(t *testing.T) {
	f := newFake(t, simpleMode)
	f.exp.flags |= canMultiConn
	r := newRig(t)
	d, first := f.disk(r, Config{Connections: 3})
	d.AIO = nil // those of one context stay together
	conns := []*fakeConn{first, f.next(), f.next()}
	for r.units > 0 && d.connections() < 3 {
		time.Sleep(time.Millisecond)
	}
	var dones []chan struct{}
	for i := range 3 {
		_, done := d.begin(devsw.BRead, 0, int64(i)*512, make([]byte, 512))
		dones = append(dones, done)
	}
	for _, c := range conns {
		q, _ := c.request(true)
		c.send(c.read(q, make([]byte, 512)))
	}
	for _, done := range dones {
		d.Wait(done)
	}
}

func TestContextKeepsToOneConnection(t *testing.T) {
	if contexts == nil {
		t.Skip("there are no contexts in this run")
	}
	f := newFake(t, simpleMode)
	f.exp.flags |= canMultiConn
	r := newRig(t)
	d, first := f.disk(r, Config{Connections: 2})
	f.next()
	for d.connections() < 2 {
		time.Sleep(time.Millisecond)
	}
	var dones []chan struct{}
	for i := range 4 {
		_, done := d.begin(devsw.BRead, 0, int64(i)*512, make([]byte, 512))
		dones = append(dones, done)
	}
	for range dones {
		q, _ := first.request(true)
		first.send(first.read(q, make([]byte, 512)))
	}
	for _, done := range dones {
		d.Wait(done)
	}
}

func (d *diskUnderTest) connections() int {
	cl := d.r.softc(d.Dev).last.Load()
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return len(cl.conns)
}

func TestMemoryThatIsGoneIsAnErrorOfThatTransfer(t *testing.T) {
	fd, err := sys.NewMemfd("guest", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	mem, err := sys.Mmap(fd.Int(), 0, 1<<20, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sys.Munmap(mem) }()
	if err := syscall.Ftruncate(fd.Int(), 0); err != nil {
		t.Fatal(err)
	}
	f := newFake(t, simpleMode)
	f.exp.size = 64 << 20
	r := newRig(t)
	d, c := f.disk(r, Config{ReconnectDelay: time.Minute})
	for _, n := range []int{4096, 64 << 10, 1 << 20} {
		b, done := d.begin(devsw.BRead, 0, 0, mem[:n])
		q, _ := c.request(true)
		c.send(c.read(q, make([]byte, n)))
		d.Wait(done)
		if b.Error != devsw.EFAULT {
			t.Errorf("a read of %d bytes ends with %v", n, b.Error)
		}
		b, done = d.begin(devsw.BWrite, 0, 0, mem[:n])
		d.Wait(done)
		if b.Error != devsw.EFAULT {
			t.Errorf("a write of %d bytes ends with %v", n, b.Error)
		}
	}
	// With a part of a write sent, the connection cannot go on.
	b, done := d.begin(devsw.BWrite, 0, 0, make([]byte, 16<<20), mem)
	if rest, err := io.ReadAll(c); err != nil || len(rest) >= 17<<20 {
		t.Fatalf("the server gets %d bytes, %v", len(rest), err)
	}
	d.Wait(done)
	if b.Error != devsw.EFAULT {
		t.Errorf("a write that is partly gone ends with %v", b.Error)
	}
	c.Close()
	c = f.next()
	b, done = d.begin(devsw.BRead, 0, 0, make([]byte, 512))
	q, _ := c.request(true)
	c.send(c.read(q, make([]byte, 512)))
	d.Wait(done)
	if b.Error != 0 {
		t.Errorf("the next read ends with %v", b.Error)
	}
}

func TestGrowAsksForTheSize(t *testing.T) {
	f := newFake(t, simpleMode)
	r := newRig(t)
	d, _ := f.disk(r, Config{})
	f.exp.size = 2 * testSize
	var size int64
	if err := r.table.BdevIoctl(d.Dev, devsw.DIOCGROW, &size, devsw.FREAD); err != nil || size != 2*testSize {
		t.Errorf("the disk has %d bytes, %v", size, err)
	}
	if got := r.table.BdevSize(d.Dev); got != 2*testSize/512 {
		t.Errorf("d_psize says %d", got)
	}
	f.next().Close()
}

var _ net.Conn = (*fakeConn)(nil)
