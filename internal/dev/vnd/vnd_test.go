package vnd

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/reactor"
	"vdev/internal/sys"
	"vdev/internal/test/disktest"
	"vdev/internal/test/loopfs"
)

func TestADiskHasNetBSDsNumbers(t *testing.T) {
	r := newRig(t)
	r.create(Config{Path: newFile(t, nil)})
	dev := r.create(Config{Path: newFile(t, nil)})
	if dev != devsw.Makedev(14, 1) || r.table.Blk2chr(dev) != devsw.Makedev(41, 1) {
		t.Errorf("block %v, character %v; want 14,1 and 41,1", dev, r.table.Blk2chr(dev))
	}
}

func TestCreateSaysWhatIsWrongWithAnImage(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	path, odd := newFile(t, make([]byte, 4096)), newFile(t, make([]byte, 5000))
	r := newRig(t)
	r.create(Config{Path: path})
	for _, c := range []struct {
		unit int
		conf Config
		err  devsw.Errno
		says []string
	}{
		{1, Config{Path: filepath.Join(dir, "none")}, devsw.ENOENT, []string{"none: ", "no such file"}},
		{1, Config{}, devsw.ENOENT, []string{"no such file"}},
		{1, Config{Path: dir}, devsw.EINVAL, []string{dir, "is a directory"}},
		{1, Config{Path: fifo}, devsw.EINVAL, []string{fifo, "is a FIFO"}},
		{1, Config{Path: "/dev/null"}, devsw.EINVAL, []string{"/dev/null", "is a character device"}},
		{1, Config{Path: path, SectorSize: 2048}, devsw.EINVAL, []string{"sector size 2048"}},
		// only where blocks are larger than 512 bytes
		{1, Config{Path: odd, Direct: true}, devsw.EINVAL, nil},
		{0, Config{Path: path}, devsw.EEXIST, []string{"unit 0"}},
		{-7, Config{Path: path}, devsw.EINVAL, []string{"unit -7"}},
		{1, Config{Path: "/proc/version", ReadOnly: true, Direct: true}, devsw.EINVAL, []string{"/proc/version", "direct I/O"}},
	} {
		dev, err := r.d.Create(c.unit, c.conf)
		if c.says == nil && err == nil {
			if err := r.d.Destroy(c.unit); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if !errors.Is(err, c.err) || dev != devsw.NODEV {
			t.Errorf("%+v: %v, want %v", c.conf, err, c.err)
			continue
		}
		for _, says := range c.says {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%+v: %v, which does not say %q", c.conf, err, says)
			}
		}
	}
}

