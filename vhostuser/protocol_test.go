package vhostuser_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
)

// shapes is what each message must look like, written down anew from the specification.
var shapes = []struct {
	req        vhostuser.Request
	size       int // of a well-formed payload
	fds        int // of a well-formed message
	maxFDs     int
	hasReply   bool
	feature    vhostuser.ProtocolFeatures
	wellFormed func() []byte // the payload; nil for zeros
}{
	{req: vhostuser.GetFeatures, hasReply: true},
	{req: vhostuser.SetFeatures, size: 8},
	{req: vhostuser.SetOwner},
	{req: vhostuser.ResetOwner},
	{req: vhostuser.SetMemTable, size: 40, fds: 1, maxFDs: 1, wellFormed: func() []byte {
		return vhostuser.AppendMemoryTable(nil, []vhostuser.MemoryRegion{{Size: 4096}})
	}},
	{req: vhostuser.SetLogBase, size: 16, fds: 1, maxFDs: 1, hasReply: true, feature: vhostuser.ProtocolLogSHMFD,
		wellFormed: func() []byte { return vhostuser.LogBase{MmapSize: 8}.Append(nil) }},
	{req: vhostuser.SetLogFD, fds: 1, maxFDs: 1},
	{req: vhostuser.SetVringNum, size: 8, wellFormed: func() []byte { return vhostuser.VringState{Num: 8}.Append(nil) }},
	{req: vhostuser.SetVringAddr, size: 40},
	{req: vhostuser.SetVringBase, size: 8},
	{req: vhostuser.GetVringBase, size: 8, hasReply: true},
	{req: vhostuser.SetVringKick, size: 8, fds: 1, maxFDs: 1},
	{req: vhostuser.SetVringCall, size: 8, fds: 1, maxFDs: 1},
	{req: vhostuser.SetVringErr, size: 8, fds: 1, maxFDs: 1},
	{req: vhostuser.GetProtocolFeatures, hasReply: true},
	{req: vhostuser.SetProtocolFeatures, size: 8, wellFormed: func() []byte {
		return vhostuser.AppendU64(nil, uint64(vhostuser.ProtocolReplyAck))
	}},
	{req: vhostuser.GetQueueNum, hasReply: true},
	{req: vhostuser.SetVringEnable, size: 8},
	{req: vhostuser.SetBackendReqFD, fds: 1, maxFDs: 1, feature: vhostuser.ProtocolBackendReq},
	{req: vhostuser.GetConfig, size: 13, hasReply: true, feature: vhostuser.ProtocolConfig, wellFormed: func() []byte {
		return vhostuser.ConfigSpace{Data: make([]byte, 1)}.Append(nil)
	}},
	{req: vhostuser.SetConfig, size: 13, feature: vhostuser.ProtocolConfig, wellFormed: func() []byte {
		return vhostuser.ConfigSpace{Data: make([]byte, 1)}.Append(nil)
	}},
	{req: vhostuser.GetInflightFD, size: 24, hasReply: true, feature: vhostuser.ProtocolInflightSHMFD, wellFormed: func() []byte {
		return vhostuser.Inflight{NumQueues: 1, QueueSize: 8}.Append(nil)
	}},
	{req: vhostuser.SetInflightFD, size: 24, fds: 1, maxFDs: 1, feature: vhostuser.ProtocolInflightSHMFD, wellFormed: func() []byte {
		return vhostuser.Inflight{MmapSize: 4096, NumQueues: 1, QueueSize: 8}.Append(nil)
	}},
	{req: vhostuser.ResetDevice, feature: vhostuser.ProtocolResetDevice},
	{req: vhostuser.GetMaxMemSlots, hasReply: true, feature: vhostuser.ProtocolConfigureMemSlots},
	{req: vhostuser.AddMemReg, size: 40, fds: 1, maxFDs: 1, feature: vhostuser.ProtocolConfigureMemSlots,
		wellFormed: func() []byte { return vhostuser.MemoryRegion{GuestPhys: 1 << 40, Size: 4096}.Append(nil) }},
	{req: vhostuser.RemMemReg, size: 40, maxFDs: 1, feature: vhostuser.ProtocolConfigureMemSlots},
	{req: vhostuser.SetStatus, size: 8, feature: vhostuser.ProtocolStatus},
	{req: vhostuser.GetStatus, hasReply: true, feature: vhostuser.ProtocolStatus},
}

