package vnd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"vdev/devsw"
	"vdev/internal/reactor"
	"vdev/internal/sys"
	"vdev/internal/test/disktest"
	"vdev/internal/test/hangfs"
	"vdev/internal/test/loopfs"
)

// modes are the reactors that there are.
var modes = []reactor.Mode{reactor.ModeURing, reactor.ModeThreads}

// hanging makes an image with these contents on a file system that can be made to hang.
func hanging(t *testing.T, conf hangfs.Config, data []byte) (f *hangfs.FS, path, below string) {
	t.Helper()
	f, dir, point := hangfs.New(t, conf)
	return f, filepath.Join(point, "disk.img"), fileIn(t, dir, data)
}

func awaitHeld(t *testing.T, f *hangfs.FS, k hangfs.Kind, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := f.Await(ctx, k, n); err != nil {
		t.Fatal(err)
	}
}

// on has the Bufs of a disk begin on a reactor.
func on(m *disktest.Disk, re *reactor.Reactor) *disktest.Disk {
	m.AIO, m.Run = re, re.Do
	return m
}

// numbered makes n bytes, each block of which says which it is.
func numbered(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i) ^ byte(i>>9)*7 ^ byte(i>>17)*31 + seed
	}
	return p
}

func TestAFileThatHangsLeavesTheOthersGoing(t *testing.T) {
	const stuck = 200
	for _, mode := range modes {
		for _, kind := range []hangfs.Kind{hangfs.Read, hangfs.Write} {
			t.Run(string(mode)+", "+kind.String(), func(t *testing.T) {
				want := numbered(stuck*4096, 1)
				r := newRig(t)
				f, path, below := hanging(t, hangfs.Config{Direct: true}, want)
				re := newReactor(t, mode)
				bad := on(r.open(r.create(Config{Path: path})), re)
				good := on(r.open(r.create(Config{Path: newFile(t, make([]byte, 1<<20))})), re)
				direct := on(r.open(r.create(Config{Path: newFile(t, make([]byte, 1<<20)), Direct: true})), re)

				f.Hold(kind)
				op, held := devsw.BRead, stuck
				if kind == hangfs.Write {
					op, held = devsw.BWrite, 1 // the kernel writes a file one after the other
				}
				var (
					bufs  []*devsw.Buf
					dones []chan struct{}
				)
				for i := range stuck {
					data := make([]byte, 4096)
					if op == devsw.BWrite {
						copy(data, want[(stuck-1-i)*4096:])
					}
					b, done := bad.Buf(op, 0, int64(i)*4096, data)
					bad.Issue(b)
					bufs, dones = append(bufs, b), append(dones, done)
				}
				awaitHeld(t, f, kind, held)

				for i := range int64(50) {
					for _, m := range []*disktest.Disk{good, direct} {
						data := numbered(8192, byte(i))
						got := make([]byte, len(data))
						if b := m.Transfer(devsw.BWrite, devsw.BufFlag(i%2)*devsw.BMediaFUA, i*4096, data); b.Error != 0 {
							t.Fatalf("write: %v", b.Error)
						}
						if b := m.Transfer(devsw.BRead, 0, i*4096, got); b.Error != 0 || !bytes.Equal(got, data) {
							t.Fatalf("read: error %v, or other data", b.Error)
						}
					}
				}
				for i, done := range dones {
					select {
					case <-done:
						t.Fatalf("transfer %d has ended: %v", i, bufs[i].Error)
					default:
					}
				}

				f.Release(kind)
				for i, done := range dones {
					<-done
					if b := bufs[i]; b.Error != 0 || b.Resid != 0 || op == devsw.BRead && !bytes.Equal(b.Data[0], want[i*4096:][:4096]) {
						t.Errorf("transfer %d, released: error %v, resid %d, or other data", i, b.Error, b.Resid)
					}
				}
				if op == devsw.BWrite {
					got, err := os.ReadFile(below)
					if err != nil {
						t.Fatal(err)
					}
					for i := range stuck {
						if !bytes.Equal(got[i*4096:][:4096], want[(stuck-1-i)*4096:][:4096]) {
							t.Errorf("block %d is not what was written", i)
						}
					}
				}
			})
		}
	}
}