func TestAReadOnlyFileIsNotOpenedForWriting(t *testing.T) {
	var path string
	if os.Getuid() == 0 {
		// Root may write to whatever file permissions say, but not to a read-only file system.
		dir := mountTmpfs(t, 1<<20)
		path = fileIn(t, dir, make([]byte, 4096))
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
	} else {
		path = newFile(t, make([]byte, 4096))
		if err := os.Chmod(path, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	r := newRig(t)
	if _, err := r.d.Create(0, Config{Path: path}); err == nil ||
		!strings.Contains(err.Error(), path+": cannot be opened for writing (use it read-only?)") {
		t.Errorf("create: %v", err)
	}
	dev := r.create(Config{Path: path, ReadOnly: true})
	m := r.open(dev)
	if b := m.Transfer(devsw.BRead, 0, 0, make([]byte, 4096)); b.Error != 0 || b.Resid != 0 {
		t.Errorf("read: error %v, resid %d", b.Error, b.Resid)
	}
}

func TestAReadOnlyDiskIsNotWritten(t *testing.T) {
	r := newRig(t)
	path := newFile(t, bytes.Repeat([]byte{1}, 4096))
	dev := r.create(Config{Path: path, ReadOnly: true, Discard: true})
	if err := r.table.BdevOpen(dev, rw, devsw.IFBLK); !errors.Is(err, devsw.EROFS) || !strings.Contains(err.Error(), path) {
		t.Errorf("open for writing: %v, want EROFS", err)
	}
	m := r.open(dev)
	if b := m.Transfer(devsw.BWrite, 0, 0, make([]byte, 512)); b.Error != devsw.EROFS || b.Resid != 512 {
		t.Errorf("write: error %v, resid %d, want EROFS and 512", b.Error, b.Resid)
	}
	if err := r.table.BdevDiscard(dev, 0, 4096); err != devsw.EROFS {
		t.Errorf("discard: %v, want EROFS", err)
	}
	if err := r.table.BdevIoctl(dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{N: 4096}, rw); err != devsw.EROFS {
		t.Errorf("zeroes: %v, want EROFS", err)
	}
	if err := r.table.BdevIoctl(dev, devsw.DIOCCACHESYNC, nil, rw); err != nil {
		t.Errorf("flush: %v", err)
	}
	if info, err := r.d.Info(0); err != nil || !info.ReadOnly || info.Discard || info.WriteZeroes {
		t.Errorf("%+v, %v", info, err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{1}, 4096)) {
		t.Errorf("the file has changed (%v)", err)
	}
}

func TestAReadOnlyBlockDeviceIsNotOpenedForWriting(t *testing.T) {
	dev := loopfs.Loop(t, newFile(t, make([]byte, 64<<10)), 512, "--read-only")
	r := newRig(t)
	if _, err := r.d.Create(0, Config{Path: dev}); !errors.Is(err, devsw.EROFS) && !errors.Is(err, devsw.EACCES) ||
		!strings.Contains(err.Error(), dev) {
		t.Errorf("create: %v", err)
	}
	r.open(r.create(Config{Path: dev, ReadOnly: true}))
}

func TestABlockDeviceTheHostUsesIsRefused(t *testing.T) {
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("there is no mkfs.ext4 (Debian: e2fsprogs)")
	}
	dev := loopfs.Loop(t, newFile(t, make([]byte, 4<<20)), 512)
	if out, err := exec.Command(mkfs, "-q", dev).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	dir := t.TempDir()
	if err := syscall.Mount(dev, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(dir, 0)
	r := newRig(t)
	vnd := r.create(Config{Path: dev, LockWait: -1})
	if err := r.tryOpen(vnd); !errors.Is(err, devsw.EBUSY) || !strings.Contains(err.Error(), dev+": the block device is in use by the host") {
		t.Errorf("open: %v", err)
	}
	r.open(r.create(Config{Path: dev, ReadOnly: true, LockWait: -1}))
}

func TestABlockDeviceThatAnotherDiskHasIsRefusedByName(t *testing.T) {
	dev := loopfs.Loop(t, newFile(t, make([]byte, 64<<10)), 512)
	r := newRig(t)
	first, second := r.create(Config{Path: dev}), r.create(Config{Path: dev, LockWait: -1})
	if err := r.tryOpen(first); err != nil {
		t.Fatal(err)
	}
	var le *LockError
	if err := r.tryOpen(second); !errors.As(err, &le) || le.PID != os.Getpid() || le.Path != dev {
		t.Errorf("open: %v, want a LockError", err)
	}
	r.close(first)
	r.open(second)
}

func TestTheLastPartOfASectorReadsAsZeroes(t *testing.T) {
	for _, c := range []struct {
		name string
		conf Config
		aio  reactor.Mode
	}{
		{"threads", Config{}, ""},
		{"io_uring", Config{}, reactor.ModeURing},
		{"direct, threads", Config{Direct: true}, ""},
		{"direct, io_uring", Config{Direct: true}, reactor.ModeURing},
		{"direct, reactor", Config{Direct: true}, reactor.ModeThreads},
		{"read-only", Config{ReadOnly: true}, reactor.ModeThreads},
		{"read-only, direct", Config{ReadOnly: true, Direct: true}, reactor.ModeURing},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := bytes.Repeat([]byte("odd"), 1200) // 3600 bytes: seven sectors and 16 bytes
			c.conf.Path = newFile(t, data)
			r := newRig(t)
			dev, err := r.d.Create(0, c.conf)
			if err != nil && c.conf.Direct && strings.Contains(err.Error(), "not a multiple of the") {
				t.Skipf("here direct I/O wants more than 512 bytes: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			m := r.open(dev)
			if c.aio != "" {
				re := newReactor(t, c.aio)
				m.AIO, m.Run = re, re.Do
			}
			if got := r.table.BdevSize(dev); got != 8 {
				t.Errorf("%d blocks, want 8", got)
			}
			got := sys.AlignedBuffer(4096, 4096)
			for i := range got {
				got[i] = 0xff
			}
			if b := m.Transfer(devsw.BRead, 0, 0, got); b.Error != 0 || b.Resid != 0 {
				t.Fatalf("read: error %v, resid %d", b.Error, b.Resid)
			}
			if !bytes.Equal(got[:3600], data) || !bytes.Equal(got[3600:], make([]byte, 496)) {
				t.Error("not the file's contents and zeroes")
			}
			if c.conf.ReadOnly {
				return
			}
			if b := m.Transfer(devsw.BWrite, 0, 3584, bytes.Repeat([]byte{9}, 512)); b.Error != 0 || b.Resid != 0 {
				t.Fatalf("write: error %v, resid %d", b.Error, b.Resid)
			}
			if got, err := os.ReadFile(c.conf.Path); err != nil || !bytes.Equal(got, append(data[:3584:3584], bytes.Repeat([]byte{9}, 512)...)) {
				t.Errorf("the file has %d bytes (%v), and not those that were written", len(got), err)
			}
		})
	}
}

func TestOnlyWholeSectorsAreOffered(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		length int
		sector uint32
		want   int64
	}{
		{0, 512, 0}, {1, 512, 512}, {512, 512, 512}, {513, 512, 1024},
		{0, 4096, 0}, {3584, 4096, 0}, {3585, 4096, 4096}, {8000, 4096, 8192}, {8192 + 512, 4096, 8192},
	} {
		unit := r.units
		dev := r.create(Config{Path: newFile(t, make([]byte, c.length)), SectorSize: c.sector})
		closed, err := r.d.Info(unit)
		if err != nil || closed.Size != c.want || closed.SectorSize != c.sector || r.table.BdevSize(dev) != c.want/512 {
			t.Errorf("%d bytes in sectors of %d: %+v (%v), want %d", c.length, c.sector, closed, err, c.want)
		}
		r.open(dev)
		if open, err := r.d.Info(unit); err != nil || open != closed {
			t.Errorf("%d bytes in sectors of %d: open it is %+v (%v), closed %+v", c.length, c.sector, open, err, closed)
		}
	}
}

func TestADisksSizeFitsWhatDirectTransfersWorkIn(t *testing.T) {
	for _, c := range []struct {
		length, sector, align int64
		readOnly              bool
		want                  int64 // -1: refused
	}{
		{1 << 20, 512, 4096, false, 1 << 20},
		{1<<20 + 512, 512, 512, false, 1<<20 + 512},
		{1<<20 + 512, 512, 4096, false, -1},
		{1<<20 + 512, 512, 4096, true, 1<<20 + 512},
		{1<<20 + 512, 4096, 4096, false, 1 << 20},
		{1<<20 + 4096, 4096, 8192, false, -1},
	} {
		size, err := diskSize("x.img", c.length, c.sector, c.align, c.readOnly)
		if c.want >= 0 && (err != nil || size != c.want) {
			t.Errorf("%+v: %d, %v", c, size, err)
		}
		if c.want < 0 && (!errors.Is(err, devsw.EINVAL) || !strings.Contains(err.Error(), "x.img: has ")) {
			t.Errorf("%+v: %d, %v, want it refused", c, size, err)
		}
	}
}

func TestATransferSaysWhetherItEndsInItsContext(t *testing.T) {
	r := newRig(t)
	dev := r.create(Config{Path: newFile(t, make([]byte, 64<<10)), Direct: true})
	m := r.open(dev)
	issue := func(aio devsw.AIO, off int64, n int) *devsw.Buf {
		m.AIO = aio
		b, done := m.Buf(devsw.BWrite, 0, off, sys.AlignedBuffer(n, 4096))
		b.InContext = aio == nil // whatever it was before
		r.table.BdevStrategy(b)
		m.Wait(done)
		return b
	}
	for _, aio := range []devsw.AIO{nil, new(disktest.AIO), &disktest.AIO{Inline: true}} {
		for what, b := range map[string]*devsw.Buf{
			"straight": issue(aio, 0, 4096),
			"cut":      issue(aio, 60<<10, 8192),
		} {
			if b.Error != 0 || b.InContext != (aio != nil) {
				t.Errorf("%s, with %T: in its context %v, error %v", what, aio, b.InContext, b.Error)
			}
		}
		if b := issue(aio, 1<<20, 4096); b.Error != devsw.EINVAL || !b.InContext {
			t.Errorf("refused, with %T: in its context %v, error %v", aio, b.InContext, b.Error)
		}
	}

	// One that waits for another's block goes on with whoever had that.
	r.image(dev).impose(4096)
	aio := new(disktest.AIO)
	m.AIO = aio
	first, firstDone := m.Buf(devsw.BWrite, 0, 0, sys.AlignedBuffer(512, 4096))
	second, secondDone := m.Buf(devsw.BWrite, 0, 512, sys.AlignedBuffer(512, 4096))
	r.table.BdevStrategy(first)
	r.table.BdevStrategy(second)
	m.Wait(firstDone)
	<-secondDone
	if first.Error != 0 || !first.InContext || second.Error != 0 || second.InContext {
		t.Errorf("of two writes of a block the first ended in its context %v (%v), the second %v (%v)",
			first.InContext, first.Error, second.InContext, second.Error)
	}
}

func TestABufIsReturnedAsItWas(t *testing.T) {
	r := newRig(t)
	m := r.open(r.create(Config{Path: newFile(t, make([]byte, 8192)), Direct: true}))
	for _, op := range []devsw.Op{devsw.BRead, devsw.BWrite} {
		data := [][]byte{make([]byte, 5), sys.AlignedBuffer(8187+4096, 4096)}
		b, done := m.Buf(op, devsw.BMediaFUA, 4096, data...)
		b.Context = "the issuer's"
		r.table.BdevStrategy(b)
		<-done
		if b.Op != op || b.Flags != devsw.BMediaFUA || b.Bcount != 12288 || b.Resid != 8192 || b.Context != "the issuer's" ||
			len(b.Data) != 2 || &b.Data[0] != &data[0] || b.Error != 0 {
			t.Errorf("%v: %+v", op, b)
		}
	}
}

func TestTransfersEndAtTheEnd(t *testing.T) {
	for way, aio := range map[string]devsw.AIO{"threads": nil, "aio": new(disktest.AIO)} {
		t.Run(way, func(t *testing.T) {
			path := newFile(t, bytes.Repeat([]byte{1}, 8192))
			r := newRig(t)
			m := r.open(r.create(Config{Path: path}))
			m.AIO = aio
			if b := m.Transfer(devsw.BWrite, 0, 8192, make([]byte, 4096)); b.Error != 0 || b.Resid != 4096 {
				t.Errorf("at the end: error %v, resid %d", b.Error, b.Resid)
			}
			if b := m.Transfer(devsw.BWrite, 0, 8704, make([]byte, 4096)); b.Error != devsw.EINVAL || b.Resid != 4096 {
				t.Errorf("beyond the end: error %v, resid %d", b.Error, b.Resid)
			}
			if b := m.Transfer(devsw.BWrite, 0, 4096, make([]byte, 1000), make([]byte, 15384)); b.Error != 0 || b.Resid != 12288 {
				t.Errorf("across the end: error %v, resid %d", b.Error, b.Resid)
			}
			got := bytes.Repeat([]byte{7}, 8192)
			if b := m.Transfer(devsw.BRead, 0, 4096, got); b.Error != 0 || b.Resid != 4096 {
				t.Errorf("read across the end: error %v, resid %d", b.Error, b.Resid)
			}
			if !bytes.Equal(got, append(make([]byte, 4096), bytes.Repeat([]byte{7}, 4096)...)) {
				t.Error("read something else than was written, or beyond what resid says")
			}
			if info, err := os.Stat(path); err != nil || info.Size() != 8192 {
				t.Errorf("the file has %d bytes (%v)", info.Size(), err)
			}
		})
	}
}

func TestADiskGrowsAndShrinksWhenTold(t *testing.T) {
	path := newFile(t, make([]byte, 8192))
	r := newRig(t)
	dev := r.create(Config{Path: path})
	m := r.open(dev)
	resize := func(to, want int64) {
		t.Helper()
		if err := os.Truncate(path, to); err != nil {
			t.Fatal(err)
		}
		var size int64
		if err := r.table.BdevIoctl(dev, devsw.DIOCGROW, &size, rw); err != nil || size != want {
			t.Errorf("size %d (%v), want %d", size, err, want)
		}
		if info, err := r.d.Info(0); err != nil || info.Size != want {
			t.Errorf("info: %d (%v), want %d", info.Size, err, want)
		}
	}
	check := func(off int64, err devsw.Errno, resid int64) {
		t.Helper()
		for _, op := range []devsw.Op{devsw.BRead, devsw.BWrite} {
			if b := m.Transfer(op, 0, off, make([]byte, 512)); b.Error != err || b.Resid != resid {
				t.Errorf("%v at %d: error %v, resid %d, want %v and %d", op, off, b.Error, b.Resid, err, resid)
			}
		}
	}
	check(16384, devsw.EINVAL, 512)
	resize(16384+100, 16384+512)
	check(16384, 0, 0) // and the file is made longer
	resize(4096, 4096)
	check(3584, 0, 0)
	check(4096, devsw.EIO, 512)
	check(16384, devsw.EIO, 512)
	check(16384+512, devsw.EINVAL, 512)
	if err := r.table.BdevDiscard(dev, 4096, 512); !errors.Is(err, devsw.ENODEV) {
		t.Errorf("discard: %v, want ENODEV", err)
	}
	if err := r.table.BdevIoctl(dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{Pos: 4096, N: 512}, rw); err != devsw.EIO {
		t.Errorf("zeroes: %v, want EIO", err)
	}
	if err := r.table.BdevIoctl(dev, devsw.DIOCGROW, nil, rw); err != nil {
		t.Errorf("without a place for the size: %v", err)
	}
}

func TestABlockDeviceThatShrankGivesNoZeroes(t *testing.T) {
	path := newFile(t, bytes.Repeat([]byte{1}, 1<<20))
	dev := loopfs.Loop(t, path, 512)
	r := newRig(t)
	m := r.open(r.create(Config{Path: dev}))
	if err := os.Truncate(path, 512<<10); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("losetup", "--set-capacity", dev).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.AIO = new(disktest.AIO)
	if b := m.Transfer(devsw.BRead, 0, 768<<10, make([]byte, 4096)); b.Error != devsw.EIO || b.Resid != 4096 {
		t.Errorf("read: error %v, resid %d, want EIO", b.Error, b.Resid)
	}
}

func TestAFullHostFileSystemIsENOSPC(t *testing.T) {
	dir := mountTmpfs(t, 64<<10)
	path := fileIn(t, dir, nil)
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	for way, aio := range map[string]devsw.AIO{"threads": nil, "aio": new(disktest.AIO)} {
		t.Run(way, func(t *testing.T) {
			r := newRig(t)
			dev := r.create(Config{Path: path, Discard: true})
			m := r.open(dev)
			m.AIO = aio
			data := bytes.Repeat([]byte{1}, 32<<10)
			if b := m.Transfer(devsw.BWrite, 0, 0, data); b.Error != 0 || b.Resid != 0 {
				t.Errorf("a write that fits: error %v, resid %d", b.Error, b.Resid)
			}
			b := m.Transfer(devsw.BWrite, 0, 64<<10, data, data)
			if b.Error != devsw.ENOSPC || b.Resid <= 0 || b.Resid > 64<<10 {
				t.Errorf("a write that does not fit: error %v, resid %d, want ENOSPC", b.Error, b.Resid)
			}
			if b := m.Transfer(devsw.BWrite, devsw.BMediaFUA, 64<<10, data, data); b.Error != devsw.ENOSPC {
				t.Errorf("one that is to be stable: error %v, want ENOSPC", b.Error)
			}
			if err := r.table.BdevIoctl(dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{Pos: 256 << 10, N: 512 << 10}, rw); err != devsw.ENOSPC {
				t.Errorf("zeroes: %v, want ENOSPC", err)
			}
			// What failed did not fail a flush, and space that comes back can be used.
			if err := r.table.BdevIoctl(dev, devsw.DIOCCACHESYNC, nil, rw); err != nil {
				t.Errorf("flush: %v", err)
			}
			if err := r.table.BdevDiscard(dev, 0, 1<<20); err != nil {
				t.Errorf("discard: %v", err)
			}
			if b := m.Transfer(devsw.BWrite, 0, 512<<10, data); b.Error != 0 {
				t.Errorf("a write after the discard: error %v", b.Error)
			}
			if err := r.table.BdevDiscard(dev, 0, 1<<20); err != nil {
				t.Errorf("discard: %v", err)
			}
		})
	}
}

func TestDiscardAndUnmapGiveSpaceBack(t *testing.T) {
	const size = 1 << 20
	blocks := func(path string) int64 {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks
	}
	for _, discard := range []bool{false, true} {
		r := newRig(t)
		path := newFile(t, bytes.Repeat([]byte{1}, size))
		dev := r.create(Config{Path: path, Discard: discard})
		r.open(dev)
		if err := r.table.BdevIoctl(dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{N: size / 2}, rw); err != nil {
			t.Fatal(err)
		}
		if got := blocks(path); got < size/512 {
			t.Errorf("zeroes gave space back: %d blocks are left", got)
		}
		if err := r.table.BdevIoctl(dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{N: size / 2, Unmap: true}, rw); err != nil {
			t.Fatal(err)
		}
		if got := blocks(path); (got < size/512) != discard {
			t.Errorf("discards %v: %d of %d blocks are left after zeroes with unmap", discard, got, size/512)
		}
		if err := r.table.BdevDiscard(dev, 0, size); discard && err != nil || !discard && err != devsw.ENODEV {
			t.Errorf("discards %v: %v", discard, err)
		}
		if got := blocks(path); (got == 0) != discard {
			t.Errorf("discards %v: %d blocks are left after a discard of everything", discard, got)
		}
		if got, err := os.ReadFile(path); err != nil || len(got) != size || !bytes.Equal(got[:size/2], make([]byte, size/2)) {
			t.Errorf("the file has %d bytes (%v), or the first half is not zero", len(got), err)
		}
	}
}

func TestAStableWriteIsOneForTheHostToo(t *testing.T) {
	var flags []devsw.BufFlag
	aio := &disktest.AIO{Fault: func(b *devsw.Buf, _ int64) (int64, devsw.Errno) {
		if b.Op == devsw.BWrite {
			flags = append(flags, b.Flags)
		}
		return -1, 0
	}}
	r := newRig(t)
	for _, direct := range []bool{false, true} {
		m := r.open(r.create(Config{Path: newFile(t, make([]byte, 8192)), Direct: direct}))
		m.AIO = aio
		for _, f := range []devsw.BufFlag{0, devsw.BMediaFUA} {
			flags = nil
			if b := m.Transfer(devsw.BWrite, f, 0, sys.AlignedBuffer(513, 4096)[1:]); b.Error != 0 {
				t.Fatal(b.Error)
			}
			if len(flags) != 1 || flags[0] != f {
				t.Errorf("direct %v: a write with flags %v became some with %v", direct, f, flags)
			}
		}
	}
}

func TestErrorsOfTheHostComeThrough(t *testing.T) {
	r := newRig(t)
	m := r.open(r.create(Config{Path: newFile(t, make([]byte, 8192))}))
	for _, c := range []struct {
		op    devsw.Op
		n     int64
		e     devsw.Errno
		want  devsw.Errno
		resid int64
	}{
		{devsw.BRead, 0, devsw.EIO, devsw.EIO, 4096},
		{devsw.BRead, 1024, devsw.EIO, devsw.EIO, 3072},
		{devsw.BRead, 1024, 0, 0, 0},
		{devsw.BRead, 1000, devsw.EINVAL, devsw.EINVAL, 3096},
		{devsw.BWrite, 0, devsw.ENOSPC, devsw.ENOSPC, 4096},
		{devsw.BWrite, 512, syscall.EDQUOT, syscall.EDQUOT, 3584},
		{devsw.BWrite, 512, 0, devsw.EIO, 3584},
		{devsw.BWrite, 0, devsw.ECANCELED, devsw.ECANCELED, 4096},
	} {
		m.AIO = &disktest.AIO{Inline: true, Fault: func(*devsw.Buf, int64) (int64, devsw.Errno) { return c.n, c.e }}
		if b := m.Transfer(c.op, 0, 0, make([]byte, 4096)); b.Error != c.want || b.Resid != c.resid {
			t.Errorf("%v that ends after %d with %v: error %v, resid %d, want %v and %d", c.op, c.n, c.e, b.Error, b.Resid, c.want, c.resid)
		}
	}
}

func TestAUnitIsOpenThroughOneOfItsDevices(t *testing.T) {
	r := newRig(t)
	path := newFile(t, make([]byte, 8192))
	bdev := r.create(Config{Path: path})
	cdev := r.table.Blk2chr(bdev)
	if err := r.tryOpen(bdev); err != nil {
		t.Fatal(err)
	}
	if err := r.table.CdevOpen(cdev, rw, devsw.IFCHR); !errors.Is(err, devsw.EBUSY) || !strings.Contains(err.Error(), "the block device is open") {
		t.Errorf("character device: %v, want EBUSY", err)
	}
	// Taking down what was not opened does nothing to what is.
	if err := errors.Join(r.table.CdevCancel(cdev, rw, devsw.IFCHR), r.table.CdevClose(cdev, rw, devsw.IFCHR)); err != nil {
		t.Error(err)
	}
	if b := r.disk(bdev).Transfer(devsw.BRead, 0, 0, make([]byte, 512)); b.Error != 0 {
		t.Errorf("read of the block device: %v", b.Error)
	}
	if err := r.d.Destroy(0); !errors.Is(err, devsw.EBUSY) || !strings.Contains(err.Error(), "unit 0") {
		t.Errorf("destroy: %v, want EBUSY", err)
	}
	r.close(bdev)
	r.close(bdev)

	for range 2 {
		if err := r.table.CdevOpen(cdev, rw, devsw.IFCHR); err != nil {
			t.Fatal(err)
		}
	}
	w := devsw.NewUio(devsw.UIOWrite, bytes.Repeat([]byte("c"), 1024))
	w.Offset = 512
	if err := r.table.CdevWrite(cdev, w, 0); err != nil || w.Resid != 0 {
		t.Errorf("character write: %v, resid %d", err, w.Resid)
	}
	u := devsw.NewUio(devsw.UIORead, make([]byte, 16384))
	got := u.Iov[0]
	if err := r.table.CdevRead(cdev, u, 0); err != nil || u.Resid != 8192 || !bytes.Equal(got[512:1536], bytes.Repeat([]byte("c"), 1024)) {
		t.Errorf("character read: %v, resid %d", err, u.Resid)
	}
	if err := errors.Join(r.table.CdevCancel(cdev, rw, devsw.IFCHR), r.table.CdevClose(cdev, rw, devsw.IFCHR)); err != nil {
		t.Error(err)
	}
}

func TestADiskThatIsNotOpenDoesNothing(t *testing.T) {
	r := newRig(t)
	path := newFile(t, make([]byte, 4096))
	dev := r.create(Config{Path: path, Discard: true})
	none := devsw.Makedev(14, 77)
	for _, dev := range []devsw.Dev{dev, none} {
		if b := r.table; true {
			buf := &devsw.Buf{Dev: dev, Data: [][]byte{make([]byte, 512)}, Bcount: 512}
			b.BdevStrategy(buf)
			if buf.Error != devsw.ENXIO || buf.Resid != 512 {
				t.Errorf("%v: read: error %v, resid %d", dev, buf.Error, buf.Resid)
			}
		}
		if err := r.table.BdevIoctl(dev, devsw.DIOCCACHESYNC, nil, rw); err != devsw.ENXIO {
			t.Errorf("%v: flush: %v", dev, err)
		}
		if err := r.table.BdevDiscard(dev, 0, 512); err != devsw.ENXIO {
			t.Errorf("%v: discard: %v", dev, err)
		}
	}
	if err := r.table.BdevOpen(none, rw, devsw.IFBLK); err != devsw.ENXIO {
		t.Errorf("open: %v", err)
	}
	for _, err := range []error{func() error { _, err := r.d.Info(77); return err }(), r.d.Check(-1), r.d.Destroy(77)} {
		if !errors.Is(err, devsw.ENXIO) {
			t.Errorf("%v, want ENXIO", err)
		}
	}
	if n := r.table.BdevSize(none); n != -1 {
		t.Errorf("size %d, want -1", n)
	}
	// The file may go while nobody has it open; that shows at the next look.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := r.d.Info(0); !errors.Is(err, devsw.ENOENT) || !strings.Contains(err.Error(), path) {
		t.Errorf("info: %v", err)
	}
	if err := r.tryOpen(dev); !errors.Is(err, devsw.ENOENT) || !strings.Contains(err.Error(), path) {
		t.Errorf("open: %v", err)
	}
	if n := r.table.BdevSize(dev); n != -1 {
		t.Errorf("size %d, want -1", n)
	}
}