// fdsFor returns n descriptors that suit req.
func fdsFor(t *testing.T, req vhostuser.Request, n int) []int {
	t.Helper()
	var fds []int
	for range n {
		var f *sys.FD
		var err error
		switch req {
		case vhostuser.SetMemTable, vhostuser.AddMemReg, vhostuser.SetLogBase, vhostuser.SetInflightFD:
			f, err = sys.NewMemfd("test", 4096)
		default:
			f, err = sys.NewEventfd()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		fds = append(fds, f.Int())
	}
	return fds
}

func TestMalformedMessagesAreRefused(t *testing.T) {
	for _, s := range shapes {
		payload := make([]byte, s.size)
		if s.wellFormed != nil {
			payload = s.wellFormed()
		}
		if len(payload) != s.size {
			t.Fatalf("%v: the test's payload has %d bytes, not %d", s.req, len(payload), s.size)
		}
		type bad struct {
			name    string
			payload []byte
			fds     int
			field   string
		}
		bads := []bad{
			{"one byte more", append(bytes.Clone(payload), 0), s.fds, "size"},
			{"all there can be", make([]byte, 268), s.fds, "size"},
			{"one descriptor more", payload, s.maxFDs + 1, "fds"},
			{"many descriptors", payload, 100, "fds"},
		}
		if s.size > 0 {
			bads = append(bads,
				bad{"one byte less", payload[:s.size-1], s.fds, "size"},
				bad{"no payload", nil, s.fds, "size"})
		}
		if s.fds > 0 {
			bads = append(bads, bad{"a descriptor less", payload, s.fds - 1, "fds"})
		}
		for _, b := range bads {
			for _, ack := range []bool{true, false} {
				t.Run(fmt.Sprintf("%v/%s/acknowledged %v", s.req, b.name, ack), func(t *testing.T) {
					g := newRig(t, newReverser(1))
					_, err := g.Handshake(vhostusertest.AllProtocolFeatures)
					g.must(err)
					flags := uint32(0)
					if ack {
						flags = vhostuser.FlagNeedReply
					}
					g.must(g.Request(s.req, flags, b.payload, fdsFor(t, s.req, b.fds)...))
					switch {
					case s.req == vhostuser.GetConfig:
						if _, p, err := g.Receive(); err != nil || len(p) != 0 {
							t.Errorf("reply %x, %v, want one without payload", p, err)
						}
					case ack && !s.hasReply:
						h, p, err := g.Receive()
						if err != nil || h.Request != uint32(s.req) || len(p) != 8 || vhostuser.ParseU64(p) == 0 {
							t.Errorf("reply %+v %x, %v, want an acknowledgement that is not 0", h, p, err)
						}
					default:
						wantProtocolError(t, g.wait(), s.req, b.field)
						return
					}
					g.must(g.Barrier())
					failed := g.rec.find(vhostuser.EventFail)
					if len(failed) != 1 {
						t.Fatalf("events %v, want one failure", failed)
					}
					wantProtocolError(t, failed[0].Err, s.req, b.field)
				})
			}
		}
	}
}

func TestMessagesNeedTheirProtocolFeature(t *testing.T) {
	for _, s := range shapes {
		if s.feature == 0 {
			continue
		}
		t.Run(s.req.String(), func(t *testing.T) {
			g := newRig(t, newReverser(1))
			_, err := g.Handshake(vhostusertest.AllProtocolFeatures &^ s.feature)
			g.must(err)
			payload := make([]byte, s.size)
			if s.wellFormed != nil {
				payload = s.wellFormed()
			}
			g.must(g.Request(s.req, 0, payload, fdsFor(t, s.req, s.fds)...))
			if s.req == vhostuser.GetConfig {
				if _, p, err := g.Receive(); err != nil || len(p) != 0 {
					t.Errorf("reply %x, %v, want one without payload", p, err)
				}
				return
			}
			wantProtocolError(t, g.wait(), s.req, "not negotiated")
		})
	}
}

func TestEveryMessageIsAnsweredAsItMust(t *testing.T) {
	for _, s := range shapes {
		for _, ack := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v/acknowledged %v", s.req, ack), func(t *testing.T) {
				g := newRig(t, newReverser(1))
				_, err := g.Handshake(vhostusertest.AllProtocolFeatures)
				g.must(err)
				switch s.req {
				case vhostuser.RemMemReg:
					g.must(g.AddMemReg(vhostuser.MemoryRegion{Size: 4096}, g.mem.FD()))
				}
				payload := make([]byte, s.size)
				if s.wellFormed != nil {
					payload = s.wellFormed()
				}
				if s.req == vhostuser.RemMemReg {
					payload = vhostuser.MemoryRegion{Size: 4096}.Append(nil)
				}
				fds := fdsFor(t, s.req, s.fds)
				if s.req == vhostuser.SetBackendReqFD {
					fds = socketFDs(t)
				}
				flags := uint32(0)
				if ack {
					flags = vhostuser.FlagNeedReply
				}
				g.must(g.Request(s.req, flags, payload, fds...))
				if s.hasReply || ack {
					h, p, err := g.Receive()
					g.must(err)
					if h.Request != uint32(s.req) || h.Flags != vhostuser.FlagVersion|vhostuser.FlagReply {
						t.Errorf("reply %+v", h)
					}
					if !s.hasReply && (len(p) != 8 || vhostuser.ParseU64(p) != 0) {
						t.Errorf("acknowledgement %x, want 0", p)
					}
				}
				// Nothing more came.
				g.must(g.Barrier())
			})
		}
	}
}

