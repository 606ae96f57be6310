package fault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"
	"vdev/specfs"
)

// bubble runs a test under a clock of its own.
func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// operations are what a user of the open disk can do, each with the kind it counts as.
var operations = []struct {
	op Ops
	do func(r *rig) error
}{
	{Read, func(r *rig) error { return asError(r.transfer(devsw.BRead, 0, 0, make([]byte, 4096))) }},
	{Write, func(r *rig) error { return asError(r.transfer(devsw.BWrite, 0, 0, make([]byte, 4096))) }},
	{Flush, (*rig).flush},
	{Discard, func(r *rig) error { return r.node.Discard(0, 4096) }},
	{Zeroes, func(r *rig) error { return r.zero(0, 4096) }},
}

func asError(b *devsw.Buf) error {
	if b.Error != 0 {
		return b.Error
	}
	return nil
}

func TestWithoutRulesTheDiskIsTheLowerOne(t *testing.T) {
	for _, lower := range lowers {
		t.Run(lower, func(t *testing.T) {
			r := opened(t, lower)
			defer r.close()
			data := bytes.Repeat([]byte("the lower one "), 1024)[:8192]
			r.write(8, data)
			if !bytes.Equal(r.read(8, len(data)), data) {
				t.Error("what is read is not what was written")
			}
			must(t, r.flush())
			must(t, r.node.Discard(4096, 512))
			must(t, r.zero(4608, 512))
			clear(data[:1024])
			if !bytes.Equal(r.read(8, len(data)), data) {
				t.Error("what was discarded and made zero is not")
			}
			if n := r.node.Psize(); n != size/512 {
				t.Errorf("the size is %d blocks", n)
			}
			var info devsw.DiskInfo
			must(t, r.node.Ioctl(devsw.DIOCGDISKINFO, &info, rw))
			if own, err := r.d.Info(0); err != nil || own != info || info.Size != size {
				t.Errorf("%+v, and without an open %+v, %v", info, own, err)
			}
			is(t, "an unknown command", r.node.Ioctl(devsw.CmdDriver+99, nil, rw), devsw.ENOTTY)
			is(t, "a second open", r.fs.Node(devsw.IFCHR, r.charDev()).Open(t.Context(), rw), devsw.EBUSY)
			b := r.transfer(devsw.BRead, 0, size/512, make([]byte, 512))
			if b.Error != 0 || b.Resid != 512 {
				t.Errorf("a read at the end: error %v, resid %d", b.Error, b.Resid)
			}
		})
	}
}

// charDev is the disk's character device.
func (r *rig) charDev() devsw.Dev { return r.table.Blk2chr(r.dev) }

func TestTheCharacterDeviceMeetsTheSameFaults(t *testing.T) {
	r := newRig(t, mdName, Config{Rules: parse(t, "error:write:blocks=8")}, New)
	n, m := r.fs.Node(devsw.IFCHR, r.charDev()), r.fs.Node(devsw.IFCHR, r.charDev())
	must(t, n.Open(t.Context(), rw))
	must(t, m.Open(t.Context(), devsw.FREAD))
	p := bytes.Repeat([]byte{7}, 4096)
	must(t, n.Write(uio(devsw.UIOWrite, 0, p), 0))
	is(t, "a write at block 8", n.Write(uio(devsw.UIOWrite, 4096, p), 0), devsw.EIO)
	q := make([]byte, 8192)
	must(t, m.Read(uio(devsw.UIORead, 0, q), 0))
	if !bytes.Equal(q, append(p, make([]byte, 4096)...)) {
		t.Error("what is read is not what was written")
	}
	is(t, "the block device", r.node.Open(t.Context(), rw), devsw.EBUSY)
	must(t, n.Close(rw))
	must(t, m.Close(devsw.FREAD))
	r.open()
	r.close()
}