func TestIoctlsTellTheDisksProperties(t *testing.T) {
	r := newRig(t)
	dev := r.create(Config{Path: newFile(t, make([]byte, 40960)), SectorSize: 4096, Discard: true})
	r.open(dev)
	var (
		size   int64
		sector uint32
		info   devsw.DiskInfo
	)
	for cmd, data := range map[devsw.Cmd]any{
		devsw.DIOCGMEDIASIZE: &size, devsw.DIOCGSECTORSIZE: &sector, devsw.DIOCGDISKINFO: &info,
	} {
		if err := r.table.BdevIoctl(dev, cmd, data, rw); err != nil {
			t.Errorf("%v: %v", cmd, err)
		}
	}
	if size != 40960 || sector != 4096 || info.Size != size || !info.Discard || !info.WriteZeroes || info.ReadOnly || info.DiscardAlign == 0 {
		t.Errorf("size %d, sector %d, %+v", size, sector, info)
	}
	for cmd, data := range map[devsw.Cmd]any{devsw.DIOCWRITEZEROES: nil, devsw.DIOCGROW: &sector} {
		if err := r.table.BdevIoctl(dev, cmd, data, rw); err != devsw.EINVAL {
			t.Errorf("%v of a %T: %v, want EINVAL", cmd, data, err)
		}
	}
	if err := r.table.BdevIoctl(dev, devsw.CmdDriver, nil, rw); err != devsw.ENOTTY {
		t.Errorf("an unknown command: %v, want ENOTTY", err)
	}
}