// socketFDs returns one descriptor, of a Unix socket.
func socketFDs(t *testing.T) []int {
	t.Helper()
	a, b, err := sys.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	raw, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := raw.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		t.Fatal(err)
	}
	return []int{n}
}

// NEED_REPLY means nothing before REPLY_ACK was negotiated.
func TestNeedReplyWithoutReplyAckIsIgnored(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.must(g.Request(vhostuser.SetOwner, vhostuser.FlagNeedReply, nil))
	// Also on the message that negotiates it.
	g.must(g.Request(vhostuser.SetProtocolFeatures, vhostuser.FlagNeedReply,
		vhostuser.AppendU64(nil, uint64(vhostuser.ProtocolReplyAck))))
	g.must(g.Barrier())
	g.must(g.SetProtocolFeatures(0))
	g.must(g.Request(vhostuser.SetVringNum, vhostuser.FlagNeedReply, nil))
	wantProtocolError(t, g.wait(), vhostuser.SetVringNum, "size")
}

func TestBadHeadersEndTheConnection(t *testing.T) {
	ok := vhostuser.FlagVersion | vhostuser.FlagNeedReply
	for _, c := range []struct {
		name string
		h    vhostuser.Header
		want string
	}{
		{"version 0", vhostuser.Header{Request: 1, Flags: 0}, "flags 0x0"},
		{"version 2", vhostuser.Header{Request: 1, Flags: 2}, "flags 0x2"},
		{"version 3", vhostuser.Header{Request: 1, Flags: 3}, "flags 0x3"},
		{"a reply", vhostuser.Header{Request: 1, Flags: 1 | vhostuser.FlagReply}, "flags 0x5"},
		{"unknown flag", vhostuser.Header{Request: 1, Flags: ok | 1<<4}, "flags 0x19"},
		{"too long", vhostuser.Header{Request: 25, Flags: ok, Size: 269}, "size 0x10d"},
		{"far too long", vhostuser.Header{Request: 25, Flags: ok, Size: 0xffffffff}, "size 0xffffffff"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, newReverser(1))
			g.handshake()
			g.must(g.Send(c.h, nil, fdsFor(t, 0, 3)...))
			wantProtocolError(t, g.wait(), vhostuser.Request(c.h.Request), c.want)
		})
	}
}

