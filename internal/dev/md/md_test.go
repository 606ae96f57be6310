package md_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/sys"
	"vdev/internal/test/disktest"
)

const rw = devsw.FREAD | devsw.FWRITE

// driver attaches the driver to a table of its own for the length of the test.
func driver(t testing.TB) (*md.Driver, *devsw.Table) {
	t.Helper()
	table := devsw.NewTable()
	d, err := md.New(table)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Detach(); err != nil {
			t.Errorf("detach: %v", err)
		}
	})
	return d, table
}

// open creates and opens a disk for the length of the test.
func open(t testing.TB, d *md.Driver, table *devsw.Table, unit int, conf md.Config) devsw.Dev {
	t.Helper()
	dev, err := d.Create(unit, conf)
	if err != nil {
		t.Fatal(err)
	}
	flag := rw
	if conf.ReadOnly {
		flag = devsw.FREAD
	}
	if err := table.BdevOpen(dev, flag, devsw.IFBLK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.BdevClose(dev, flag, devsw.IFBLK); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return dev
}

func TestADiskHasNetBSDsNumbers(t *testing.T) {
	d, table := driver(t)
	dev, err := d.Create(2, md.Config{Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if dev != devsw.Makedev(17, 2) || table.Blk2chr(dev) != devsw.Makedev(24, 2) {
		t.Errorf("block %v, character %v; want 17,2 and 24,2", dev, table.Blk2chr(dev))
	}
}

func TestADiskBehavesAsItsModel(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		d, table := driver(t)
		unit := 0
		rapid.Check(t, func(rt *rapid.T) {
			size := sector * rapid.Int64Range(1, 100).Draw(rt, "sectors")
			conf := md.Config{Size: size, SectorSize: uint32(sector)}
			dev, err := d.Create(unit, conf)
			if err != nil {
				rt.Fatal(err)
			}
			if err := table.BdevOpen(dev, rw, devsw.IFBLK); err != nil {
				rt.Fatal(err)
			}
			defer func() {
				if err := table.BdevClose(dev, rw, devsw.IFBLK); err != nil {
					t.Fatal(err)
				}
				if err := d.Destroy(unit); err != nil {
					t.Fatal(err)
				}
			}()
			m := &disktest.Disk{Table: table, Dev: dev, Want: make([]byte, size), Sector: sector}
			m.Check(rt)
		})
	}
}

func TestADiskIsLoadedFromItsFile(t *testing.T) {
	d, table := driver(t)
	path := filepath.Join(t.TempDir(), "img")
	want := bytes.Repeat([]byte("memory disk "), 500) // 6000 bytes
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	for unit, size := range []int64{0, 6144, 8192} {
		dev := open(t, d, table, unit, md.Config{File: path, Size: size})
		size = max(size, 6144)
		if got := table.BdevSize(dev); got != size/512 {
			t.Errorf("size %d: %d blocks, want %d", size, got, size/512)
		}
		got := make([]byte, size)
		m := &disktest.Disk{Table: table, Dev: dev}
		if b := m.Transfer(devsw.BRead, 0, 0, got); b.Error != 0 || b.Resid != 0 {
			t.Fatalf("read: error %v, resid %d", b.Error, b.Resid)
		}
		if !bytes.Equal(got[:6000], want) || !bytes.Equal(got[6000:], make([]byte, size-6000)) {
			t.Errorf("size %d: the contents are not the file's", size)
		}
		// The file is copied, not used.
		if b := m.Transfer(devsw.BWrite, 0, 0, make([]byte, 512)); b.Error != 0 {
			t.Fatal(b.Error)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file has changed (%v)", err)
	}
}

func TestCreateSaysWhatIsWrong(t *testing.T) {
	d, _ := driver(t)
	path := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(path, make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Create(0, md.Config{Size: 512}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		unit int
		conf md.Config
		err  devsw.Errno
		says string
	}{
		{0, md.Config{Size: 512}, devsw.EEXIST, "unit 0"},
		{-1, md.Config{Size: 512}, devsw.EINVAL, "unit -1"},
		{1, md.Config{}, devsw.EINVAL, "size 0"},
		{1, md.Config{Size: -512}, devsw.EINVAL, "size -512"},
		{1, md.Config{Size: 1000}, devsw.EINVAL, "size 1000"},
		{1, md.Config{Size: 512, SectorSize: 4096}, devsw.EINVAL, "4096"},
		{1, md.Config{Size: 4096, SectorSize: 1024}, devsw.EINVAL, "sector size 1024"},
		{1, md.Config{Size: 1 << 62}, devsw.ENOMEM, "4611686018427387904 bytes"},
		{1, md.Config{Size: 4096, File: path}, devsw.EFBIG, path + ": has 5000 bytes, more than the disk's 4096"},
		{1, md.Config{Size: 4096, File: path + "x"}, devsw.ENOENT, path + "x"},
		{1, md.Config{Size: 4096, File: filepath.Dir(path)}, devsw.EINVAL, "is a directory"},
	} {
		dev, err := d.Create(c.unit, c.conf)
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) || dev != devsw.NODEV {
			t.Errorf("%+v: %v, want %v with %q", c.conf, err, c.err, c.says)
		}
	}
}

func TestALargeDiskCostsNoMemory(t *testing.T) {
	d, table := driver(t)
	const size = 1 << 40
	dev := open(t, d, table, 0, md.Config{Size: size})
	m := &disktest.Disk{Table: table, Dev: dev}
	want := bytes.Repeat([]byte{0xa5}, 4096)
	if b := m.Transfer(devsw.BWrite, 0, size-4096, want); b.Error != 0 || b.Resid != 0 {
		t.Fatalf("write at the end: error %v, resid %d", b.Error, b.Resid)
	}
	if err := table.BdevIoctl(dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{N: size - 512}, rw); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	if b := m.Transfer(devsw.BRead, 0, size-4096, got); b.Error != 0 || b.Resid != 0 {
		t.Fatalf("read at the end: error %v, resid %d", b.Error, b.Resid)
	}
	if !bytes.Equal(got[:3584], make([]byte, 3584)) || !bytes.Equal(got[3584:], want[:512]) {
		t.Error("zeroing all but the last sector did something else")
	}
}

func TestAReadOnlyDiskIsNotWritten(t *testing.T) {
	d, table := driver(t)
	dev := open(t, d, table, 0, md.Config{Size: 4096, ReadOnly: true})
	if err := table.BdevOpen(dev, rw, devsw.IFBLK); !errors.Is(err, devsw.EROFS) {
		t.Errorf("open for writing: %v, want EROFS", err)
	}
	m := &disktest.Disk{Table: table, Dev: dev}
	if b := m.Transfer(devsw.BWrite, 0, 0, make([]byte, 512)); b.Error != devsw.EROFS || b.Resid != 512 {
		t.Errorf("write: error %v, resid %d, want EROFS and 512", b.Error, b.Resid)
	}
	if err := table.BdevDiscard(dev, 0, 512); !errors.Is(err, devsw.EROFS) {
		t.Errorf("discard: %v, want EROFS", err)
	}
	if err := table.BdevIoctl(dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{N: 512}, rw); !errors.Is(err, devsw.EROFS) {
		t.Errorf("zeroes: %v, want EROFS", err)
	}
	info, err := d.Info(0)
	if err != nil || !info.ReadOnly || info.Discard || info.WriteZeroes {
		t.Errorf("info: %+v, %v", info, err)
	}
}

func TestIoctlsTellTheDisksProperties(t *testing.T) {
	d, table := driver(t)
	dev := open(t, d, table, 0, md.Config{Size: 40960, SectorSize: 4096})
	var (
		size   int64
		grown  int64
		sector uint32
		info   devsw.DiskInfo
	)
	for cmd, data := range map[devsw.Cmd]any{
		devsw.DIOCGMEDIASIZE:  &size,
		devsw.DIOCGSECTORSIZE: &sector,
		devsw.DIOCGDISKINFO:   &info,
		devsw.DIOCGROW:        &grown,
		devsw.DIOCCACHESYNC:   nil,
	} {
		if err := table.BdevIoctl(dev, cmd, data, rw); err != nil {
			t.Errorf("%v: %v", cmd, err)
		}
	}
	want, err := d.Info(0)
	if err != nil || size != 40960 || grown != 40960 || sector != 4096 || info != want {
		t.Errorf("size %d, grown %d, sector %d, info %+v; Info: %+v, %v", size, grown, sector, info, want, err)
	}
	for cmd, data := range map[devsw.Cmd]any{
		devsw.DIOCGMEDIASIZE:  &sector,
		devsw.DIOCGSECTORSIZE: nil,
		devsw.DIOCGDISKINFO:   (*devsw.DiskInfo)(nil),
		devsw.DIOCGROW:        "large",
		devsw.DIOCWRITEZEROES: devsw.ZeroRange{},
	} {
		if err := table.BdevIoctl(dev, cmd, data, rw); err != devsw.EINVAL {
			t.Errorf("%v of a %T: %v, want EINVAL", cmd, data, err)
		}
	}
	if err := table.BdevIoctl(dev, devsw.CmdDriver, nil, rw); err != devsw.ENOTTY {
		t.Errorf("an unknown command: %v, want ENOTTY", err)
	}
}

func TestADiskIsDestroyedOnlyWhenClosed(t *testing.T) {
	d, table := driver(t)
	dev, err := d.Create(0, md.Config{Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if err := table.BdevOpen(dev, rw, devsw.IFBLK); err != nil {
		t.Fatal(err)
	}
	if err := d.Destroy(0); !errors.Is(err, devsw.EBUSY) {
		t.Errorf("destroy while open: %v, want EBUSY", err)
	}
	if err := d.Detach(); !errors.Is(err, devsw.EBUSY) {
		t.Errorf("detach while open: %v, want EBUSY", err)
	}
	for range 2 { // d_close is idempotent
		if err := table.BdevCancel(dev, rw, devsw.IFBLK); err != nil {
			t.Fatal(err)
		}
		if err := table.BdevClose(dev, rw, devsw.IFBLK); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Destroy(0); err != nil {
		t.Fatal(err)
	}
	if err := d.Destroy(0); !errors.Is(err, devsw.ENXIO) {
		t.Errorf("destroy again: %v, want ENXIO", err)
	}
	if err := table.BdevOpen(dev, rw, devsw.IFBLK); err != devsw.ENXIO {
		t.Errorf("open: %v, want ENXIO", err)
	}
	m := &disktest.Disk{Table: table, Dev: dev}
	if b := m.Transfer(devsw.BRead, 0, 0, make([]byte, 512)); b.Error != devsw.ENXIO || b.Resid != 512 {
		t.Errorf("read: error %v, resid %d, want ENXIO and 512", b.Error, b.Resid)
	}
	if _, err := d.Info(0); !errors.Is(err, devsw.ENXIO) {
		t.Errorf("info: %v, want ENXIO", err)
	}
	if n := table.BdevSize(dev); n != -1 {
		t.Errorf("size %d, want -1", n)
	}
}

func TestTheCharacterDeviceReadsAndWrites(t *testing.T) {
	d, table := driver(t)
	bdev, err := d.Create(0, md.Config{Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	dev := table.Blk2chr(bdev)
	if err := table.CdevOpen(dev, rw, devsw.IFCHR); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = table.CdevClose(dev, rw, devsw.IFCHR) }()
	w := devsw.NewUio(devsw.UIOWrite, bytes.Repeat([]byte("x"), 1024))
	w.Offset = 3584
	if err := table.CdevWrite(dev, w, 0); err != nil || w.Resid != 512 {
		t.Errorf("write across the end: %v, resid %d", err, w.Resid)
	}
	r := devsw.NewUio(devsw.UIORead, make([]byte, 8192))
	got := r.Iov[0]
	if err := table.CdevRead(dev, r, 0); err != nil || r.Resid != 4096 {
		t.Errorf("read across the end: %v, resid %d", err, r.Resid)
	}
	if !bytes.Equal(got[:3584], make([]byte, 3584)) || !bytes.Equal(got[3584:4096], bytes.Repeat([]byte("x"), 512)) {
		t.Error("read something else than was written")
	}
}

func TestMemoryTakenAwayFailsTheTransferAndNothingElse(t *testing.T) {
	d, table := driver(t)
	dev := open(t, d, table, 0, md.Config{Size: 1 << 20})
	fd, err := sys.NewMemfd("guest", 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	mem, err := sys.Mmap(fd.Int(), 0, 64<<10, true)
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Munmap(mem)
	if err := syscall.Ftruncate(fd.Int(), 0); err != nil {
		t.Fatal(err)
	}
	m := &disktest.Disk{Table: table, Dev: dev}
	for _, op := range []devsw.Op{devsw.BRead, devsw.BWrite} {
		if b := m.Transfer(op, 0, 0, mem); b.Error != devsw.EFAULT || b.Resid != 64<<10 {
			t.Errorf("%v: error %v, resid %d, want EFAULT and all of it", op, b.Error, b.Resid)
		}
	}
	if b := m.Transfer(devsw.BRead, 0, 0, make([]byte, 4096)); b.Error != 0 {
		t.Errorf("read afterwards: %v", b.Error)
	}
}

func TestQueuesNeedNoLockBetweenThem(t *testing.T) {
	d, table := driver(t)
	dev := open(t, d, table, 0, md.Config{Size: 4 << 20})
	var wg sync.WaitGroup
	for q := range 4 {
		wg.Go(func() {
			base := int64(q) << 20
			data, got := bytes.Repeat([]byte{byte(q + 1)}, 4096), make([]byte, 4096)
			m := &disktest.Disk{Table: table, Dev: dev}
			for i := range int64(200) {
				m.Transfer(devsw.BWrite, 0, base+i*4096, data)
				if err := table.BdevDiscard(dev, base+i*4096+512, 512); err != nil {
					t.Error(err)
				}
				m.Transfer(devsw.BRead, 0, base+i*4096, got)
				want := bytes.Clone(data)
				clear(want[512:1024])
				if !bytes.Equal(got, want) {
					t.Errorf("queue %d, block %d: not what was written", q, i)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestATransferAllocatesNothing(t *testing.T) {
	d, table := driver(t)
	b := transfer(open(t, d, table, 0, md.Config{Size: 1 << 20}))
	n := testing.AllocsPerRun(100, func() {
		b.Op ^= 1
		table.BdevStrategy(b)
		b.Rearm()
	})
	if n != 0 {
		t.Errorf("%v allocations for each", n)
	}
}

// transfer makes a Buf of 4 KiB.
func transfer(dev devsw.Dev) *devsw.Buf {
	return &devsw.Buf{Dev: dev, Blkno: 8, Data: [][]byte{make([]byte, 4096)}, Bcount: 4096, Iodone: func(*devsw.Buf) {}}
}

func BenchmarkStrategy4K(b *testing.B) {
	for _, op := range []devsw.Op{devsw.BRead, devsw.BWrite} {
		b.Run(op.String(), func(b *testing.B) {
			d, table := driver(b)
			buf := transfer(open(b, d, table, 0, md.Config{Size: 64 << 20}))
			buf.Op = op
			b.ReportAllocs()
			b.SetBytes(4096)
			for i := int64(0); b.Loop(); i++ {
				buf.Blkno = i * 8 & (128<<10 - 1)
				table.BdevStrategy(buf)
				buf.Rearm()
			}
		})
	}
}