func TestATransferAllocatesNothing(t *testing.T) {
	for _, conf := range []Config{{}, {Direct: true}, {Bounce: true}, {Direct: true, Bounce: true}} {
		r := newRig(t)
		conf.Path = newFile(t, make([]byte, 1<<20))
		dev := r.create(conf)
		r.open(dev)
		b := bench4K(dev)
		n := testing.AllocsPerRun(100, func() {
			b.Op ^= 1
			r.table.BdevStrategy(b)
			b.Rearm()
		})
		if n != 0 {
			t.Errorf("%+v: %v allocations for each", conf, n)
		}
	}
}

// bench4K makes a Buf of 4 KiB for an AIO that does nothing.
func bench4K(dev devsw.Dev) *devsw.Buf {
	return &devsw.Buf{
		Dev: dev, Blkno: 8, Data: [][]byte{sys.AlignedBuffer(4096, 4096)}, Bcount: 4096,
		Iodone: func(*devsw.Buf) {}, AIO: new(disktest.Discard),
	}
}

func BenchmarkStrategy4K(b *testing.B) {
	for _, op := range []devsw.Op{devsw.BRead, devsw.BWrite} {
		for name, conf := range map[string]Config{
			"buffered": {}, "direct": {Direct: true}, "bounce": {Bounce: true}, "direct,bounce": {Direct: true, Bounce: true},
		} {
			b.Run(op.String()+"/"+name, func(b *testing.B) {
				r := newRig(b)
				conf.Path = newFile(b, make([]byte, 1<<20))
				dev := r.create(conf)
				r.open(dev)
				buf := bench4K(dev)
				buf.Op = op
				b.ReportAllocs()
				for b.Loop() {
					r.table.BdevStrategy(buf)
					buf.Rearm()
				}
			})
		}
	}
}