// TestACancelGetsBackWhatTheServerGivesUp: the host asks a FUSE server to give a request up, and it
// may. What it does not give up ends later, and d_close is for then.
func TestACancelGetsBackWhatTheServerGivesUp(t *testing.T) {
	for _, obeys := range []bool{true, false} {
		t.Run(fmt.Sprintf("obeys=%v", obeys), func(t *testing.T) {
			r := newRig(t)
			f, path, _ := hanging(t, hangfs.Config{Interrupt: obeys}, make([]byte, 1<<20))
			re := newReactor(t, reactor.ModeURing)
			dev := r.create(Config{Path: path})
			m := on(r.open(dev), re)
			f.Hold(hangfs.Write)
			b, done := m.Buf(devsw.BWrite, 0, 4096, numbered(4096, 1))
			m.Issue(b)
			awaitHeld(t, f, hangfs.Write, 1)
			if err := r.table.BdevCancel(dev, rw, devsw.IFBLK); err != nil {
				t.Fatal(err)
			}
			re.Do(func() {})
			if obeys {
				<-done
				if b.Error != devsw.ECANCELED || b.Resid != 4096 {
					t.Errorf("given up: error %v, resid %d", b.Error, b.Resid)
				}
			} else {
				select {
				case <-done:
					t.Errorf("what the server does not give up has ended: %v", b.Error)
				default:
				}
			}
			f.Release(hangfs.Write)
			<-done
			r.close(dev)
			if err := r.tryOpen(dev); err != nil {
				t.Errorf("opening it again: %v", err)
			}
		})
	}
}

func TestAnOpenThatHangsIsGivenUp(t *testing.T) {
	// the read looks whether the file is direct
	for _, kind := range []hangfs.Kind{hangfs.Open, hangfs.Read} {
		t.Run(kind.String(), func(t *testing.T) {
			r := newRig(t)
			f, path, _ := hanging(t, hangfs.Config{}, make([]byte, 1<<20))
			dev := r.create(Config{Path: path})
			f.Hold(kind)
			opened := make(chan error)
			go func() { opened <- r.tryOpen(dev) }()
			awaitHeld(t, f, kind, 1)
			r.close(dev)
			select {
			case err := <-opened:
				t.Errorf("the open has ended: %v", err)
			default:
			}
			f.Release(kind)
			if err := <-opened; !errors.Is(err, devsw.ECANCELED) {
				t.Errorf("a cancelled open: %v, want ECANCELED", err)
			}
			if r.image(dev) != nil {
				t.Error("it is open")
			}
			if b := r.open(dev).Transfer(devsw.BRead, 0, 0, make([]byte, 4096)); b.Error != 0 {
				t.Errorf("opened again: %v", b.Error)
			}
		})
	}
}

