package devsw

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

func TestAttachErrors(t *testing.T) {
	b, c := &Bdevsw{}, &Cdevsw{}
	for _, tc := range []struct {
		what   string
		name   string
		bdev   *Bdevsw
		bmajor int
		cdev   *Cdevsw
		cmajor int
		want   error
		wantB  int
		wantC  int
	}{
		{"no name", "", b, 1, c, 1, EINVAL, -1, -1},
		{"no cdev", "x", b, 1, nil, 1, EINVAL, -1, -1},
		{"block major out of range", "x", b, MAXDEVSW, c, 1, EINVAL, -1, -1},
		{"character major out of range", "x", b, 1, c, MAXDEVSW, EINVAL, -1, -1},
		{"block major without bdev", "x", nil, 1, c, 1, EINVAL, -1, -1},
		{"given majors", "x", b, 1, c, 2, nil, 1, 2},
		{"chosen majors", "x", b, -1, c, -1, nil, firstMajor + 1, firstMajor + 1},
		{"no bdev", "x", nil, -1, c, 2, nil, -1, 2},
		{"block major taken", "x", b, 20, c, 1, EEXIST, -1, -1},
		{"character major taken", "x", b, 1, c, 30, EEXIST, -1, -1},
		{"attached already", "there", b, -1, c, -1, EEXIST, -1, -1},
		{"block major of a detached name", "x", b, 21, c, 1, EEXIST, -1, -1},
		{"character major of a detached name", "x", b, 1, c, 31, EEXIST, -1, -1},
		{"known name, its majors", "gone", b, 21, c, 31, nil, 21, 31},
		{"known name, majors left out", "gone", b, -1, c, -1, nil, 21, 31},
		{"known name, chosen majors kept", "chosen", b, -1, c, -1, nil, firstMajor, firstMajor},
		{"known name, other block major", "gone", b, 22, c, 31, EINVAL, -1, -1},
		{"known name, other character major", "gone", b, 21, c, 32, EINVAL, -1, -1},
		{"known name, without its bdev", "gone", nil, -1, c, 31, EINVAL, -1, -1},
		{"known name, its first bdev", "chronly", b, 5, c, -1, nil, 5, 33},
		{"known name, its first bdev, chosen", "chronly", b, -1, c, -1, nil, firstMajor + 1, 33},
		{"known name, still no bdev", "chronly", nil, -1, c, -1, nil, -1, 33},
	} {
		t.Run(tc.what, func(t *testing.T) {
			table := NewTable()
			attach := func(name string, b *Bdevsw, bmajor int, c *Cdevsw, cmajor int, stay bool) {
				if _, _, err := table.Attach(name, b, bmajor, c, cmajor); err != nil {
					t.Fatal(err)
				}
				if !stay {
					if err := table.Detach(b, c); err != nil {
						t.Fatal(err)
					}
				}
			}
			attach("there", &Bdevsw{}, 20, &Cdevsw{}, 30, true)
			attach("gone", &Bdevsw{}, 21, &Cdevsw{}, 31, false)
			attach("chronly", nil, -1, &Cdevsw{}, 33, false)
			attach("chosen", &Bdevsw{}, -1, &Cdevsw{}, -1, false)

			bm, cm, err := table.Attach(tc.name, tc.bdev, tc.bmajor, tc.cdev, tc.cmajor)
			if err != tc.want || bm != tc.wantB || cm != tc.wantC {
				t.Fatalf("Attach gives %d, %d, %v; want %d, %d, %v", bm, cm, err, tc.wantB, tc.wantC, tc.want)
			}
			if err != nil {
				if table.BdevswLookupMajor(b) != NODEVMAJOR || table.CdevswLookupMajor(c) != NODEVMAJOR {
					t.Error("a switch is attached although Attach failed")
				}
				return
			}
			if got := table.CdevswLookupMajor(c); got != cm {
				t.Errorf("the cdev is at %d", got)
			}
			if table.CdevswGetname(cm) != tc.name || tc.bdev != nil && table.BdevswGetname(bm) != tc.name {
				t.Errorf("the majors have the names %q and %q", table.BdevswGetname(bm), table.CdevswGetname(cm))
			}
		})
	}
}