// TestABlockDevicesSectorsAreTheDisks, unless others are asked for: a partition table counts in
// them.
func TestABlockDevicesSectorsAreTheDisks(t *testing.T) {
	for _, own := range []uint32{512, 4096} {
		dev := loopfs.Loop(t, newFile(t, make([]byte, 64<<10)), int(own))
		for _, c := range []struct{ asked, want uint32 }{{0, own}, {512, 512}, {4096, 4096}} {
			for _, direct := range []bool{false, true} {
				r := newRig(t)
				vnd := r.create(Config{Path: dev, SectorSize: c.asked, Direct: direct})
				closed, err := r.d.Info(0)
				m := r.open(vnd)
				open, err2 := r.d.Info(0)
				if err != nil || err2 != nil || closed.SectorSize != c.want || open != closed {
					t.Errorf("sectors of %d, %d asked for: %+v (%v), open %+v (%v)", own, c.asked, closed, err, open, err2)
				}
				got, want := sys.AlignedBuffer(int(c.want), 4096), numbered(int(c.want), byte(own))
				at := int64(c.want) // the second sector
				if b := m.Transfer(devsw.BWrite, 0, at, want); b.Error != 0 || b.Resid != 0 {
					t.Errorf("write: %v, resid %d", b.Error, b.Resid)
				}
				if b := m.Transfer(devsw.BRead, 0, at, got); b.Error != 0 || !bytes.Equal(got, want) {
					t.Errorf("read: %v, or other data", b.Error)
				}
				r.close(vnd)
			}
		}
	}
	r := newRig(t)
	r.create(Config{Path: newFile(t, make([]byte, 8192))})
	if info, err := r.d.Info(0); err != nil || info.SectorSize != 512 {
		t.Errorf("a file: %+v, %v", info, err)
	}
}

