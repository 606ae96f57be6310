package virtioblk

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
	"time"

	"vdev/internal/dev/fault"
	"vdev/internal/dev/md"
	"vdev/internal/reactor"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/virtq/virtqtest"
)

// TestWhatADisableDoesWithRequestsThatHang, once their time is over: it is answered, and from then
// on nothing touches the guest's memory, whatever storage does. Where a stop would leave the
// requests in the region, they are kept: for the stop that may follow, or for the ring that is
// enabled again, which goes on with them. Else they have failed.
func TestWhatADisableDoesWithRequestsThatHang(t *testing.T) {
	for name, c := range map[string]struct {
		knows      vhostuser.ProtocolFeatures
		migratable bool
		kept       bool
	}{
		"a region":                {noMigration, true, false},
		"a region, not migrated":  {noMigration, false, true},
		"no region":               {noInflight, true, false},
		"no region, not migrated": {noInflight, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			eachLower(t, func(t *testing.T, mode reactor.Mode, lower disk) {
				for _, stops := range []bool{false, true} {
					const queues = 2
					f := newFaulty(t, lower, "hang:any")
					w, region := newSuspendBench(t, mode, queues, f.disk, c.knows, func(conf *benchConfig) {
						conf.CancelAfter, conf.Migratable = 5*time.Millisecond, c.migratable
					})
					var status [queues][]virtqtest.Seg
					for q := range queues {
						for _, typ := range kinds {
							status[q] = append(status[q], w.request(q, typ))
						}
					}
					f.waitHeld(queues * len(kinds))
					w.disable()
					want := uint8(statusIOErr)
					if c.kept {
						want = 0xff
					}
					for q := range queues {
						if s := w.ring(q); c.kept != (s.Suspended == len(kinds)) || s.InFlight != 0 || !s.Known {
							t.Errorf("ring %d: %+v", q, s)
						}
						for i, s := range status[q] {
							if got := w.bytes(s)[0]; got != want {
								t.Errorf("ring %d: %s has status %#x, want %#x", q, typeName(kinds[i]), got, want)
							}
						}
					}
					w.watch(func() {
						f.control(fault.FAULTCLEAR, nil)
						f.control(fault.FAULTRELEASE, nil)
					})
					w.expectOrder("the disables", append(append([]specfs.Kind(nil), opens...), closes...)...)
					if stops {
						for _, r := range w.rings {
							w.check(r.Stop())
						}
						w.startRings(region)
					} else {
						for i := range w.rings {
							w.check(w.f.SetVringEnable(i, true))
						}
					}
					for q, r := range w.rings {
						for range kinds {
							if _, _, err := r.Wait(); err != nil {
								t.Fatal(err)
							}
						}
						for i, s := range status[q] {
							if got := w.bytes(s)[0]; c.kept && got != statusOK {
								t.Errorf("ring %d: %s, begun again, has status %#x", q, typeName(kinds[i]), got)
							}
						}
						if st, _ := w.do(q, tIn, 0, nil, []virtqtest.Seg{w.buffer(512)}); st != statusOK {
							t.Errorf("ring %d: a read after all that has status %d", q, st)
						}
					}
					w.close()
				}
			})
		})
	}
}

// TestADisableFencesWhatStorageDoesNotGiveBack, and what goes on afterwards waits for it.
func TestADisableFencesWhatStorageDoesNotGiveBack(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		d := &keeper{hold: true, fill: 0xcc, wrote: map[int64][]byte{}}
		w, _ := newSuspendBench(t, mode, 2, d.disk, noInflight, func(c *benchConfig) { c.CancelAfter = time.Millisecond })
		for q := range 2 {
			w.readAt(q, 1)
			w.write(q, uint64(10+q), 1)
		}
		d.await(t, 4)
		w.disable()
		if got := w.dev.Status().Fenced; got != 4 {
			t.Errorf("%d transfers are fenced, want 4", got)
		}
		for i, r := range w.rings {
			for range 2 {
				if _, _, ok := r.Used(); !ok {
					t.Fatal("a request that was given up was not answered")
				}
			}
			w.check(w.f.SetVringEnable(i, true))
		}
		_, status := w.write(0, 10, 2)
		time.Sleep(2 * time.Millisecond) // time in which it might wrongly be begun
		d.await(t, 4)
		w.check(w.f.SetVringEnable(0, false)) // it has not reached the driver, nor been fetched
		w.check(w.f.SetVringEnable(0, true))
		d.release()
		if _, _, err := w.rings[0].Wait(); err != nil || w.bytes(status)[0] != statusOK {
			t.Fatal(err, w.bytes(status)[0])
		}
		if data, _ := d.written(10); data[0] != 2 {
			t.Errorf("block 10 has %d, written before the newer write", data[0])
		}
	})
}