func TestAttachRunsOutOfMajors(t *testing.T) {
	table := NewTable()
	for i := firstMajor; i < MAXDEVSW; i++ {
		if _, cm, err := table.Attach(fmt.Sprint("d", i), nil, -1, &Cdevsw{}, -1); err != nil || cm != i {
			t.Fatalf("Attach %d: %d, %v", i, cm, err)
		}
	}
	if _, _, err := table.Attach("onemore", nil, -1, &Cdevsw{}, -1); err != ENOMEM {
		t.Errorf("Attach gives %v, want ENOMEM", err)
	}
	if _, _, err := table.Attach("onemore", nil, -1, &Cdevsw{}, 0); err != nil {
		t.Errorf("Attach with a given major: %v", err)
	}
}

func TestConversions(t *testing.T) {
	table := NewTable()
	bdev, cdev, chr := &Bdevsw{}, &Cdevsw{}, &Cdevsw{}
	if _, _, err := table.Attach("vnd", bdev, 14, cdev, 41); err != nil {
		t.Fatal(err)
	}
	if _, _, err := table.Attach("pty", nil, -1, chr, 5); err != nil {
		t.Fatal(err)
	}
	check := func(attached bool) {
		t.Helper()
		b, c, name, gone := 14, 41, "vnd", NODEV
		if !attached {
			b, c, name = -1, -1, ""
		}
		for _, device := range []string{"vnd", "vnd0", "vnd12a"} {
			if m, n := table.Name2blk(device); m != b || n != name {
				t.Errorf("Name2blk(%q) gives %d, %q", device, m, n)
			}
			if m, n := table.Name2chr(device); m != c || n != name {
				t.Errorf("Name2chr(%q) gives %d, %q", device, m, n)
			}
		}
		wantC, wantB := Makedev(41, 7), Makedev(14, 7)
		if !attached {
			wantC, wantB = gone, gone
		}
		if d := table.Blk2chr(Makedev(14, 7)); d != wantC {
			t.Errorf("Blk2chr gives %v", d)
		}
		if d := table.Chr2blk(Makedev(41, 7)); d != wantB {
			t.Errorf("Chr2blk gives %v", d)
		}
		// Names outlive the driver.
		if table.BdevswGetname(14) != "vnd" || table.CdevswGetname(41) != "vnd" {
			t.Error("the majors have lost their name")
		}
	}
	check(true)
	for _, device := range []string{"", "vn", "vndx", "xvnd0"} {
		if m, n := table.Name2blk(device); m != NODEVMAJOR || n != "" {
			t.Errorf("Name2blk(%q) gives %d, %q", device, m, n)
		}
		if m, n := table.Name2chr(device); m != NODEVMAJOR || n != "" {
			t.Errorf("Name2chr(%q) gives %d, %q", device, m, n)
		}
	}
	if m, _ := table.Name2blk("pty0"); m != NODEVMAJOR {
		t.Errorf("pty has the block major %d", m)
	}
	if d := table.Chr2blk(Makedev(5, 0)); d != NODEV {
		t.Errorf("Chr2blk of pty gives %v", d)
	}
	if d := table.Blk2chr(Makedev(5, 0)); d != NODEV {
		t.Errorf("Blk2chr of an unknown major gives %v", d)
	}
	if d := table.Blk2chr(NODEV); d != NODEV {
		t.Errorf("Blk2chr of NODEV gives %v", d)
	}
	if table.BdevswGetname(-1) != "" || table.CdevswGetname(-1) != "" || table.CdevswGetname(400) != "" {
		t.Error("a major that is none has a name")
	}
	if err := table.Detach(bdev, cdev); err != nil {
		t.Fatal(err)
	}
	check(false)
}

