package virtioconsole

import (
	"context"
	"testing"

	"vdev/internal/test/consoletest"
)

// TestEmergencyWriteNeedsNoRing: nor negotiation. A character that comes twice is put out twice.
func TestEmergencyWriteNeedsNoRing(t *testing.T) {
	r := newRig(t, several(data(0, "a"), console(1)))
	if r.g.Offered()&consoletest.FeatureEmergWrite == 0 {
		t.Error("it is not offered")
	}
	for _, c := range []byte("oops!\n") {
		r.must(r.g.EmergencyWrite(c))
	}
	l := r.lines[1]
	l.awaitOutput(t, "oops!\n")
	r.must(r.dev.WaitClosed(context.Background()))
	r.want("life of the other", r.life(0), "")
	// Each open was closed in order.
	for rest := r.life(1); rest != ""; {
		one := opening + " " + closing
		if len(rest) < len(one) || rest[:len(one)] != one {
			t.Fatalf("life: %s", r.life(1))
		}
		rest = rest[len(one):]
		if rest != "" {
			rest = rest[1:]
		}
	}
	r.must(r.g.Bind())
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.write(p, "x")
	r.must(p.Flush())
	r.must(r.g.EmergencyWrite('y'))
	l.awaitOutput(t, "xy")
}

// TestEmergencyWritesAreKeptWhileTheDeviceIsNotOpen: and rings that start meanwhile take the open
// over.
func TestEmergencyWritesAreKeptWhileTheDeviceIsNotOpen(t *testing.T) {
	r := newRig(t, several(console(0)))
	l := r.lines[0]
	l.do(func() { l.asleep = true })
	r.must(r.g.EmergencyWrite('a'))
	l.await(t, "d_open", func() bool { return l.opens == 1 })
	r.must(r.g.EmergencyWrite('b'))
	r.must(r.g.Bind())
	p := r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
	r.must(p.Print([]byte("c")))
	l.do(func() { l.asleep = false })
	l.awaitOutput(t, "abc")
	r.must(p.Print([]byte("d")))
	l.awaitOutput(t, "d")
	r.must(r.g.Unbind())
	r.want("life", r.life(0), opening+" "+closing)
}

func TestAnEmergencyWhoseOpenNeverReturnsEndsWithTheDevice(t *testing.T) {
	r := newRig(t, single)
	l := r.lines[0]
	l.do(func() { l.asleep = true })
	r.must(r.g.EmergencyWrite('a'))
	l.await(t, "d_open", func() bool { return l.opens == 1 })
	r.hangUp()
	r.must(r.dev.WaitClosed(context.Background()))
	if b := r.dev.Status().Ports[0].Backlog; b != 1 {
		t.Errorf("%d bytes are kept", b)
	}
}

// TestOnlyEmergWrOfTheConfigurationSpaceCanBeWritten: QEMU sends the whole of it, with what it read
// some time ago.
func TestOnlyEmergWrOfTheConfigurationSpaceCanBeWritten(t *testing.T) {
	r := newRig(t, single)
	f := r.g.Frontend()
	before, err := f.GetConfig(0, configSize)
	r.must(err)
	all := make([]byte, configSize)
	for i := range all {
		all[i] = byte('a' + i)
	}
	for _, w := range []struct{ off, n int }{{0, 12}, {0, 8}, {0, 9}, {8, 4}, {8, 1}, {9, 3}, {11, 1}, {2, 7}, {0, 1}} {
		r.must(f.SetConfig(w.off, all[w.off:w.off+w.n]))
	}
	// Those that reach byte 8 put it out.
	r.lines[0].awaitOutput(t, "iiiii")
	after, err := f.GetConfig(0, configSize)
	r.must(err)
	r.want("configuration", string(after), string(before))
}