func TestAFlushAndACloseThatHangHoldUpNobodyElse(t *testing.T) {
	r := newRig(t)
	f, path, _ := hanging(t, hangfs.Config{}, make([]byte, 1<<20))
	re := newReactor(t, reactor.ModeURing)
	dev := r.create(Config{Path: path})
	m := on(r.open(dev), re)
	f.Hold(hangfs.Fsync, hangfs.Flush)
	flushed := make(chan error)
	go func() { flushed <- r.table.BdevIoctl(dev, devsw.DIOCCACHESYNC, nil, rw) }()
	awaitHeld(t, f, hangfs.Fsync, 1)
	if b := m.Transfer(devsw.BRead, 0, 0, make([]byte, 4096)); b.Error != 0 {
		t.Errorf("a read beside a flush: %v", b.Error) // writes wait for it in the kernel
	}
	if err := r.table.BdevCancel(dev, rw, devsw.IFBLK); err != nil {
		t.Fatal(err)
	}
	f.Release(hangfs.Fsync)
	if err := <-flushed; err != nil {
		t.Errorf("a flush that the host has carried out: %v", err)
	}
	closed := make(chan error)
	go func() { closed <- r.table.BdevClose(dev, rw, devsw.IFBLK) }()
	awaitHeld(t, f, hangfs.Flush, 1)
	other := on(r.open(r.create(Config{Path: newFile(t, make([]byte, 4096))})), re)
	if b := other.Transfer(devsw.BRead, 0, 0, make([]byte, 4096)); b.Error != 0 {
		t.Error(b.Error)
	}
	f.Release(hangfs.Flush)
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// shared is memory that others have, like a guest's.
type shared struct {
	fd  *sys.FD
	mem []byte // what fd has, until replace
}

func newShared(t *testing.T, n int) *shared {
	t.Helper()
	fd, err := sys.NewMemfd("vdev-test", int64(n))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := sys.Mmap(fd.Int(), 0, n, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.Munmap(mem); err != nil {
			t.Error(err)
		}
		fd.Close()
	})
	return &shared{fd, mem}
}

// replace maps private memory with the same contents over mem.
func (s *shared) replace(t *testing.T) {
	t.Helper()
	was := bytes.Clone(s.mem)
	const private = syscall.MAP_PRIVATE | syscall.MAP_ANONYMOUS | syscall.MAP_FIXED
	_, _, e := syscall.Syscall6(syscall.SYS_MMAP, uintptr(unsafe.Pointer(&s.mem[0])), uintptr(len(s.mem)),
		syscall.PROT_READ|syscall.PROT_WRITE, private, ^uintptr(0), 0)
	if e != 0 {
		t.Fatal(e)
	}
	copy(s.mem, was)
}

// all is what the others have there.
func (s *shared) all(t *testing.T) []byte {
	t.Helper()
	p := make([]byte, len(s.mem))
	if n, e := sys.Preadv(s.fd.Int(), [][]byte{p}, 0); n != len(p) || e != 0 {
		t.Fatalf("reading the memory: %d bytes, %v", n, e)
	}
	return p
}