func TestUnknownMessagesAreRefused(t *testing.T) {
	for _, req := range []vhostuser.Request{0, 19, 22, 28, 30, 33, 35, 41, 63, 64, 99, 0xffffffff} {
		t.Run(req.String(), func(t *testing.T) {
			g := newRig(t, newReverser(1))
			g.handshake()
			if err := g.Tell(req, nil); !errors.Is(err, vhostusertest.ErrRefused) {
				t.Errorf("%v, want a refusal", err)
			}
			g.must(g.Request(req, 0, nil, fdsFor(t, 0, 1)...))
			wantProtocolError(t, g.wait(), req, "not supported")
		})
	}
}

// Whether a front-end sends a message in one piece or in many, its descriptors arrive with it.
func TestMessagesMayComeInPieces(t *testing.T) {
	g := newRig(t, newReverser(1))
	_, err := g.Handshake(vhostusertest.AllProtocolFeatures)
	g.must(err)
	msg := vhostuser.Header{Request: uint32(vhostuser.SetVringCall), Flags: vhostuser.FlagVersion | vhostuser.FlagNeedReply, Size: 8}.
		Append(nil)
	msg = vhostuser.AppendU64(msg, 0)
	for _, cut := range []int{1, 5, 12, 13, 19} {
		for _, last := range []bool{false, true} {
			fds := fdsFor(t, 0, 1)
			if last {
				g.must(g.SendRaw(msg[:cut]))
				g.must(g.SendRaw(msg[cut:], fds...))
			} else {
				g.must(g.SendRaw(msg[:cut], fds...))
				g.must(g.SendRaw(msg[cut:]))
			}
			_, p, err := g.Receive()
			g.must(err)
			if vhostuser.ParseU64(p) != 0 {
				t.Errorf("cut at %d, descriptor in the last piece %v: refused", cut, last)
			}
		}
	}
	// Several messages in one piece.
	two := vhostuser.Header{Request: uint32(vhostuser.GetFeatures), Flags: vhostuser.FlagVersion}.Append(nil)
	g.must(g.SendRaw(append(two, two...)))
	for range 2 {
		_, _, err := g.Receive()
		g.must(err)
	}
}

func TestHangUpInMidMessageIsAnError(t *testing.T) {
	for _, n := range []int{1, 11, 12, 15} {
		g := newRig(t, newReverser(1))
		msg := vhostuser.Header{Request: uint32(vhostuser.SetFeatures), Flags: vhostuser.FlagVersion, Size: 8}.Append(nil)
		msg = vhostuser.AppendU64(msg, 0)
		g.must(g.SendRaw(msg[:n], fdsFor(t, 0, 2)...))
		if err := g.hangUp(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("hang-up after %d bytes: %v, want an unexpected EOF", n, err)
		}
	}
}