// foreign is a conversation of a front-end that is not QEMU: what it negotiates, and in which
// order it sets the device up. Its guest has the rings in memory of its own for each life of the
// device.
type foreign struct {
	*bench
}

func newForeign(t *testing.T, d disk, queues int, knows vhostuser.ProtocolFeatures, change func(*benchConfig)) *foreign {
	w := newBench(t, reactor.ModeURing, queues, d, change)
	w.hangUp()
	w.dial()
	w.offered = must(w.f.GetFeatures())(t)
	w.check(w.f.SetProtocolFeatures(must(w.f.GetProtocolFeatures())(t) & knows))
	must(w.f.GetQueueNum())(t)
	return &foreign{bench: w}
}

// newRings gives the guest rings in new memory.
func (w *foreign) newRings() {
	w.t.Helper()
	for _, r := range w.rings {
		r.Close()
	}
	w.rings = nil
	for i := range w.dev.NumQueues() {
		w.rings = append(w.rings, must(w.f.NewRing(w.mem, i, 128))(w.t))
	}
}

// cloudHypervisor is what Cloud Hypervisor acknowledges of a disk; it asks for an answer to every
// message.
const cloudHypervisor = vhostuser.ProtocolConfig | vhostuser.ProtocolMQ | vhostuser.ProtocolConfigureMemSlots |
	vhostuser.ProtocolReplyAck | vhostuser.ProtocolInflightSHMFD | vhostuser.ProtocolLogSHMFD

// setUpCloudHypervisor starts the device as Cloud Hypervisor does, at boot and after a reset.
func (w *foreign) setUpCloudHypervisor() {
	w.t.Helper()
	w.check(w.f.SetFeatures(w.offered))
	w.newRings()
	w.check(w.f.SetMemTable(w.mem))
	for _, r := range w.rings {
		w.check(w.f.SetVringNum(r.Index, 128))
	}
	region := must(w.f.GetInflightFD(len(w.rings), 128))(w.t)
	w.check(w.f.SetInflightFD(region))
	region.Close()
	for _, r := range w.rings {
		w.check(w.f.SetVringAddr(r.Addr()))
		w.check(w.f.SetVringBase(r.Index, 0))
		w.check(w.f.SetVringCall(r.Index, r.CallFD()))
		w.check(w.f.SetVringKick(r.Index, r.KickFD()))
	}
	for _, r := range w.rings {
		w.check(w.f.SetVringEnable(r.Index, true))
	}
}

// slowly runs a step of the front-end while storage hangs, and lets storage go on a moment later.
// Its end must come after that, and from then on nothing touches the guest's memory.
func (w *foreign) slowly(f *faulty, step func()) {
	w.t.Helper()
	answered, released := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(released)
		for w.dev.Status().CancelAt.IsZero() && !ended(answered) {
			runtime.Gosched()
		}
		time.Sleep(5 * time.Millisecond) // time in which a wrong answer would come
		if ended(answered) {
			w.t.Error("it was answered while requests were in flight")
		}
		// A request may be several operations, of which the later ones must not hang.
		f.control(fault.FAULTCLEAR, nil)
		f.control(fault.FAULTRELEASE, nil)
	}()
	step()
	close(answered)
	w.watch(func() { <-released })
}

// TestCloudHypervisorPausesAndResets: it pauses by SET_VRING_ENABLE 0 on each ring and nothing
// else, and resumes by 1; it resets ring by ring, by SET_VRING_ENABLE 0 and GET_VRING_BASE, and
// sets the device up anew.
func TestCloudHypervisorPausesAndResets(t *testing.T) {
	f := newFaulty(t, mdDisk(md.Config{Size: diskSize}))
	w := newForeign(t, f.disk, 2, cloudHypervisor, func(c *benchConfig) { c.CancelAfter, c.Migratable = time.Hour, true })
	w.check(w.f.SetOwner())
	w.setUpCloudHypervisor()
	ask := func() (status []virtqtest.Seg) {
		f.hang()
		for q := range w.rings {
			for _, typ := range kinds {
				status = append(status, w.request(q, typ))
			}
		}
		f.waitHeld(len(status))
		return status
	}
	answered := func(status []virtqtest.Seg) {
		t.Helper()
		for _, r := range w.rings {
			for range kinds {
				if _, _, ok := r.Used(); !ok {
					t.Fatal("a request was not completed")
				}
			}
		}
		for i, s := range status {
			if got := w.bytes(s)[0]; got != statusOK {
				t.Errorf("request %d has status %#x", i, got)
			}
		}
	}
	for range 2 {
		status := ask()
		w.slowly(f, w.disable)
		answered(status)
		for _, r := range w.rings {
			w.check(w.f.SetVringEnable(r.Index, true))
		}
	}
	status := ask()
	w.slowly(f, func() {
		for _, r := range w.rings {
			w.check(r.Stop())
		}
	})
	answered(status)
	w.setUpCloudHypervisor()
	w.served()
}