func TestADelayedOperationBeginsWhenItsTimeIsOver(t *testing.T) {
	for _, o := range operations {
		bubble(t, o.op.String(), func(t *testing.T) {
			r := opened(t, mdName, fmt.Sprintf("delay:%v:time=3s", o.op))
			defer r.close()
			began := time.Now()
			must(t, o.do(r))
			if d := time.Since(began); d != 3*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
	bubble(t, "random", func(t *testing.T) {
		var runs [2][]time.Duration
		for i := range runs {
			r := opened(t, mdName, "delay:read:time=1s-9s:seed=5")
			for range 20 {
				began := time.Now()
				r.read(0, 512)
				runs[i] = append(runs[i], time.Since(began))
			}
			r.close()
		}
		if !slices.Equal(runs[0], runs[1]) {
			t.Errorf("the same seed gave %v and %v", runs[0], runs[1])
		}
		if lo, hi := slices.Min(runs[0]), slices.Max(runs[0]); lo < time.Second || hi > 9*time.Second || lo == hi {
			t.Errorf("delays from %v to %v", lo, hi)
		}
	})
	bubble(t, "open and close", func(t *testing.T) {
		r := newRig(t, mdName, Config{Rules: parse(t, "delay:open:time=2s", "delay:close:time=5s", "delay:cancel:time=11s")}, New)
		began := time.Now()
		r.open()
		if d := time.Since(began); d != 2*time.Second {
			t.Errorf("the open took %v", d)
		}
		began = time.Now()
		r.close()
		if d := time.Since(began); d != 16*time.Second {
			t.Errorf("the close took %v", d)
		}
	})
	bubble(t, "added up", func(t *testing.T) {
		r := opened(t, mdName, "delay:read:time=1s", "delay:any:time=2s", "error:read")
		defer r.close()
		began := time.Now()
		is(t, "read", operations[0].do(r), devsw.EIO)
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func TestWhatHangsGoesOnWhenItIsReleased(t *testing.T) {
	for _, o := range operations {
		bubble(t, o.op.String(), func(t *testing.T) {
			r := opened(t, mdName, fmt.Sprintf("hang:%v:count=1", o.op))
			defer r.close()
			began := time.Now()
			answer := make(chan error, 1)
			go func() { answer <- o.do(r) }()
			time.Sleep(time.Hour)
			synctest.Wait()
			s := r.state()
			if len(s.Held) != 1 || s.Held[0].Op != o.op || !s.Held[0].Hangs || !s.Held[0].Since.Equal(began) || s.Held[0].Rule != 1 {
				t.Fatalf("%+v hang since %v", s.Held, began)
			}
			if s.Injected[Hang] != 1 || s.Ops[o.op] != 1 || s.Rules[0].Hit != 1 {
				t.Errorf("%+v", s)
			}
			other := 77
			must(t, r.node.Ioctl(FAULTRELEASE, &other, rw))
			synctest.Wait()
			if len(r.state().Held) != 1 {
				t.Error("the release of another rule's has ended it")
			}
			must(t, r.node.Ioctl(FAULTRELEASE, nil, rw))
			must(t, <-answer)
			must(t, o.do(r)) // the rule was for one
			if s := r.state(); len(s.Held) != 0 {
				t.Errorf("%+v still hang", s.Held)
			}
		})
	}
	bubble(t, "open", func(t *testing.T) {
		r := newRig(t, mdName, Config{Rules: parse(t, "hang:open")}, New)
		answer := make(chan error, 1)
		go func() { answer <- r.node.Open(t.Context(), rw) }()
		synctest.Wait()
		r.release()
		must(t, <-answer)
		r.close()
	})
	bubble(t, "close and cancel", func(t *testing.T) {
		r := opened(t, mdName, "hang:close", "hang:cancel")
		answer := make(chan error, 1)
		go func() { answer <- r.node.Close(rw) }()
		for range 2 {
			synctest.Wait()
			if s := r.state(); len(s.Held) != 1 {
				t.Fatalf("%+v hang", s.Held)
			}
			r.release()
		}
		must(t, <-answer)
	})
}

func TestAHangHasItsPlaceAndItsNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := opened(t, mdName, "hang:write:blocks=8-15:skip=1:count=2")
		defer r.close()
		p := make([]byte, 4096)
		r.write(0, p)
		r.write(16, p)
		r.write(8, p) // skipped
		_, a := r.start(devsw.BWrite, 0, 15, p)
		_, b := r.start(devsw.BWrite, 0, 1, p)
		r.write(15, p) // the third
		r.read(8, 4096)
		synctest.Wait()
		if ended(a) || ended(b) {
			t.Error("a write that touches the blocks does not hang")
		}
		if s := r.state(); s.Rules[0].Matched != 4 || s.Rules[0].Hit != 2 || len(s.Held) != 2 || s.Held[0].Pos != 15*512 || s.Held[1].N != 4096 {
			t.Errorf("%+v", s)
		}
		r.release()
		<-a
		<-b
	})
}

func TestErrorsAreWhatTheRuleSays(t *testing.T) {
	for _, o := range operations {
		t.Run(o.op.String(), func(t *testing.T) {
			r := opened(t, mdName, fmt.Sprintf("error:%v:count=1", o.op), fmt.Sprintf("error:%v:errno=ENOSPC:count=1", o.op))
			defer r.close()
			is(t, "the first", o.do(r), devsw.EIO)
			is(t, "the second", o.do(r), devsw.ENOSPC)
			must(t, o.do(r))
		})
	}
	t.Run("open", func(t *testing.T) {
		r := newRig(t, mdName, Config{Rules: parse(t, "error:open:count=1:errno=EBUSY")}, New)
		is(t, "open", r.node.Open(t.Context(), rw), devsw.EBUSY)
		r.open()
		r.close()
	})
	t.Run("close", func(t *testing.T) {
		r := opened(t, mdName, "error:close:count=1")
		is(t, "close", r.node.Close(rw), devsw.EIO)
		r.open() // it is closed all the same
		r.close()
	})
	t.Run("nothing is transferred", func(t *testing.T) {
		r := opened(t, mdName)
		defer r.close()
		r.write(0, bytes.Repeat([]byte{1}, 512))
		id := r.set("error:any")
		b := r.transfer(devsw.BWrite, 0, 0, bytes.Repeat([]byte{2}, 512))
		if b.Error != devsw.EIO || b.Resid != 512 || !b.InContext {
			t.Errorf("error %v, resid %d, in context %v", b.Error, b.Resid, b.InContext)
		}
		must(t, r.node.Ioctl(FAULTCLEAR, &id, rw))
		is(t, "clearing it again", r.node.Ioctl(FAULTCLEAR, &id, rw), devsw.ENOENT)
		if p := r.read(0, 512); p[0] != 1 {
			t.Error("the write that failed was done")
		}
	})
}

func TestTheSameSeedGivesTheSameFaults(t *testing.T) {
	faults := func(rule string) (all []devsw.Errno) {
		r := opened(t, mdName, rule)
		defer r.close()
		for range 200 {
			all = append(all, r.transfer(devsw.BRead, 0, 0, make([]byte, 512)).Error)
		}
		return all
	}
	for i, rule := range []string{"error:read:prob=0.3:seed=1", "error:read:prob=0.3:seed=2"} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			a, b := faults(rule), faults(rule)
			if !slices.Equal(a, b) {
				t.Errorf("%v and %v", a, b)
			}
			if !slices.Contains(a, devsw.EIO) || !slices.Contains(a, 0) {
				t.Errorf("%v", a)
			}
		})
	}
	if slices.Equal(faults("error:read:prob=0.3:seed=1"), faults("error:read:prob=0.3:seed=2")) {
		t.Error("two seeds gave the same")
	}
}

