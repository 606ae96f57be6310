package vhostuser_test

import (
	"context"
	"testing"

	"pgregory.net/rapid"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// ringModel is what the front-end knows of one ring: the two states, and what must have been
// served.
type ringModel struct {
	ring             *vhostusertest.Ring
	bufs             buffers
	started, enabled bool
	configured       bool
	added, served    int // requests since the driver set up its ring
}

// Whatever a front-end does in whatever order, a ring is served when it is started and enabled, and
// only then: the base that GET_VRING_BASE answers counts exactly what was added while it ran, or
// waited when it began to.
func TestRingStatesAgreeWithTheModel(t *testing.T) {
	reactors := newReactors(t)
	rapid.Check(t, func(rt *rapid.T) {
		must := func(err error) {
			rt.Helper()
			if err != nil {
				rt.Fatal(err)
			}
		}
		dev := newReverser(2)
		b, err := vhostuser.New(vhostuser.Config{Device: dev, Reactors: reactors})
		must(err)
		f, conn, err := vhostusertest.Pair()
		must(err)
		served := make(chan error, 1)
		go func() { served <- b.ServeConn(context.Background(), conn) }()
		mem, err := virtqtest.NewMem(virtqtest.Range{Size: 8 << 20})
		must(err)
		var open []*vhostusertest.Ring
		defer func() {
			f.Close()
			if err := <-served; err != nil {
				rt.Errorf("ServeConn: %v", err)
			}
			mem.Close()
			for _, r := range open {
				r.Close()
			}
		}()

		begin := func() {
			features, err := f.Handshake(vhostusertest.AllProtocolFeatures)
			must(err)
			must(f.SetFeatures(features))
			must(f.AddMemory(mem))
		}
		begin()
		rings := []*ringModel{{bufs: newBuffers(mem)}, {bufs: newBuffers(mem)}}
		setup := func(i int) {
			r, err := f.NewRing(mem, i, 16)
			must(err)
			open = append(open, r)
			must(r.Setup())
			m := rings[i]
			*m = ringModel{ring: r, bufs: m.bufs, enabled: m.enabled, configured: true}
		}
		settle := func(m *ringModel) {
			if !m.started || !m.enabled {
				return
			}
			for ; m.served < m.added; m.served++ {
				_, _, err := m.ring.Wait()
				must(err)
			}
		}
		pick := func(rt *rapid.T) (int, *ringModel) {
			i := rapid.IntRange(0, 1).Draw(rt, "ring")
			return i, rings[i]
		}
		all := func(change func(*ringModel)) {
			for _, m := range rings {
				change(m)
			}
		}

		rt.Repeat(map[string]func(*rapid.T){
			"set up": func(rt *rapid.T) {
				if i, m := pick(rt); !m.started {
					setup(i)
				}
			},
			"add": func(rt *rapid.T) {
				_, m := pick(rt)
				if !m.configured {
					return
				}
				if _, ok := m.ring.Add(m.bufs.in, m.bufs.out); ok {
					m.added++
					must(m.ring.Notify())
				}
				settle(m)
			},
			"SET_VRING_KICK": func(rt *rapid.T) {
				i, m := pick(rt)
				if !m.configured {
					return
				}
				must(f.SetVringKick(i, m.ring.KickFD()))
				m.started = true
				settle(m)
			},
			"SET_VRING_ENABLE": func(rt *rapid.T) {
				i, m := pick(rt)
				m.enabled = rapid.Bool().Draw(rt, "enable")
				must(f.SetVringEnable(i, m.enabled))
				settle(m)
			},
			"GET_VRING_BASE": func(rt *rapid.T) {
				i, m := pick(rt)
				base, err := f.GetVringBase(i)
				must(err)
				if int(base) != m.served {
					rt.Fatalf("ring %d: base %d, want %d", i, base, m.served)
				}
				m.started = false
			},
			"RESET_OWNER": func(*rapid.T) {
				must(f.ResetOwner())
				all(func(m *ringModel) { m.enabled = false })
			},
			"RESET_DEVICE": func(*rapid.T) {
				must(f.ResetDevice())
				all(func(m *ringModel) { m.enabled = false })
				must(f.SetFeatures(f.Features()))
				// The driver sets up its rings anew; where the ring was started, it still is.
				for i, m := range rings {
					if started := m.started; m.configured {
						setup(i)
						if started {
							must(f.SetVringKick(i, m.ring.KickFD()))
							m.started = true
						}
					}
				}
			},
			"SET_OWNER": func(*rapid.T) {
				begin()
				for i, m := range rings {
					rings[i] = &ringModel{bufs: m.bufs}
				}
			},
			"SET_MEM_TABLE": func(*rapid.T) { must(f.SetMemTable(mem)) },
			"SET_VRING_CALL": func(rt *rapid.T) {
				if i, m := pick(rt); m.configured {
					must(f.SetVringCall(i, m.ring.CallFD()))
				}
			},
		})
	})
}
