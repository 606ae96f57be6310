package null_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"vdev/devsw"
	"vdev/internal/dev/null"
	"vdev/internal/test/disktest"
)

const rw = devsw.FREAD | devsw.FWRITE

func driver(t testing.TB) (*null.Driver, *devsw.Table) {
	t.Helper()
	table := devsw.NewTable()
	d, err := null.New(table)
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

func open(t testing.TB, d *null.Driver, table *devsw.Table, unit int, conf null.Config) devsw.Dev {
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
		if err := table.BdevCancel(dev, flag, devsw.IFBLK); err != nil {
			t.Errorf("cancel: %v", err)
		}
		if err := table.BdevClose(dev, flag, devsw.IFBLK); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return dev
}

func TestReadsTouchTheMemoryOnlyWhereWanted(t *testing.T) {
	d, table := driver(t)
	for unit, zeroes := range []bool{false, true} {
		m := &disktest.Disk{Table: table, Dev: open(t, d, table, unit, null.Config{Size: 8192, ReadZeroes: zeroes})}
		got := bytes.Repeat([]byte{7}, 8192)
		want := bytes.Clone(got)
		if zeroes {
			clear(want[:4096])
		}
		// Half of the transfer is beyond the end.
		if b := m.Transfer(devsw.BRead, 0, 4096, got); b.Error != 0 || b.Resid != 4096 {
			t.Errorf("read: error %v, resid %d", b.Error, b.Resid)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("ReadZeroes %v: the memory is not as it should be", zeroes)
		}
		if b := m.Transfer(devsw.BWrite, 0, 0, got); b.Error != 0 || b.Resid != 0 {
			t.Errorf("write: error %v, resid %d", b.Error, b.Resid)
		}
		if b := m.Transfer(devsw.BWrite, 0, 1<<20, got); b.Error != devsw.EINVAL || b.Resid != 8192 {
			t.Errorf("write beyond the end: error %v, resid %d", b.Error, b.Resid)
		}
	}
}

func TestOperationsAnswerAsADisksDo(t *testing.T) {
	d, table := driver(t)
	dev := open(t, d, table, 0, null.Config{Size: 1 << 40, SectorSize: 4096})
	var info devsw.DiskInfo
	for cmd, data := range map[devsw.Cmd]any{
		devsw.DIOCGDISKINFO:   &info,
		devsw.DIOCCACHESYNC:   nil,
		devsw.DIOCGROW:        nil,
		devsw.DIOCWRITEZEROES: &devsw.ZeroRange{Pos: 4096, N: 1 << 30},
	} {
		if err := table.BdevIoctl(dev, cmd, data, rw); err != nil {
			t.Errorf("%v: %v", cmd, err)
		}
	}
	if want, err := d.Info(0); err != nil || info != want || info.Size != 1<<40 || info.SectorSize != 4096 || !info.Discard {
		t.Errorf("%+v, and Info says %+v, %v", info, want, err)
	}
	if n := table.BdevSize(dev); n != 1<<31 {
		t.Errorf("size %d, want %d", n, 1<<31)
	}
	if err := table.BdevDiscard(dev, 0, 1<<40); err != nil {
		t.Errorf("discard: %v", err)
	}
	if err := table.BdevDiscard(dev, 512, 4096); err != devsw.EINVAL {
		t.Errorf("discard between sectors: %v, want EINVAL", err)
	}
	if err := table.BdevIoctl(dev, devsw.DIOCWRITEZEROES, nil, rw); err != devsw.EINVAL {
		t.Errorf("zeroes without a range: %v, want EINVAL", err)
	}
	if err := d.Destroy(0); !errors.Is(err, devsw.EBUSY) {
		t.Errorf("destroy while open: %v, want EBUSY", err)
	}
	for range 2 {
		u := devsw.NewUio(devsw.UIORead, make([]byte, 8192))
		if err := table.CdevRead(table.Blk2chr(dev), u, 0); err != nil || u.Resid != 0 {
			t.Errorf("character read: %v, resid %d", err, u.Resid)
		}
	}
}

func TestAReadOnlyDiskIsNotWritten(t *testing.T) {
	d, table := driver(t)
	dev := open(t, d, table, 0, null.Config{Size: 4096, ReadOnly: true})
	if err := table.BdevOpen(dev, rw, devsw.IFBLK); !errors.Is(err, devsw.EROFS) {
		t.Errorf("open for writing: %v, want EROFS", err)
	}
	m := &disktest.Disk{Table: table, Dev: dev}
	if b := m.Transfer(devsw.BWrite, 0, 0, make([]byte, 512)); b.Error != devsw.EROFS {
		t.Errorf("write: %v, want EROFS", b.Error)
	}
	if err := table.BdevDiscard(dev, 0, 512); err != devsw.EROFS {
		t.Errorf("discard: %v, want EROFS", err)
	}
}

func TestCreateSaysWhatIsWrong(t *testing.T) {
	d, table := driver(t)
	if _, err := d.Create(0, null.Config{Size: 512}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		unit int
		conf null.Config
		err  devsw.Errno
		says string
	}{
		{0, null.Config{Size: 512}, devsw.EEXIST, "unit 0"},
		{1, null.Config{}, devsw.EINVAL, "size 0"},
		{1, null.Config{Size: 4095, SectorSize: 512}, devsw.EINVAL, "size 4095"},
		{1, null.Config{Size: 4096, SectorSize: 8192}, devsw.EINVAL, "sector size 8192"},
	} {
		if _, err := d.Create(c.unit, c.conf); !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want %v with %q", c.conf, err, c.err, c.says)
		}
	}
	none := devsw.Makedev(400, 9)
	if err := table.BdevOpen(none, rw, devsw.IFBLK); err != devsw.ENXIO {
		t.Errorf("open of a unit there is not: %v, want ENXIO", err)
	}
	if err := d.Destroy(9); !errors.Is(err, devsw.ENXIO) {
		t.Errorf("destroy of a unit there is not: %v, want ENXIO", err)
	}
}

func TestATransferAllocatesNothing(t *testing.T) {
	d, table := driver(t)
	dev := open(t, d, table, 0, null.Config{Size: 1 << 20, ReadZeroes: true})
	b := &devsw.Buf{Dev: dev, Data: [][]byte{make([]byte, 4096)}, Bcount: 4096}
	n := testing.AllocsPerRun(100, func() {
		table.BdevStrategy(b)
		b.Rearm()
	})
	if n != 0 {
		t.Errorf("%v allocations for each", n)
	}
}

func BenchmarkStrategy4K(b *testing.B) {
	d, table := driver(b)
	dev := open(b, d, table, 0, null.Config{Size: 1 << 20})
	buf := &devsw.Buf{Dev: dev, Data: [][]byte{make([]byte, 4096)}, Bcount: 4096}
	b.ReportAllocs()
	for b.Loop() {
		table.BdevStrategy(buf)
		buf.Rearm()
	}
}