func TestAShortTransferMovesItsBeginning(t *testing.T) {
	for _, lower := range lowers {
		t.Run(lower, func(t *testing.T) {
			r := opened(t, lower)
			defer r.close()
			r.write(0, bytes.Repeat([]byte{1}, 4096))
			r.set("short:read+write:bytes=1024:count=2")
			b := r.transfer(devsw.BWrite, 0, 0, bytes.Repeat([]byte{2}, 4096))
			if b.Error != 0 || b.Resid != 3072 {
				t.Errorf("write: error %v, resid %d", b.Error, b.Resid)
			}
			p := make([]byte, 4096)
			if b := r.transfer(devsw.BRead, 0, 0, p); b.Error != 0 || b.Resid != 3072 {
				t.Errorf("read: error %v, resid %d", b.Error, b.Resid)
			}
			want := append(bytes.Repeat([]byte{2}, 1024), make([]byte, 3072)...)
			if !bytes.Equal(p, want) {
				t.Error("a short read moved something else")
			}
			copy(want[1024:], bytes.Repeat([]byte{1}, 3072))
			if !bytes.Equal(r.read(0, 4096), want) {
				t.Error("a short write moved something else")
			}
			r.set("short:read:seed=3")
			for range 20 {
				if b := r.transfer(devsw.BRead, 0, 0, p); b.Error != 0 || b.Resid == 0 || b.Resid%512 != 0 {
					t.Errorf("error %v, resid %d", b.Error, b.Resid)
				}
			}
		})
	}
}

