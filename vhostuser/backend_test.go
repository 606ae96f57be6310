package vhostuser_test

import (
	"testing"
)

func TestRingServesRequests(t *testing.T) {
	g := newRig(t, newReverser(2))
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
	if got, want := g.dev.life(), "features 0x130000000, start 0, start 1, stop 0 base, stop 1 base, end"; got != want {
		t.Errorf("device's life: %s\nwant:          %s", got, want)
	}
}