// The wrappers' answers where there is no driver, and where the driver has not
// got the operation.
func TestWrappersAnswerForWhatIsNotThere(t *testing.T) {
	table := NewTable()
	bm, cm, err := table.Attach("empty", &Bdevsw{Flag: DDisk | DMPSafe}, -1, &Cdevsw{Flag: DTTY}, -1)
	if err != nil {
		t.Fatal(err)
	}
	strategy := func(dev Dev) error {
		ended := 0
		b := &Buf{Dev: dev, Bcount: 4096, Iodone: func(*Buf) { ended++ }}
		table.BdevStrategy(b)
		if ended != 1 || b.Resid != b.Bcount {
			t.Errorf("strategy: Iodone called %d times, Resid %d", ended, b.Resid)
		}
		return b.Error
	}
	// A Knote that is taken is of a device that is ready.
	kqfilter := func(dev Dev, f Filter) error {
		var ready []int64
		err := table.CdevKqfilter(dev, &Knote{Filter: f, Activate: func(n int64) { ready = append(ready, n) }})
		if (err == nil) != slices.Equal(ready, []int64{-1}) {
			t.Errorf("kqfilter %v: %v, activated with %v", f, err, ready)
		}
		return err
	}
	bknown, cknown := Makedev(uint32(bm), 3), Makedev(uint32(cm), 3)
	for _, unknown := range []Dev{NODEV, Makedev(1, 3), Makedev(MAXDEVSW, 0), Makedev(1<<31, 0)} {
		for _, w := range []struct {
			what    string
			call    func(b, c Dev) any
			unknown any
			missing any
		}{
			{"bdev open", func(b, _ Dev) any { return table.BdevOpen(b, FREAD, IFBLK) }, ENXIO, nil},
			{"bdev cancel", func(b, _ Dev) any { return table.BdevCancel(b, FREAD, IFBLK) }, ENXIO, ENODEV},
			{"bdev close", func(b, _ Dev) any { return table.BdevClose(b, FREAD, IFBLK) }, ENXIO, nil},
			{"bdev strategy", func(b, _ Dev) any { return strategy(b) }, ENXIO, ENODEV},
			{"bdev cancelbuf", func(b, _ Dev) any { return table.BdevCancelBuf(&Buf{Dev: b}) }, ENXIO, ENODEV},
			{"bdev ioctl", func(b, _ Dev) any { return table.BdevIoctl(b, DIOCCACHESYNC, nil, FWRITE) }, ENXIO, ENODEV},
			{"bdev dump", func(b, _ Dev) any { return table.BdevDump(b, 0, nil) }, ENXIO, ENODEV},
			{"bdev size", func(b, _ Dev) any { return table.BdevSize(b) }, int64(-1), int64(-1)},
			{"bdev discard", func(b, _ Dev) any { return table.BdevDiscard(b, 0, 512) }, ENXIO, ENODEV},
			{"cdev open", func(_, c Dev) any { return table.CdevOpen(c, FREAD, IFCHR) }, ENXIO, nil},
			{"cdev cancel", func(_, c Dev) any { return table.CdevCancel(c, FREAD, IFCHR) }, ENXIO, ENODEV},
			{"cdev close", func(_, c Dev) any { return table.CdevClose(c, FREAD, IFCHR) }, ENXIO, nil},
			{"cdev read", func(_, c Dev) any { return table.CdevRead(c, NewUio(UIORead), 0) }, ENXIO, ENODEV},
			{"cdev write", func(_, c Dev) any { return table.CdevWrite(c, NewUio(UIOWrite), 0) }, ENXIO, ENODEV},
			{"cdev ioctl", func(_, c Dev) any { return table.CdevIoctl(c, CmdDriver, nil, 0) }, ENXIO, ENODEV},
			{"cdev stop", func(_, c Dev) any { table.CdevStop(&Tty{Dev: c}, 0); return nil }, nil, nil},
			{"cdev tty", func(_, c Dev) any { return table.CdevTTY(c) }, (*Tty)(nil), (*Tty)(nil)},
			{"cdev poll", func(_, c Dev) any { return table.CdevPoll(c, POLLIN|POLLOUT, nil) }, POLLERR, POLLIN | POLLOUT},
			{"cdev mmap", func(_, c Dev) any { return table.CdevMmap(c, 0, FREAD) }, int64(-1), int64(-1)},
			{"cdev kqfilter", func(_, c Dev) any { return table.CdevKqfilter(c, &Knote{}) }, ENXIO, EINVAL},
			{"cdev kqfilter read", func(_, c Dev) any { return kqfilter(c, EVFILTRead) }, ENXIO, nil},
			{"cdev kqfilter write", func(_, c Dev) any { return kqfilter(c, EVFILTWrite) }, ENXIO, nil},
			{"cdev discard", func(_, c Dev) any { return table.CdevDiscard(c, 0, 512) }, ENXIO, ENODEV},
			{"cdev flags", func(_, c Dev) any { return table.CdevFlags(c) }, DFlag(0), DFlag(0)},
			{"cdev type", func(_, c Dev) any { return table.CdevType(c) }, DOther, DTTY},
		} {
			if got := w.call(unknown, unknown); got != w.unknown {
				t.Errorf("%s of unknown device %v: %v, want %v", w.what, unknown, got, w.unknown)
			}
			if got := w.call(bknown, cknown); got != w.missing {
				t.Errorf("%s without the operation: %v, want %v", w.what, got, w.missing)
			}
		}
	}
}

