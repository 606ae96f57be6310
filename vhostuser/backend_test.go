package vhostuser_test

import (
	"strings"
	"testing"

	"vdev/vhostuser"
)

func TestDeviceIsServedFromStartToStop(t *testing.T) {
	for _, aio := range []vhostuser.Mode{vhostuser.ModeURing, vhostuser.ModeThreads} {
		t.Run(string(aio), func(t *testing.T) {
			g := newRigOn(t, newReverser(2), aio)
			g.handshake()
			r0, r1 := g.start(0, 8), g.start(1, 16)
			g.io(r0, 100)
			g.io(r1, 100)
			g.must(r0.Stop())
			g.must(r1.Stop())
			if r0.Base != 100 || r1.Base != 100 {
				t.Errorf("bases %d and %d, want 100", r0.Base, r1.Base)
			}
			g.must(g.hangUp())
			want := "features 0x130000000, start 0, start 1, stop 0 alone, base, stop 1 base, end"
			if got := g.dev.life(); got != want {
				t.Errorf("device's life: %s\nwant:          %s", got, want)
			}
		})
	}
}

func TestEventsTellTheWholeStory(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.must(g.SetOwner())
	g.must(g.SetFeatures(vhostuser.FProtocolFeatures))
	g.must(g.AddMemory(g.mem))
	r := g.ring(0, 8)
	g.must(r.Start())
	g.must(r.Stop())
	g.must(g.Request(99, 0, nil, r.CallFD()))
	g.wait()

	var got []string
	for _, e := range g.rec.events {
		if e.Time.IsZero() {
			t.Errorf("%v: without a time", e)
		}
		got = append(got, e.String())
	}
	want := []string{
		"connect",
		"in SET_OWNER",
		"in SET_FEATURES u64=0x40000000",
		"in SET_MEM_TABLE guest_phys=0x0 size=0x100000 user_addr=0x7e0000000000 mmap_offset=0x0 " +
			"guest_phys=0x100000000 size=0x100000 user_addr=0x7e0000100000 mmap_offset=0x100000 fds=2",
		"in SET_VRING_ERR ring=0 fds=1",
		"in SET_VRING_CALL ring=0 fds=1",
		"in SET_VRING_NUM ring=0 num=8",
		"in SET_VRING_BASE ring=0 num=0",
		"in SET_VRING_ADDR ring=0 flags=0x0 desc=0x7e0000000000 avail=0x7e0000000080 used=0x7e0000000098 log=0x98",
		"in SET_VRING_KICK ring=0 fds=1",
		"in SET_VRING_ENABLE ring=0 num=1",
		"start ring=0 size=8 base=0 features=0x0",
		"in SET_VRING_ENABLE ring=0 num=0",
		"disable ring=0",
		"in GET_VRING_BASE ring=0 num=0",
		"stopping ring=0 why=base",
		"stop ring=0 why=base base=0",
		"out GET_VRING_BASE ring=0 num=0",
		"in request 99 fds=1",
		"fail request 99: vhostuser: request 99: message is not supported",
		"disconnect: vhostuser: request 99: message is not supported",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("events:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