// TestReadsLeaveTheAccessTimeAlone: there is nothing to be written down for them, for which they
// might have to wait.
func TestReadsLeaveTheAccessTimeAlone(t *testing.T) {
	m := loopfs.New(t, "ext4")
	path := fileIn(t, m.Dir, make([]byte, 8192))
	long := time.Now().Add(-48 * time.Hour) // so that any read would be written down (relatime)
	if err := os.Chtimes(path, long, long); err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	dev := r.create(Config{Path: path})
	d := r.open(dev)
	if b := d.Transfer(devsw.BRead, 0, 0, make([]byte, 8192)); b.Error != 0 {
		t.Fatal(b.Error)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t).Atim; time.Unix(st.Unix()).Sub(long).Abs() > time.Hour {
		t.Errorf("the file was read at %v, says its inode", time.Unix(st.Unix()))
	}
	r.close(dev)
}

// TestAnImageWithTheNumberOfAnotherIsAnother: a file's inode, and the number of a loop device, are
// used again.
func TestAnImageWithTheNumberOfAnotherIsAnother(t *testing.T) {
	identity := func(path string) string {
		t.Helper()
		f, err := sys.OpenFile(path, sys.OpenFlags{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s, err := f.Identity()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	m := loopfs.New(t, "ext4")
	path := filepath.Join(m.Dir, "image")
	number := func() uint64 {
		t.Helper()
		if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Ino
	}
	first := number()
	was := identity(path)
	if now := identity(path); now != was {
		t.Errorf("the same file is %s and %s", was, now)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // a tick of the clock of files
	if number() != first {
		t.Log("the file system has used another number")
	} else if now := identity(path); now == was {
		t.Errorf("two files are %s", was)
	}

	loop := func(t *testing.T) (dev, s string) {
		dev = loopfs.Loop(t, path, 512)
		return dev, identity(dev)
	}
	var devs, ids [2]string
	for i := range devs {
		t.Run("", func(t *testing.T) { devs[i], ids[i] = loop(t) })
	}
	if devs[0] != devs[1] {
		t.Logf("the host has used %s and %s", devs[0], devs[1])
	} else if ids[0] == ids[1] && ids[0] != "" {
		t.Errorf("two devices are %s", ids[0])
	}
}