// recorder is a driver that writes down the calls it gets, and answers with err.
type recorder struct {
	calls []string
	err   error
}

func (r *recorder) note(format string, args ...any) error {
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
	return r.err
}

func (r *recorder) switches() (*Bdevsw, *Cdevsw) {
	open := func(what string) func(Dev, Flag, Mode) error {
		return func(dev Dev, flag Flag, mode Mode) error { return r.note("%s %v %d %v", what, dev, flag, mode) }
	}
	ioctl := func(dev Dev, cmd Cmd, data any, flag Flag) error {
		return r.note("ioctl %v %v %v %d", dev, cmd, data, flag)
	}
	discard := func(dev Dev, pos, n int64) error { return r.note("discard %v %d %d", dev, pos, n) }
	return &Bdevsw{
			Open: open("open"), Cancel: open("cancel"), Close: open("close"), Ioctl: ioctl, Discard: discard,
			Strategy:  func(b *Buf) { b.Error = ToErrno(r.note("strategy %v %d", b.Dev, b.Blkno)); b.Biodone() },
			CancelBuf: func(b *Buf) { _ = r.note("cancelbuf %v %d", b.Dev, b.Blkno) },
			Dump:      func(dev Dev, blkno int64, p []byte) error { return r.note("dump %v %d %d", dev, blkno, len(p)) },
			Psize:     func(dev Dev) int64 { _ = r.note("psize %v", dev); return 77 },
		}, &Cdevsw{
			Open: open("open"), Cancel: open("cancel"), Close: open("close"), Ioctl: ioctl, Discard: discard,
			Read:  func(dev Dev, u *Uio, flag Flag) error { return r.note("read %v %d %d", dev, u.Resid, flag) },
			Write: func(dev Dev, u *Uio, flag Flag) error { return r.note("write %v %d %d", dev, u.Resid, flag) },
			Stop:  func(tp *Tty, flag Flag) { _ = r.note("stop %v %d", tp.Dev, flag) },
			TTY:   func(dev Dev) *Tty { _ = r.note("tty %v", dev); return &Tty{Dev: dev} },
			Poll: func(dev Dev, events PollEvents, wake func()) PollEvents {
				_ = r.note("poll %v %d", dev, events)
				wake()
				return POLLHUP
			},
			Mmap:     func(dev Dev, off int64, flag Flag) int64 { _ = r.note("mmap %v %d %d", dev, off, flag); return 78 },
			Kqfilter: func(dev Dev, kn *Knote) error { return r.note("kqfilter %v %d", dev, kn.Filter) },
		}
}

func TestWrappersPassArgumentsAndAnswers(t *testing.T) {
	for _, answer := range []error{nil, EROFS} {
		r := &recorder{err: answer}
		table := NewTable()
		bdev, cdev := r.switches()
		if _, _, err := table.Attach("rec", bdev, 9, cdev, 8); err != nil {
			t.Fatal(err)
		}
		b, c := Makedev(9, 5), Makedev(8, 5)
		woken := false
		buf := &Buf{Dev: b, Blkno: 6}
		for _, w := range []struct {
			call any
			want any
			note string
		}{
			{table.BdevOpen(b, FREAD, IFBLK), answer, "open 9,5 1 block"},
			{table.BdevCancel(b, FWRITE, IFBLK), answer, "cancel 9,5 2 block"},
			{table.BdevClose(b, 0, IFBLK), answer, "close 9,5 0 block"},
			{func() error {
				table.BdevStrategy(buf)
				if buf.Error != 0 {
					return buf.Error
				}
				return nil
			}(), answer, "strategy 9,5 6"},
			{table.BdevCancelBuf(buf), nil, "cancelbuf 9,5 6"},
			{table.BdevIoctl(b, DIOCCACHESYNC, "x", FWRITE), answer, "ioctl 9,5 DIOCCACHESYNC x 2"},
			{table.BdevDump(b, 3, make([]byte, 4)), answer, "dump 9,5 3 4"},
			{table.BdevSize(b), int64(77), "psize 9,5"},
			{table.BdevDiscard(b, 1, 2), answer, "discard 9,5 1 2"},
			{table.CdevOpen(c, FREAD, IFCHR), answer, "open 8,5 1 character"},
			{table.CdevCancel(c, FREAD, IFCHR), answer, "cancel 8,5 1 character"},
			{table.CdevClose(c, FREAD, IFCHR), answer, "close 8,5 1 character"},
			{table.CdevRead(c, NewUio(UIORead, make([]byte, 3)), FNONBLOCK), answer, "read 8,5 3 4"},
			{table.CdevWrite(c, NewUio(UIOWrite, make([]byte, 2)), 0), answer, "write 8,5 2 0"},
			{table.CdevIoctl(c, DIOCGROW, 1, 0), answer, "ioctl 8,5 DIOCGROW 1 0"},
			{func() error { table.CdevStop(&Tty{Dev: c}, FWRITE); return nil }(), nil, "stop 8,5 2"},
			{table.CdevTTY(c).Dev, c, "tty 8,5"},
			{table.CdevPoll(c, POLLIN, func() { woken = true }), POLLHUP, "poll 8,5 1"},
			{table.CdevMmap(c, 4096, FREAD), int64(78), "mmap 8,5 4096 1"},
			{table.CdevKqfilter(c, &Knote{Filter: EVFILTWrite}), answer, "kqfilter 8,5 -2"},
			{table.CdevDiscard(c, 4, 5), answer, "discard 8,5 4 5"},
		} {
			if w.call != w.want {
				t.Errorf("%s: answer %v, want %v", w.note, w.call, w.want)
			}
			if len(r.calls) == 0 || r.calls[0] != w.note {
				t.Fatalf("calls %q, want %q next", r.calls, w.note)
			}
			r.calls = r.calls[1:]
		}
		if !woken {
			t.Error("poll's wake did not reach the driver")
		}
	}
}