func TestFieldsOutOfRangeAreRefused(t *testing.T) {
	state := func(index, num uint32) []byte { return vhostuser.VringState{Index: index, Num: num}.Append(nil) }
	u64 := func(v uint64) []byte { return vhostuser.AppendU64(nil, v) }
	inflight := func(size, off uint64, queues, num uint16) []byte {
		return vhostuser.Inflight{MmapSize: size, MmapOffset: off, NumQueues: queues, QueueSize: num}.Append(nil)
	}
	for _, c := range []struct {
		name    string
		req     vhostuser.Request
		payload []byte
		fds     int
		want    string
	}{
		{"ring of another device", vhostuser.SetVringNum, state(2, 8), 0, "index 0x2"},
		{"ring far off", vhostuser.SetVringBase, state(0xffffffff, 0), 0, "index 0xffffffff"},
		{"ring far off", vhostuser.SetVringEnable, state(0xffffffff, 1), 0, "index"},
		{"ring of another device", vhostuser.SetVringAddr, vhostuser.VringAddr{Index: 2}.Append(nil), 0, "index"},
		{"ring of another device", vhostuser.SetVringKick, u64(2), 1, "index"},
		{"no size", vhostuser.SetVringNum, state(0, 0), 0, "num 0x0"},
		{"size too large", vhostuser.SetVringNum, state(0, 65536), 0, "num 0x10000"},
		{"base of more than 16 bits", vhostuser.SetVringBase, state(0, 0x10000), 0, "num 0x10000"},
		{"enabled twice over", vhostuser.SetVringEnable, state(0, 2), 0, "num 0x2"},
		{"unknown flag of a ring", vhostuser.SetVringAddr, vhostuser.VringAddr{Flags: 2}.Append(nil), 0, "flags 0x2"},
		{"unknown bit with a descriptor", vhostuser.SetVringCall, u64(1 << 9), 1, "u64 0x200"},
		{"descriptor and no descriptor", vhostuser.SetVringCall, u64(1 << 8), 1, "fds 0x1"},
		{"no descriptor", vhostuser.SetVringErr, u64(0), 0, "fds 0x0"},
		{"feature not offered", vhostuser.SetFeatures, u64(1 << 40), 0, "features 0x10000000000"},
		{"protocol feature not offered", vhostuser.SetProtocolFeatures, u64(1 << 2), 0, "protocol features"},
		{"status of more than 8 bits", vhostuser.SetStatus, u64(0x100), 0, "status 0x100"},
		{"configuration beyond its end", vhostuser.SetConfig, vhostuser.ConfigSpace{Offset: 16, Data: []byte{1}}.Append(nil), 0, "config offset"},
		{"configuration far off", vhostuser.SetConfig, vhostuser.ConfigSpace{Offset: 0xffffffff, Data: []byte{1}}.Append(nil), 0, "config offset"},
		{"configuration for no known reason", vhostuser.SetConfig, vhostuser.ConfigSpace{Flags: 2, Data: []byte{1}}.Append(nil), 0, "config flags"},
		{"configuration read-only", vhostuser.SetConfig, vhostuser.ConfigSpace{Offset: 3, Data: []byte{1}}.Append(nil), 0, "only byte 0"},
		{"configuration of another length", vhostuser.SetConfig, append(state(0, 9), 0, 0, 0, 0, 1), 0, "config size 0x9"},
		{"memory table without regions", vhostuser.SetMemTable, make([]byte, 40), 1, "num regions 0x0"},
		{"memory table of another length", vhostuser.SetMemTable,
			append(state(2, 0), make([]byte, 32)...), 1, "size 0x28"},
		{"memory table with too few descriptors", vhostuser.SetMemTable,
			vhostuser.AppendMemoryTable(nil, []vhostuser.MemoryRegion{{Size: 4096}, {GuestPhys: 4096, UserAddr: 4096, Size: 4096}}), 1, "fds 0x1"},
		{"memory table with overlapping regions", vhostuser.SetMemTable,
			vhostuser.AppendMemoryTable(nil, []vhostuser.MemoryRegion{{Size: 4096}, {GuestPhys: 4095, UserAddr: 4096, Size: 4096}}), 2, "overlap"},
		{"region without size", vhostuser.AddMemReg, vhostuser.MemoryRegion{}.Append(nil), 1, "size is 0"},
		{"region longer than its file", vhostuser.AddMemReg, vhostuser.MemoryRegion{Size: 8192}.Append(nil), 1, "file ends"},
		{"region that wraps", vhostuser.AddMemReg, vhostuser.MemoryRegion{GuestPhys: ^uint64(0), Size: 4096}.Append(nil), 1, "overflow"},
		{"region not there", vhostuser.RemMemReg, vhostuser.MemoryRegion{Size: 4096}.Append(nil), 0, "no such region"},
		{"new in-flight region for no queue", vhostuser.GetInflightFD, inflight(0, 0, 0, 8), 0, "num queues 0x0"},
		{"new in-flight region for more queues than there are", vhostuser.GetInflightFD, inflight(0, 0, 3, 8), 0, "num queues 0x3"},
		{"in-flight region for no queue", vhostuser.SetInflightFD, inflight(4096, 0, 0, 8), 1, "num queues 0x0"},
		{"in-flight region for more queues than there are", vhostuser.SetInflightFD, inflight(4096, 0, 3, 8), 1, "num queues 0x3"},
		{"in-flight region for queues without descriptors", vhostuser.SetInflightFD, inflight(4096, 0, 1, 0), 1, "queue size 0x0"},
		{"in-flight region for queues too large", vhostuser.SetInflightFD, inflight(1<<30, 0, 1, 32769), 1, "queue size 0x8001"},
		{"in-flight region too small", vhostuser.SetInflightFD, inflight(2*192-1, 0, 2, 8), 1, "mmap size 0x17f"},
		{"in-flight region at an odd place", vhostuser.SetInflightFD, inflight(192, 4, 1, 8), 1, "mmap offset 0x4"},
		{"in-flight region beyond its file", vhostuser.SetInflightFD, inflight(1<<20, 0, 2, 128), 1, "file ends"},
		{"in-flight region far beyond its file", vhostuser.SetInflightFD, inflight(192, ^uint64(7), 1, 8), 1, "overflow"},
		{"back-end channel that is no socket", vhostuser.SetBackendReqFD, nil, 1, "must be a Unix stream socket"},
	} {
		t.Run(fmt.Sprintf("%v/%s", c.req, c.name), func(t *testing.T) {
			g := newRig(t, newReverser(2))
			_, err := g.Handshake(vhostusertest.AllProtocolFeatures)
			g.must(err)
			fds := fdsFor(t, c.req, c.fds)
			if c.req != vhostuser.GetInflightFD { // which is not acknowledged
				if err := g.Tell(c.req, c.payload, fds...); !errors.Is(err, vhostusertest.ErrRefused) {
					t.Errorf("%v, want a refusal", err)
				}
			}
			g.must(g.Request(c.req, 0, c.payload, fds...))
			wantProtocolError(t, g.wait(), c.req, c.want)
		})
	}
}

