package vhostuser_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

// requests maps the specification's names to messages.
var requests = func() map[string]vhostuser.Request {
	m := make(map[string]vhostuser.Request)
	for _, s := range shapes {
		m[s.req.String()] = s.req
	}
	return m
}()

// replay plays the messages of a real QEMU, in their order and with their flags, and does requests
// whenever a ring was enabled.
type replay struct {
	*rig
	offered  uint64
	protocol vhostuser.ProtocolFeatures
	ring     *vhostusertest.Ring
	size     int
	fresh    bool  // the driver has set up its ring anew
	status   uint8 // as it must be answered
	served   uint16
	done     int // requests in all
	region   *vhostusertest.Inflight

	held  []buffers // the request that is suspended at the next stop, in a recording with a region
	again int       // requests that were answered after they had been suspended
}

func (p *replay) message(fields []string) {
	p.t.Helper()
	req, ok := requests[fields[0]]
	if !ok {
		p.t.Fatalf("%v: not a message that is known", fields)
	}
	var u64 uint64
	ack := false
	for _, f := range fields[1:] {
		if f == "need_reply" {
			ack = true
		}
		if v, ok := strings.CutPrefix(f, "u64="); ok {
			var err error
			u64, err = strconv.ParseUint(v, 0, 64)
			p.must(err)
		}
	}
	// tell sends it as it was sent then.
	tell := func(payload []byte, fds ...int) {
		p.t.Helper()
		flags := uint32(0)
		if ack {
			flags = vhostuser.FlagNeedReply
		}
		p.must(p.Request(req, flags, payload, fds...))
		if ack {
			h, b, err := p.Receive()
			p.must(err)
			if h.Request != uint32(req) || len(b) != 8 || vhostuser.ParseU64(b) != 0 {
				p.t.Fatalf("%v: acknowledgement %+v %x", req, h, b)
			}
		}
	}
	state := vhostuser.VringState{Index: uint32(u64), Num: uint32(u64 >> 32)}
	var err error
	switch req {
	case vhostuser.GetFeatures:
		p.offered, err = p.GetFeatures()
	case vhostuser.SetFeatures:
		p.must(p.Frontend.SetFeatures(u64 & p.offered))
		if u64&^p.offered&^vhostuser.FLogAll != 0 {
			p.t.Fatalf("the test's device does not offer %#x", u64&^p.offered)
		}
	case vhostuser.GetProtocolFeatures:
		p.protocol, err = p.GetProtocolFeatures()
	case vhostuser.SetProtocolFeatures:
		err = p.SetProtocolFeatures(vhostuser.ProtocolFeatures(u64) & p.protocol)
	case vhostuser.GetQueueNum:
		_, err = p.GetQueueNum()
	case vhostuser.GetMaxMemSlots:
		_, err = p.GetMaxMemSlots()
	case vhostuser.SetBackendReqFD:
		err = p.SetBackendReqFD()
	case vhostuser.SetOwner:
		p.status = 0
		tell(nil)
	case vhostuser.ResetDevice:
		p.status = 0
		tell(nil)
	case vhostuser.GetConfig:
		_, err = p.GetConfig(0, 57)
	case vhostuser.GetStatus:
		var got uint8
		if got, err = p.GetStatus(); got != p.status {
			p.t.Errorf("status %#x, want %#x", got, p.status)
		}
		// A QEMU that is told the truth goes on like this.
		p.status |= 0x8
		if p.ring != nil {
			p.status |= 0x7
		}
		p.must(p.Request(vhostuser.SetStatus, 0, vhostuser.AppendU64(nil, uint64(p.status))))
	case vhostuser.SetStatus:
		p.status = uint8(u64)
		tell(vhostuser.AppendU64(nil, u64))
	case vhostuser.GetInflightFD:
		p.region, err = p.GetInflightFD(1, 128)
		p.must(err)
		p.t.Cleanup(p.region.Close)
	case vhostuser.SetInflightFD:
		tell(p.region.Append(nil), p.region.FD())
	case vhostuser.AddMemReg:
		for _, r := range p.mem.Regions()[:1] {
			tell(vhostuser.MemoryRegion(r).Append(nil), p.mem.FD())
		}
	case vhostuser.SetVringNum:
		p.size = int(state.Num)
		tell(state.Append(nil))
	case vhostuser.SetVringBase:
		// A base that is not 0 is a guest that goes on after a pause.
		if p.fresh = state.Num == 0; p.fresh {
			p.ring, err = p.NewRing(p.mem, 0, p.size)
			p.must(err)
			p.t.Cleanup(p.ring.Close)
		}
		state.Num = uint32(p.ring.Base)
		tell(state.Append(nil))
	case vhostuser.SetVringAddr:
		tell(p.ring.Addr().Append(nil))
	case vhostuser.SetVringKick:
		tell(vhostuser.AppendU64(nil, u64), p.ring.KickFD())
	case vhostuser.SetVringCall, vhostuser.SetVringErr:
		fd := fdsFor(p.t.(*testing.T), req, 1)[0]
		tell(vhostuser.AppendU64(nil, u64), fd)
		if p.ring != nil && req == vhostuser.SetVringCall {
			defer func() { p.must(p.SetVringCall(0, p.ring.CallFD())) }()
		}
	case vhostuser.SetVringEnable:
		tell(state.Append(nil))
		if state.Num == 1 {
			p.must(p.SetVringCall(0, p.ring.CallFD()))
			if p.served = 7; len(p.held) > 0 {
				if !p.fresh {
					p.answered(p.ring, p.held)
					p.again++
					p.served++
				}
				p.held = nil
			}
			p.io(p.ring, 7)
			p.done += int(p.served)
			if p.region != nil {
				p.held = p.hold(p.ring, 1)
			}
		}
	case vhostuser.GetVringBase:
		before := p.ring.Base
		p.ring.Base, err = p.GetVringBase(0)
		if p.ring.Base != before+p.served {
			p.t.Errorf("base %d after %d requests from %d on", p.ring.Base, p.served, before)
		}
	default:
		p.t.Fatalf("%v: the test does not know what to do", req)
	}
	p.must(err)
}

func TestConversationsOfRealQEMUs(t *testing.T) {
	files, err := filepath.Glob("testdata/qemu-*.txt")
	if err != nil || len(files) != 4 {
		t.Fatalf("recordings: %v, %v", files, err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			dev := newReverser(1).suspends()
			dev.features = 0x175007e44 | 0x170001244
			dev.config = make([]byte, 60)
			p := &replay{rig: newRig(t, dev)}
			first := true
			for line := range strings.Lines(string(text)) {
				fields := strings.Fields(line)
				switch {
				case len(fields) == 0 || fields[0] == "#":
				case fields[0] == "CONNECT":
					if !first {
						p.must(p.hangUp())
						p.connect()
						p.status, p.ring = 0, nil
					}
					first = false
				default:
					p.message(fields)
				}
			}
			p.must(p.hangUp())
			// The guest was paused once, and went on with the same region.
			if want := strings.Count(name, "inflight"); p.again != want {
				t.Errorf("%d requests came again, want %d", p.again, want)
			}
			if p.done < 40 {
				t.Errorf("%d requests in all", p.done)
			}
			if failed := p.rec.find(vhostuser.EventFail); len(failed) > 0 {
				t.Errorf("refused: %v", failed)
			}
			if broken := p.rec.find(vhostuser.EventBreak); len(broken) > 0 {
				t.Errorf("broken: %v", broken)
			}
		})
	}
}