func TestWhatIsMappedOverABufIsAllThatALateTransferTouches(t *testing.T) {
	const size = 1 << 20
	for _, c := range []struct {
		name           string
		fs             hangfs.Config
		conf           Config
		pinned, bounce bool
	}{
		{name: "cached"},
		{name: "written back", fs: hangfs.Config{Writeback: true}},
		{name: "direct by the server", fs: hangfs.Config{Direct: true}, bounce: true},
		{name: "direct", conf: Config{Direct: true}, pinned: true},
		{name: "direct, bounced", conf: Config{Direct: true, Bounce: true}, bounce: true},
		{name: "bounced", conf: Config{Bounce: true}, bounce: true},
	} {
		for _, mode := range append(modes, "") {
			t.Run(c.name+", "+string(mode), func(t *testing.T) {
				old := numbered(size, 1)
				r := newRig(t)
				f, path, below := hanging(t, c.fs, old)
				c.conf.Path = path
				dev := r.create(c.conf)
				m := r.open(dev)
				if mode != "" {
					on(m, newReactor(t, mode))
				}
				info := new(devsw.DiskInfo)
				if err := r.table.BdevIoctl(dev, devsw.DIOCGDISKINFO, info, rw); err != nil {
					t.Fatal(err)
				}
				bounce := r.image(dev).conf.Bounce
				if info.Pinned != c.pinned || bounce != c.bounce {
					t.Errorf("pinned is %v, bounce %v", info.Pinned, bounce)
				}

				s := newShared(t, size)
				copy(s.mem, numbered(size, 77))
				f.Hold(hangfs.Read)
				const off, n = 512 << 10, 300 << 10 // more than a chunk, where it is bounced
				b, done := m.Buf(devsw.BRead, 0, off, s.mem[8192:][:n/3], s.mem[size/2:][:n-n/3])
				m.Issue(b)
				awaitHeld(t, f, hangfs.Read, 1)
				before := s.all(t)
				s.replace(t)
				f.Release(hangfs.Read)
				<-done
				if b.Error != 0 || b.Resid != 0 {
					t.Errorf("read: error %v, resid %d", b.Error, b.Resid)
				}
				if bytes.Equal(before, s.all(t)) == c.pinned {
					t.Errorf("the memory behind the new mapping has changed, or not as it does where it is pinned (%v)", c.pinned)
				}
				if !c.pinned && !bytes.Equal(bytes.Join(b.Data, nil), old[off:off+n]) {
					t.Error("the new mapping has not what was read")
				}

				if c.fs.Writeback {
					return // the write ends in the page cache
				}
				s = newShared(t, size)
				copy(s.mem, numbered(size, 77))
				f.Hold(hangfs.Write)
				b, done = m.Buf(devsw.BWrite, 0, off, s.mem[8192:][:n/3], s.mem[size/2:][:n-n/3])
				want := bytes.Join(b.Data, nil)
				m.Issue(b)
				awaitHeld(t, f, hangfs.Write, 1)
				s.replace(t)
				if n, e := sys.Pwritev(s.fd.Int(), [][]byte{make([]byte, size)}, 0, false); n != size || e != 0 {
					t.Fatalf("changing the memory: %d bytes, %v", n, e)
				}
				f.Release(hangfs.Write)
				<-done
				if b.Error != 0 || b.Resid != 0 {
					t.Errorf("write: error %v, resid %d", b.Error, b.Resid)
				}
				now, err := os.ReadFile(below)
				if err != nil {
					t.Fatal(err)
				}
				if same := bytes.Equal(now[off:off+n], want); !c.pinned && !same {
					i := 0
					for now[off+i] == want[i] {
						i++
					}
					t.Errorf("byte %d of the write is newer than what the memory had when it was replaced", i)
				}
			})
		}
	}
}

// TestDiscardsAreOfferedWhereThereAreAny: to find out changes nothing of the file's data, size or
// space.
func TestDiscardsAreOfferedWhereThereAreAny(t *testing.T) {
	for _, rigid := range []bool{false, true} {
		// By itself: the kernel tells a file system of a close some time after it, so that another
		// one's server may close its file in the course of this.
		t.Run(fmt.Sprintf("rigid=%v", rigid), func(t *testing.T) {
			want := numbered(12345, 1)
			r := newRig(t)
			_, path, below := hanging(t, hangfs.Config{Rigid: rigid}, want)
			before, err := os.Stat(below)
			if err != nil {
				t.Fatal(err)
			}
			dev := r.create(Config{Path: path, Discard: true})
			closed, err := r.d.Info(0)
			m := r.open(dev)
			open, err2 := r.d.Info(0)
			if err != nil || err2 != nil || closed.Discard == rigid || open != closed || !closed.WriteZeroes {
				t.Errorf("%+v (%v), open %+v (%v)", closed, err, open, err2)
			}
			after, err := os.Stat(below)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(below)
			blocks := func(i os.FileInfo) int64 { return i.Sys().(*syscall.Stat_t).Blocks }
			if err != nil || !bytes.Equal(got, want) || after.Size() != before.Size() || blocks(after) != blocks(before) {
				t.Errorf("the file has changed: %v", err)
			}
			var wantErr error
			if rigid {
				wantErr = devsw.ENODEV
			}
			if err := r.table.BdevDiscard(dev, 0, 4096); err != wantErr {
				t.Errorf("discard: %v", err)
			}
			zr := &devsw.ZeroRange{Pos: 4096, N: 4096, Unmap: true}
			if err := r.table.BdevIoctl(dev, devsw.DIOCWRITEZEROES, zr, rw); err != nil {
				t.Errorf("zeroes: %v", err)
			}
			data := make([]byte, 4096)
			if b := m.Transfer(devsw.BRead, 0, 4096, data); b.Error != 0 || !bytes.Equal(data, make([]byte, 4096)) {
				t.Errorf("read: %v, or no zeroes", b.Error)
			}
		})
	}
}