// hang makes everything hang that begins from now on.
func (f *faulty) hang() {
	f.t.Helper()
	rule := must(fault.ParseRule("hang:any"))(f.t)
	f.control(fault.FAULTSET, &rule)
}

// served looks whether the device serves each ring.
func (w *foreign) served() {
	w.t.Helper()
	for q := range w.rings {
		if st, _ := w.do(q, tIn, 0, nil, []virtqtest.Seg{w.buffer(512)}); st != statusOK {
			w.t.Errorf("ring %d: a read has status %d", q, st)
		}
	}
}

// activateLibkrun starts the device as libkrun does, at boot and after a reset.
func (w *foreign) activateLibkrun() {
	w.t.Helper()
	w.check(w.f.SetOwner())
	w.check(w.f.SetMemTable(w.mem))
	w.check(w.f.SetFeatures(w.offered))
	w.newRings()
	for _, r := range w.rings {
		w.check(w.f.SetVringNum(r.Index, 128))
		w.check(w.f.SetVringBase(r.Index, 0))
		w.check(w.f.SetVringAddr(r.Addr()))
		w.check(w.f.SetVringKick(r.Index, r.KickFD()))
		w.check(w.f.SetVringCall(r.Index, r.CallFD()))
		w.check(w.f.SetVringEnable(r.Index, true))
	}
}

// libkrun is what libkrun acknowledges: no message is answered that has no reply of its own.
const libkrun = vhostuser.ProtocolConfig | vhostuser.ProtocolMQ

// TestLibkrunResets: it does so by SET_VRING_ENABLE 0 on each ring and nothing else, and then
// begins anew with SET_OWNER. The guest driver reads the configuration after its reset, which is
// the first message that libkrun waits for.
func TestLibkrunResets(t *testing.T) {
	f := newFaulty(t, mdDisk(md.Config{Size: diskSize}))
	w := newForeign(t, f.disk, 2, libkrun, func(c *benchConfig) { c.CancelAfter, c.Migratable = time.Hour, true })
	w.activateLibkrun()
	for life := range 3 {
		n := 0
		f.hang()
		for q := range w.rings {
			for _, typ := range kinds {
				w.request(q, typ)
				n++
			}
		}
		f.waitHeld(n)
		w.slowly(f, func() {
			w.disable()
			must(w.f.GetConfig(0, 8))(t)
		})
		before := bytes.Clone(w.mem.Bytes(0, w.mem.Alloc(1, 1)))
		w.activateLibkrun()
		w.check(w.f.Barrier())
		if !bytes.Equal(before, w.mem.Bytes(0, uint64(len(before)))) {
			t.Errorf("life %d: memory of the one before was written", life)
		}
	}
	w.served()
}

// TestNothingOfTheOldLifeIsInFlightWhenANewOneBegins, though storage never gave it back: what it
// does with the old requests is seen by nobody, and the new life's wait for it.
func TestNothingOfTheOldLifeIsInFlightWhenANewOneBegins(t *testing.T) {
	for _, disables := range []bool{true, false} {
		t.Run(fmt.Sprintf("disabled first: %v", disables), func(t *testing.T) {
			d := &keeper{hold: true, fill: 0xcc, wrote: map[int64][]byte{}}
			w := newForeign(t, d.disk, 2, libkrun, func(c *benchConfig) { c.CancelAfter = time.Millisecond })
			w.activateLibkrun()
			for q := range w.rings {
				w.readAt(q, 1)
				w.write(q, 5, 1)
			}
			d.await(t, 4)
			if disables {
				w.disable()
			}
			end := w.mem.Alloc(1, 1)
			w.activateLibkrun()
			must(w.f.GetConfig(0, 8))(t)
			if got := w.dev.Status(); got.Fenced != 4 {
				t.Errorf("%d transfers are fenced, want 4", got.Fenced)
			}
			old := bytes.Clone(w.mem.Bytes(0, end))
			_, status := w.write(1, 5, 2)
			d.release()
			if _, _, err := w.rings[1].Wait(); err != nil || w.bytes(status)[0] != statusOK {
				t.Fatal(err, w.bytes(status)[0])
			}
			if last, _ := d.written(5); last[0] != 2 {
				t.Errorf("block 5 has %d, want what the new life has written", last[0])
			}
			if !bytes.Equal(old, w.mem.Bytes(0, end)) {
				t.Error("memory of the old life was written")
			}
		})
	}
}