func TestCancelEndsWhatIsHeld(t *testing.T) {
	for _, lower := range lowers {
		for _, rule := range []string{"hang:any", "delay:any:time=1000h", "delay:any:time=1ns-1000h"} {
			bubble(t, lower+" "+rule, func(t *testing.T) {
				r := opened(t, lower, rule)
				answers := make(chan error, len(operations))
				for _, o := range operations {
					go func() { answers <- o.do(r) }()
				}
				synctest.Wait()
				if s := r.state(); len(s.Held) != len(operations) {
					t.Fatalf("%+v are held", s.Held)
				}
				r.close()
				for range operations {
					is(t, "an operation", <-answers, devsw.ECANCELED)
				}
				if s := r.state(); len(s.Held) != 0 {
					t.Errorf("%+v are still held", s.Held)
				}
				must(t, r.d.Control(0, FAULTCLEAR, nil))
				r.open() // it works again
				r.write(0, make([]byte, 512))
				must(t, r.flush())
				r.close()
			})
		}
	}
	bubble(t, "open", func(t *testing.T) {
		for _, rule := range []string{"hang:open", "delay:open:time=1h"} {
			r := newRig(t, mdName, Config{Rules: parse(t, rule)}, New)
			answer := make(chan error, 1)
			go func() { answer <- r.node.Open(t.Context(), rw) }()
			synctest.Wait()
			r.node.Revoke()
			err := <-answer
			is(t, "open", err, devsw.EBADF)
			is(t, "d_open", err, devsw.ECANCELED)
		}
	})
}

// TestOneTransferIsCancelledWhileItIsHeld, and no other one, unless its rule forbids it. The device
// stays open.
func TestOneTransferIsCancelledWhileItIsHeld(t *testing.T) {
	for rule, cancellable := range map[string]bool{
		"hang:write": true, "delay:write:time=1h": true, "hang:write:uncancellable": false,
	} {
		r := opened(t, mdName, rule)
		one, done := r.start(devsw.BWrite, 0, 0, make([]byte, 512))
		_, other := r.start(devsw.BWrite, 0, 1, make([]byte, 512))
		must(t, r.node.CancelBuf(one))
		if ended(done) != cancellable || ended(other) {
			t.Errorf("%s: the transfer has ended: %v, and the other one: %v", rule, ended(done), ended(other))
		}
		if cancellable && (one.Error != devsw.ECANCELED || one.Resid != 512) {
			t.Errorf("%s: error %v, resid %d", rule, one.Error, one.Resid)
		}
		if held, want := len(r.state().Held), 2; cancellable && held != 1 || !cancellable && held != want {
			t.Errorf("%s: %d are held", rule, held)
		}
		must(t, r.node.CancelBuf(one)) // it is not there any more, or stays
		r.release()
		if cancellable {
			must(t, r.node.Close(rw))
		} else {
			<-done
			<-other
			r.close()
		}
		<-other
	}
}

func TestAThousandHangingTransfersAreRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := opened(t, mdName, "hang:any")
		var all []*devsw.Buf
		for i := range 1000 {
			b, _ := r.start(devsw.Op(i%2), 0, int64(i%16), make([]byte, 512))
			all = append(all, b)
		}
		r.node.Revoke()
		for _, b := range all {
			if b.Error != devsw.ECANCELED || b.Resid != 512 || b.InContext {
				t.Fatalf("error %v, resid %d, in context %v", b.Error, b.Resid, b.InContext)
			}
		}
		want := []specfs.Kind{specfs.EventOpen, specfs.EventOpened, specfs.EventRevoke, specfs.EventCancel, specfs.EventCanceled,
			specfs.EventDrain, specfs.EventDrained, specfs.EventClose, specfs.EventClosed, specfs.EventRevoked}
		if got := r.order(); !slices.Equal(got, want) {
			t.Errorf("the order is %v", got)
		}
	})
}