// TestToFindOutAboutDiscardsLeavesTheFilesOfKnownFileSystemsAlone, the time of their last change
// included.
func TestToFindOutAboutDiscardsLeavesTheFilesOfKnownFileSystemsAlone(t *testing.T) {
	for _, k := range loopfs.Kinds {
		t.Run(k.Name, func(t *testing.T) {
			m := loopfs.New(t, k.Name)
			path := fileIn(t, m.Dir, numbered(12345, 1))
			long := time.Now().Add(-time.Hour)
			if err := os.Chtimes(path, long, long); err != nil {
				t.Fatal(err)
			}
			before, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			r := newRig(t)
			m.Freeze(t) // nor does it wait
			created := make(chan struct{})
			go func() {
				defer close(created)
				r.create(Config{Path: path, Discard: true})
			}()
			select {
			case <-created:
			case <-time.After(patience):
				t.Error("it waits for the file system")
			}
			m.Thaw(t)
			<-created
			after, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if !after.ModTime().Equal(before.ModTime()) || after.Sys().(*syscall.Stat_t).Ctim != before.Sys().(*syscall.Stat_t).Ctim {
				t.Errorf("changed at %v, before at %v", after.ModTime(), before.ModTime())
			}
			if info, err := r.d.Info(0); err != nil || !info.Discard {
				t.Errorf("%+v, %v", info, err)
			}
		})
	}
}

// TestADiskWhoseQueueIsFullHoldsUpNoOther: what is begun beyond what the host's queue of a block
// device takes waits for room in it, and so does whoever begins it. Short reads are begun by a
// reactor, longer ones are not.
func TestADiskWhoseQueueIsFullHoldsUpNoOther(t *testing.T) {
	const (
		size  = 64 << 20
		stuck = 400 // a loop device takes 128
		apart = 160 << 10
	)
	want := numbered(size, 3)
	for _, mode := range modes {
		for _, n := range []int{4096, 132 << 10} {
			t.Run(fmt.Sprintf("%s, %d bytes", mode, n), func(t *testing.T) {
				r := newRig(t)
				f, path, _ := hanging(t, hangfs.Config{}, want)
				dev := loopfs.Loop(t, path, 512)
				re := newReactor(t, mode)
				bad := on(r.open(r.create(Config{Path: dev, ReadOnly: true})), re)
				good := on(r.open(r.create(Config{Path: newFile(t, make([]byte, 1<<20))})), re)
				exchange(t, good)
				if b := bad.Transfer(devsw.BRead, 0, 0, make([]byte, 4096)); b.Error != 0 {
					t.Fatal(b.Error)
				}
				time.Sleep(10 * time.Millisecond) // for a thread to stand by
				f.Hold(hangfs.Read)
				defer f.Release(hangfs.Read)
				var (
					bufs  []*devsw.Buf
					dones []chan struct{}
				)
				for i := range int64(stuck) {
					b, done := bad.Buf(devsw.BRead, 0, (i+1)*apart, make([]byte, n))
					re.Post(func() { bad.Table.BdevStrategy(b) })
					bufs, dones = append(bufs, b), append(dones, done)
				}
				awaitHeld(t, f, hangfs.Read, 1)
				within(t, "a disk beside one whose queue is full", func() {
					for range 50 {
						exchange(t, good)
						time.Sleep(time.Millisecond)
					}
				})
				f.Release(hangfs.Read)
				for i, done := range dones {
					<-done
					at := (i + 1) * apart
					if b := bufs[i]; b.Error != 0 || b.Resid != 0 || !bytes.Equal(b.Data[0], want[at:at+n]) {
						t.Errorf("read %d, released: %v, resid %d, or other data", i, b.Error, b.Resid)
					}
				}
				for range 10 {
					exchange(t, good)
				}
			})
		}
	}
}