func TestStartWithoutSizeOrAddressesIsRefused(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.ring(0, 8)
	g.must(g.SetVringEnable(0, true))
	if err := g.SetVringKick(0, r.KickFD()); !errors.Is(err, vhostusertest.ErrRefused) {
		t.Errorf("%v, want a refusal", err)
	}
}

func TestKickDescriptorThatCannotBeWatchedIsRefused(t *testing.T) {
	r, err := vhostuser.NewReactors(vhostuser.ReactorConfig{Mode: vhostuser.ModeThreads})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	g := newRig(t, newReverser(1))
	g.must(g.hangUp())
	g.backend, err = vhostuser.New(vhostuser.Config{Device: g.dev, Reactors: r})
	g.must(err)
	g.connect()
	g.handshake()
	ring := g.ring(0, 8)
	g.must(ring.Setup())
	g.must(g.SetVringEnable(0, true))
	if err := g.SetVringKick(0, g.mem.FD()); !errors.Is(err, vhostusertest.ErrRefused) {
		t.Errorf("a memory file as kick descriptor: %v, want a refusal", err)
	}
	g.must(g.hangUp())
}

func TestConfigSpaceIsReadAndWritten(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	for _, c := range []struct {
		off, n int
		want   string
	}{{0, 16, "0123456789abcdef"}, {0, 1, "0"}, {15, 1, "f"}, {4, 8, "456789ab"}, {16, 0, ""}} {
		if got, err := g.GetConfig(c.off, c.n); err != nil || string(got) != c.want {
			t.Errorf("%d bytes at %d: %q, %v, want %q", c.n, c.off, got, err, c.want)
		}
	}
	for _, c := range []struct{ off, n int }{{0, 17}, {16, 1}, {17, 0}, {1 << 31, 16}} {
		if err := g.SetConfig(c.off, make([]byte, c.n)); !errors.Is(err, vhostusertest.ErrRefused) {
			t.Errorf("%d bytes at %d: %v, want a refusal", c.n, c.off, err)
		}
	}
	g.must(g.SetConfig(0, []byte("Y")))
	// Rust's vhost crate has no other flag for a guest's write.
	g.must(g.Tell(vhostuser.SetConfig, vhostuser.ConfigSpace{Flags: vhostuser.ConfigMigration, Data: []byte("Z")}.Append(nil)))
	if got, err := g.GetConfig(0, 2); err != nil || string(got) != "Z1" {
		t.Errorf("after SET_CONFIG: %q, %v", got, err)
	}
}