func TestDetachWaitsForOpensAndRefusesNewOnes(t *testing.T) {
	for _, kind := range []Mode{IFBLK, IFCHR} {
		for _, answer := range []error{nil, EIO} {
			t.Run(fmt.Sprint(kind, " ", answer), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					table := NewTable()
					release := make(chan struct{})
					open := func(Dev, Flag, Mode) error { <-release; return answer }
					bdev, cdev := &Bdevsw{Open: open, Flag: DMPSafe}, &Cdevsw{Open: open, Flag: DMPSafe}
					bm, cm, err := table.Attach("slow", bdev, -1, cdev, -1)
					if err != nil {
						t.Fatal(err)
					}
					devOpen := func() error {
						if kind == IFBLK {
							return table.BdevOpen(Makedev(uint32(bm), 0), FREAD, kind)
						}
						return table.CdevOpen(Makedev(uint32(cm), 0), FREAD, kind)
					}
					opened, detached := make(chan error, 1), make(chan error, 1)
					go func() { opened <- devOpen() }()
					synctest.Wait()
					go func() { detached <- table.Detach(bdev, cdev) }()
					synctest.Wait()
					if len(detached) != 0 {
						t.Fatal("Detach did not wait for the open")
					}
					if err := devOpen(); err != ENXIO {
						t.Errorf("an open during Detach gives %v", err)
					}
					if err := table.Detach(bdev, cdev); err != ENXIO {
						t.Errorf("a second Detach meanwhile gives %v", err)
					}
					close(release)
					if err := <-opened; err != answer {
						t.Errorf("open gives %v", err)
					}
					err = <-detached
					if answer != nil {
						if err != nil || table.BdevswLookupMajor(bdev) != -1 || table.CdevswLookupMajor(cdev) != -1 {
							t.Fatalf("Detach gives %v", err)
						}
						return
					}
					// The open has won: the driver stays.
					if err != EBUSY {
						t.Fatalf("Detach with an open device gives %v", err)
					}
					if err := devOpen(); err != nil {
						t.Errorf("open after the refused Detach: %v", err)
					}
					if kind == IFBLK {
						err = table.BdevClose(Makedev(uint32(bm), 0), 0, kind)
					} else {
						err = table.CdevClose(Makedev(uint32(cm), 0), 0, kind)
					}
					if err = errors.Join(err, table.Detach(bdev, cdev)); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

func TestDetachOfWhatIsNotAttached(t *testing.T) {
	table := NewTable()
	b, c := &Bdevsw{}, &Cdevsw{}
	if _, _, err := table.Attach("x", b, -1, c, -1); err != nil {
		t.Fatal(err)
	}
	if err := table.Detach(&Bdevsw{}, c); err != ENXIO || table.CdevswLookupMajor(c) < 0 {
		t.Errorf("Detach with a foreign bdev gives %v", err)
	}
	if err := table.Detach(nil, nil); err != nil {
		t.Errorf("Detach of nothing gives %v", err)
	}
	if err := table.Detach(nil, c); err != nil {
		t.Error(err)
	}
	if err := table.Detach(b, nil); err != nil {
		t.Error(err)
	}
	if err := table.Detach(b, c); err != ENXIO {
		t.Errorf("a second Detach gives %v", err)
	}
}

// Without DMPSafe no two operations of any such drivers run at once; with it
// they do.
func TestTheOneLock(t *testing.T) {
	for _, flag := range []DFlag{0, DMPSafe} {
		synctest.Test(t, func(t *testing.T) {
			table := NewTable()
			var inside, most, unlocked atomic.Int32
			release := make(chan struct{})
			op := func() {
				n := inside.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				if held := !table.big.TryLock(); !held {
					table.big.Unlock()
					unlocked.Add(1)
				}
				<-release
				inside.Add(-1)
			}
			bdev := &Bdevsw{
				Flag:      flag,
				Strategy:  func(b *Buf) { op(); b.Biodone() },
				Cancel:    func(Dev, Flag, Mode) error { op(); return nil },
				Open:      func(Dev, Flag, Mode) error { op(); return nil },
				Close:     func(Dev, Flag, Mode) error { op(); return nil },
				CancelBuf: func(*Buf) { op() },
				Psize:     func(Dev) int64 { op(); return 0 },
				Discard:   func(Dev, int64, int64) error { op(); return nil },
				Ioctl:     func(Dev, Cmd, any, Flag) error { op(); return nil },
			}
			cdev := &Cdevsw{
				Flag:     flag,
				Open:     bdev.Open,
				Cancel:   bdev.Cancel,
				Close:    bdev.Close,
				Ioctl:    bdev.Ioctl,
				Discard:  bdev.Discard,
				Read:     func(Dev, *Uio, Flag) error { op(); return nil },
				Write:    func(Dev, *Uio, Flag) error { op(); return nil },
				Stop:     func(*Tty, Flag) { op() },
				Poll:     func(Dev, PollEvents, func()) PollEvents { op(); return 0 },
				Mmap:     func(Dev, int64, Flag) int64 { op(); return 0 },
				Kqfilter: func(Dev, *Knote) error { op(); return nil },
			}
			if _, _, err := table.Attach("one", bdev, 1, &Cdevsw{}, 1); err != nil {
				t.Fatal(err)
			}
			if _, _, err := table.Attach("two", nil, -1, cdev, 2); err != nil {
				t.Fatal(err)
			}
			b, c := Makedev(1, 0), Makedev(2, 0)
			calls := []func(){
				func() { _ = table.BdevOpen(b, 0, IFBLK) },
				func() { _ = table.BdevCancel(b, 0, IFBLK) },
				func() { _ = table.BdevClose(b, 0, IFBLK) },
				func() { table.BdevStrategy(&Buf{Dev: b}) },
				func() { _ = table.BdevCancelBuf(&Buf{Dev: b}) },
				func() { _ = table.BdevIoctl(b, 0, nil, 0) },
				func() { _ = table.BdevSize(b) },
				func() { _ = table.BdevDiscard(b, 0, 0) },
				func() { _ = table.CdevOpen(c, 0, IFCHR) },
				func() { _ = table.CdevCancel(c, 0, IFCHR) },
				func() { _ = table.CdevClose(c, 0, IFCHR) },
				func() { _ = table.CdevRead(c, nil, 0) },
				func() { _ = table.CdevWrite(c, nil, 0) },
				func() { _ = table.CdevIoctl(c, 0, nil, 0) },
				func() { table.CdevStop(&Tty{Dev: c}, 0) },
				func() { _ = table.CdevPoll(c, 0, nil) },
				func() { _ = table.CdevMmap(c, 0, 0) },
				func() { _ = table.CdevKqfilter(c, nil) },
				func() { _ = table.CdevDiscard(c, 0, 0) },
			}
			var wg sync.WaitGroup
			// Each alone, where nobody else can have the lock.
			for _, call := range calls {
				wg.Go(call)
				release <- struct{}{}
				wg.Wait()
			}
			if got := unlocked.Load(); got != 0 && flag&DMPSafe == 0 {
				t.Errorf("%d operations run without the lock", got)
			}
			for _, call := range calls {
				wg.Go(call)
			}
			want := int32(1)
			if flag&DMPSafe != 0 {
				// All get in before the first is let go. (Without DMPSafe they
				// wait for a mutex, which synctest.Wait does not take for an end.)
				synctest.Wait()
				want = int32(len(calls))
			}
			for range calls {
				release <- struct{}{}
			}
			wg.Wait()
			if got := most.Load(); got != want {
				t.Errorf("flag %#x: at most %d operations at once, want %d", flag, got, want)
			}
		})
	}
}

// Dump takes no lock: it runs while another operation holds the one lock.
func TestDumpTakesNoLock(t *testing.T) {
	table := NewTable()
	dumped := false
	bdev := &Bdevsw{Dump: func(Dev, int64, []byte) error { dumped = true; return nil }}
	bm, _, err := table.Attach("x", bdev, -1, &Cdevsw{}, -1)
	if err != nil {
		t.Fatal(err)
	}
	table.Lock()
	defer table.Unlock()
	if err := table.BdevDump(Makedev(uint32(bm), 0), 0, nil); err != nil || !dumped {
		t.Error(err)
	}
}

// The table against a model: names keep their majors for ever, a major has one
// name, and what is attached is found.
func TestTableModel(t *testing.T) {
	type drv struct{ b, c int }
	rapid.Check(t, func(t *rapid.T) {
		table := NewTable()
		names := []string{"md", "vnd", "null"}
		majors := []int{-1, 1, 2, 3}
		remembered := map[string]drv{}
		type pair struct {
			b *Bdevsw
			c *Cdevsw
		}
		attached := map[string]pair{}
		t.Repeat(map[string]func(*rapid.T){
			"attach": func(t *rapid.T) {
				name := rapid.SampledFrom(names).Draw(t, "name")
				wb, wc := rapid.SampledFrom(majors).Draw(t, "bmajor"), rapid.SampledFrom(majors).Draw(t, "cmajor")
				var p pair
				p.c = &Cdevsw{}
				if rapid.Bool().Draw(t, "block") {
					p.b = &Bdevsw{}
				}
				bm, cm, err := table.Attach(name, p.b, wb, p.c, wc)
				old, known := remembered[name]
				if err != nil {
					if bm != -1 || cm != -1 {
						t.Fatalf("majors %d, %d with an error", bm, cm)
					}
					_, there := attached[name]
					if known && !there && wb < 0 && wc < 0 && (p.b != nil) == (old.b >= 0) {
						t.Fatalf("%s cannot be attached as before: %v", name, err)
					}
					return
				}
				if _, there := attached[name]; there {
					t.Fatalf("%s is attached twice", name)
				}
				if known && (cm != old.c || old.b >= 0 && bm != old.b) {
					t.Fatalf("%s had majors %v and gets %d, %d", name, old, bm, cm)
				}
				if (bm >= 0) != (p.b != nil) || wb >= 0 && bm != wb || wc >= 0 && cm != wc {
					t.Fatalf("asked for %d, %d, got %d, %d", wb, wc, bm, cm)
				}
				for other, m := range remembered {
					if other != name && (m.c == cm || bm >= 0 && m.b == bm) {
						t.Fatalf("%s gets a major of %s", name, other)
					}
				}
				if bm < 0 && known {
					bm = old.b
				}
				remembered[name] = drv{bm, cm}
				attached[name] = p
			},
			"detach": func(t *rapid.T) {
				name := rapid.SampledFrom(names).Draw(t, "name")
				p, there := attached[name]
				if !there {
					t.Skip()
				}
				if err := table.Detach(p.b, p.c); err != nil {
					t.Fatal(err)
				}
				delete(attached, name)
			},
			"": func(t *rapid.T) {
				for name, m := range remembered {
					p := attached[name]
					if got := table.CdevswLookup(Makedev(uint32(m.c), 4)); got != p.c {
						t.Fatalf("%s: CdevswLookup gives %p, want %p", name, got, p.c)
					}
					if m.b >= 0 {
						if got := table.BdevswLookup(Makedev(uint32(m.b), 4)); got != p.b {
							t.Fatalf("%s: BdevswLookup gives %p, want %p", name, got, p.b)
						}
					}
					if got := table.CdevswGetname(m.c); got != name {
						t.Fatalf("character major %d has the name %q, want %q", m.c, got, name)
					}
				}
			},
		})
	})
}