// TestWhoHasAnImageIsFoundThoughAnotherFileHangs: what other files are locked is none of the
// search's business.
func TestWhoHasAnImageIsFoundThoughAnotherFileHangs(t *testing.T) {
	f, path, _ := hanging(t, hangfs.Config{}, make([]byte, 4096))
	other, err := sys.OpenFile(path, sys.OpenFlags{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := lockImage(other.Int(), path, false); err != nil {
		t.Fatal(err)
	}
	mine := fileIn(t, t.TempDir(), make([]byte, 4096))
	image, err := sys.OpenFile(mine, sys.OpenFlags{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if err := lockImage(image.Int(), mine, false); err != nil {
		t.Fatal(err)
	}
	defer f.Release(hangfs.Look)
	time.Sleep(1100 * time.Millisecond) // until the kernel asks the server anew what files are like
	nobodys := fileIn(t, t.TempDir(), nil)
	f.Hold(hangfs.Look)
	found := make(chan int, 2)
	go func() {
		found <- holder(mine, lockSharedBase+permWrite)
		found <- holder(nobodys, lockSharedBase+permWrite)
	}()
	timeout := time.After(20 * time.Second)
	for _, want := range []int{os.Getpid(), 0} {
		select {
		case pid := <-found:
			if pid != want {
				t.Errorf("process %d has it, want %d", pid, want)
			}
		case <-timeout:
			t.Fatal("the search waits for a file system that does not answer")
		}
	}
}

// TestAServerThatIsAlwaysInterruptedKeepsNoProcessor: a file system whose server answers EINTR by
// itself (or EAGAIN) does so each time. The operation fails; it is not made again for ever.
func TestAServerThatIsAlwaysInterruptedKeepsNoProcessor(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			r := newRig(t)
			f, path, _ := hanging(t, hangfs.Config{Direct: true}, make([]byte, 1<<20))
			m := on(r.open(r.create(Config{Path: path, Discard: true})), newReactor(t, mode))
			for _, errno := range []syscall.Errno{syscall.EINTR, syscall.EAGAIN} {
				want := errno
				if errno == syscall.EINTR {
					// who gets EINTR takes the operation for one that was cancelled
					want = syscall.EIO
				}
				for _, k := range []hangfs.Kind{hangfs.Read, hangfs.Write, hangfs.Fallocate} {
					f.Fail(k, errno)
				}
				transfer := func(op devsw.Op) error { return toError(m.Transfer(op, 0, 4096, make([]byte, 4096)).Error) }
				for what, do := range map[string]func() error{
					"read":    func() error { return transfer(devsw.BRead) },
					"write":   func() error { return transfer(devsw.BWrite) },
					"discard": func() error { return m.Table.BdevDiscard(m.Dev, 0, 1<<16) },
					"zeroes": func() error {
						return m.Table.BdevIoctl(m.Dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{N: 1 << 16}, devsw.FWRITE)
					},
				} {
					within(t, fmt.Sprintf("a %s that ends with %v", what, errno), func() {
						if err := do(); !errors.Is(err, want) {
							t.Errorf("a %s that ends with %v: %v, want %v", what, errno, err, want)
						}
					})
				}
				for _, k := range hangfs.Kinds() {
					f.Fail(k, 0)
				}
				exchange(t, m)
			}
			f.Fail(hangfs.Fsync, syscall.EINTR)
			within(t, "a flush", func() {
				if err := m.Table.BdevIoctl(m.Dev, devsw.DIOCCACHESYNC, nil, devsw.FWRITE); !errors.Is(err, devsw.EIO) {
					t.Errorf("a flush: %v, want %v", err, devsw.EIO)
				}
			})
		})
	}
}

// toError gives nil for 0.
func toError(e devsw.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}