func TestNoReadOfTheConfigSpaceIsRefused(t *testing.T) {
	for _, size := range []int{16, vhostuser.MaxConfigSize} {
		dev := newReverser(1)
		dev.config = bytes.Repeat([]byte("0123456789abcdef"), size/16)
		g := newRig(t, dev)
		g.handshake()
		all := append(slices.Clone(dev.config), make([]byte, 3*vhostuser.MaxConfigSize)...)
		read := func(off, n int, want []byte) {
			t.Helper()
			if got, err := g.GetConfig(off, n); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes at %d of %d: %q, %v, want %q", n, off, size, got, err, want)
			}
		}
		// What the front-end has in its message is not what is there.
		asked := vhostuser.ConfigSpace{Offset: 8, Data: bytes.Repeat([]byte{0xff}, vhostuser.MaxConfigSize)}
		answer, err := g.Ask(vhostuser.GetConfig, asked.Append(nil))
		g.must(err)
		if c, err := vhostuser.ParseConfigSpace(answer); err != nil || !bytes.Equal(c.Data, all[8:][:len(asked.Data)]) {
			t.Errorf("of %d bytes from 8 on: %q, %v", size, c.Data, err)
		}
		for off := range 2*vhostuser.MaxConfigSize + 1 {
			for _, n := range []int{0, 1, 57, vhostuser.MaxConfigSize} {
				read(off, n, all[off:off+n])
			}
		}
		for n := range vhostuser.MaxConfigSize + 1 {
			read(3, n, all[3:3+n])
		}
		for _, off := range []int{1 << 31, 1<<32 - 1} {
			read(off, vhostuser.MaxConfigSize, make([]byte, vhostuser.MaxConfigSize))
		}
	}
}

func TestStatusIsWhatWasSetLast(t *testing.T) {
	g := newRig(t, newReverser(1))
	features, err := g.Handshake(vhostusertest.AllProtocolFeatures)
	g.must(err)
	expect := func(want uint8) {
		t.Helper()
		if got, err := g.GetStatus(); got != want || err != nil {
			t.Errorf("status %#x, %v, want %#x", got, err, want)
		}
	}
	expect(0)
	// FEATURES_OK is not true before features were negotiated.
	g.must(g.SetStatus(0xb))
	expect(0x3)
	g.must(g.SetFeatures(features))
	expect(0xb)
	// A refused negotiation leaves the old one standing.
	if err := g.Tell(vhostuser.SetFeatures, vhostuser.AppendU64(nil, 1<<50)); !errors.Is(err, vhostusertest.ErrRefused) {
		t.Error(err)
	}
	g.must(g.SetStatus(0xf))
	expect(0xf)
	// QEMU 7.2 does this before it stops the rings, also for a pause: nothing else happens.
	g.must(g.AddMemory(g.mem))
	r := g.start(0, 8)
	g.must(g.SetStatus(0))
	expect(0)
	g.io(r, 3)
	g.must(r.Stop())
}