func TestCancelDoesNotEndWhatIsUncancellable(t *testing.T) {
	for _, rule := range []string{"hang:write+flush:uncancellable", "delay:write+flush:time=1h:uncancellable"} {
		bubble(t, rule, func(t *testing.T) {
			r := opened(t, mdName, rule)
			b, done := r.start(devsw.BWrite, 0, 0, bytes.Repeat([]byte{9}, 512))
			flushed := make(chan error, 1)
			go func() { flushed <- r.flush() }()
			closed := make(chan error, 1)
			go func() { synctest.Wait(); closed <- r.node.Close(rw) }()
			time.Sleep(time.Minute)
			synctest.Wait()
			if ended(done) || len(flushed) != 0 || len(closed) != 0 {
				t.Fatal("d_cancel has ended it")
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			var drain *specfs.DrainError
			if err := r.node.Drain(ctx); !errors.As(err, &drain) || len(drain.Waiting) != 2 || drain.Waiting[0].What != "ioctl DIOCCACHESYNC" {
				t.Errorf("Drain says %v", err)
			}
			is(t, "a command through the device", r.node.Ioctl(FAULTRELEASE, nil, rw), devsw.ENXIO)
			r.release()
			must(t, <-closed)
			must(t, <-flushed)
			if <-done; b.Error != 0 {
				t.Errorf("the write: %v", b.Error)
			}
			must(t, r.d.Control(0, FAULTCLEAR, nil))
			r.open()
			defer r.close()
			if r.read(0, 512)[0] != 9 {
				t.Error("the write that went on was not done")
			}
		})
	}
}

func TestADriverWithoutCancelClosesFirst(t *testing.T) {
	for name, c := range map[string]struct {
		attach func(*devsw.Table) (*Driver, error)
		rule   string
	}{
		"missing":  {NewWithoutCancel, "hang:any"},
		"refusing": {New, "error:cancel"},
	} {
		bubble(t, name, func(t *testing.T) {
			r := newRig(t, vndName, Config{Rules: parse(t, "hang:any", c.rule)}, c.attach)
			for range 2 {
				r.mu.Lock()
				r.events = nil
				r.mu.Unlock()
				r.open()
				answers := make(chan error, len(operations))
				for _, o := range operations {
					go func() { answers <- o.do(r) }()
				}
				synctest.Wait()
				r.close()
				for range operations {
					is(t, "an operation", <-answers, devsw.ECANCELED)
				}
				want := []specfs.Kind{specfs.EventOpen, specfs.EventOpened, specfs.EventCancel, specfs.EventCanceled,
					specfs.EventClose, specfs.EventClosed, specfs.EventDrain, specfs.EventDrained}
				if got := r.order(); !slices.Equal(got, want) {
					t.Errorf("the order is %v", got)
				}
			}
		})
	}
}

func TestWhatIsReleasedAfterTheCloseDoesNotReachTheLowerDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, vndName, Config{Rules: parse(t, "hang:write:uncancellable")}, NewWithoutCancel)
		r.open()
		b, done := r.start(devsw.BWrite, 0, 0, make([]byte, 512))
		closed := make(chan error, 1)
		go func() { closed <- r.node.Close(rw) }()
		synctest.Wait()
		if order := r.order(); order[len(order)-1] != specfs.EventDrain || len(closed) != 0 {
			t.Fatalf("the order is %v", order)
		}
		r.release()
		must(t, <-closed)
		if <-done; b.Error != devsw.ENXIO {
			t.Errorf("the write ended with %v", b.Error)
		}
	})
}

func TestCommandsTakeTheirOwnTypesOnly(t *testing.T) {
	r := opened(t, mdName)
	defer r.close()
	zero := 0
	for name, c := range map[string]struct {
		cmd  devsw.Cmd
		data any
		want error
	}{
		"set nothing":             {FAULTSET, nil, devsw.EINVAL},
		"set a nil rule":          {FAULTSET, (*Rule)(nil), devsw.EINVAL},
		"clear 0":                 {FAULTCLEAR, &zero, devsw.EINVAL},
		"clear a string":          {FAULTCLEAR, "1", devsw.EINVAL},
		"release 0":               {FAULTRELEASE, &zero, devsw.EINVAL},
		"crash nothing":           {FAULTCRASH, nil, devsw.EINVAL},
		"crash without a cache":   {FAULTCRASH, &Outage{}, devsw.EINVAL},
		"get nothing":             {FAULTGET, nil, devsw.EINVAL},
		"zeroes without a range":  {devsw.DIOCWRITEZEROES, nil, devsw.EINVAL},
		"size into a wrong place": {devsw.DIOCGMEDIASIZE, &zero, devsw.EINVAL},
	} {
		is(t, name, r.node.Ioctl(c.cmd, c.data, rw), c.want)
	}
	is(t, "no such unit", r.d.Control(5, FAULTGET, &State{}), devsw.ENXIO)
	is(t, "no such command", r.d.Control(0, devsw.DIOCCACHESYNC, nil), devsw.ENOTTY)
	_, err := r.d.Create(0, r.softc(0).conf)
	is(t, "a second unit 0", err, devsw.EEXIST)
	_, err = r.d.Create(1, Config{Info: r.softc(0).conf.Info, Rules: []Rule{{}}})
	is(t, "a bad rule", err, devsw.EINVAL)
	is(t, "destroying an open unit", r.d.Destroy(0), devsw.EBUSY)
}

func uio(rw devsw.UioRw, off int64, p []byte) *devsw.Uio {
	u := devsw.NewUio(rw, p)
	u.Offset = off
	return u
}