func TestOffersAreTheDevices(t *testing.T) {
	dev := newReverser(3)
	dev.features = virtq.FeatureVersion1 | 1<<5 | vhostuser.FLogAll
	g := newRig(t, dev)
	features, err := g.GetFeatures()
	g.must(err)
	if want := virtq.FeatureVersion1 | 1<<5 | vhostuser.FLogAll | vhostuser.FProtocolFeatures; features != want {
		t.Errorf("features %#x, want %#x", features, want)
	}
	protocol, err := g.GetProtocolFeatures()
	g.must(err)
	// MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, BACKEND_SEND_FD, INFLIGHT_SHMFD, RESET_DEVICE,
	// CONFIGURE_MEM_SLOTS, STATUS, GET_VRING_BASE_INFLIGHT.
	if want := vhostuser.ProtocolFeatures(1<<0 | 1<<1 | 1<<3 | 1<<5 | 1<<9 | 1<<10 | 1<<12 | 1<<13 | 1<<15 | 1<<16 | 1<<20); protocol != want {
		t.Errorf("protocol features %#x, want %#x", protocol, want)
	}
	g.must(g.SetProtocolFeatures(protocol))
	if n, err := g.GetQueueNum(); n != 3 || err != nil {
		t.Errorf("%d queues, %v, want 3", n, err)
	}
	if n, err := g.GetMaxMemSlots(); n != 509 || err != nil {
		t.Errorf("%d memory slots, %v, want 509", n, err)
	}
	g.must(g.hangUp())

	dev.config = nil
	g = newRig(t, dev)
	protocol, err = g.GetProtocolFeatures()
	g.must(err)
	if protocol&vhostuser.ProtocolConfig != 0 {
		t.Error("CONFIG is offered without a configuration space")
	}
}

func TestConfigChangeIsToldWhileARingRuns(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	told := func() {
		t.Helper()
		if req, err := g.ReceiveBackend(); err != nil || req != vhostuser.BackendConfigChangeMsg {
			t.Fatalf("back-end channel: %v, %v", req, err)
		}
	}
	g.backend.ConfigChanged()
	g.must(g.Barrier())
	if !g.BackendQuiet() {
		t.Error("a message though no ring runs")
	}
	// It was remembered.
	r := g.start(0, 8)
	told()
	g.backend.ConfigChanged()
	told()
	g.must(g.SetVringEnable(0, false))
	g.backend.ConfigChanged()
	told()
	g.must(r.Stop())
	g.backend.ConfigChanged()
	g.backend.ConfigChanged()
	g.must(g.Barrier())
	if !g.BackendQuiet() {
		t.Error("a message after the stop")
	}
	g.must(r.Start())
	told()
	g.must(g.Barrier())
	if !g.BackendQuiet() {
		t.Error("told twice")
	}
	g.must(g.hangUp())
	// Nobody is there: nothing happens.
	g.backend.ConfigChanged()
}

func TestConfigChangeNeverWaitsForTheFrontEnd(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.start(0, 8)
	// Nobody reads the channel; it fills.
	for range 100_000 {
		g.backend.ConfigChanged()
	}
	g.io(r, 3)
	g.must(r.Stop())
}

func TestConfigChangeNeedsConfigAndAChannel(t *testing.T) {
	for _, without := range []vhostuser.ProtocolFeatures{vhostuser.ProtocolConfig, vhostuser.ProtocolBackendReq} {
		g := newRig(t, newReverser(1))
		features, err := g.Handshake(vhostusertest.AllProtocolFeatures &^ without)
		g.must(err)
		g.must(g.SetFeatures(features))
		g.must(g.AddMemory(g.mem))
		r := g.start(0, 8)
		g.backend.ConfigChanged()
		g.must(g.Barrier())
		if without == vhostuser.ProtocolConfig && !g.BackendQuiet() {
			t.Error("a message without CONFIG")
		}
		g.io(r, 1)
		g.must(g.hangUp())
	}
}

func TestNewRefusesImpossibleDevices(t *testing.T) {
	r := newReactors(t)
	for name, c := range map[string]vhostuser.Config{
		"no device":             {Reactors: r},
		"no reactors":           {Device: newReverser(1)},
		"no queue":              {Device: newReverser(0), Reactors: r},
		"too many queues":       {Device: newReverser(257), Reactors: r},
		"too much config space": {Device: &reverser{queues: 1, config: make([]byte, 257)}, Reactors: r},
	} {
		if _, err := vhostuser.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := vhostuser.New(vhostuser.Config{Device: &reverser{queues: 256, config: make([]byte, 256)}, Reactors: r}); err != nil {
		t.Error(err)
	}
}
