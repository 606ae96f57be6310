package vnd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"vdev/devsw"
	"vdev/internal/sys"
	"vdev/internal/test/disktest"
	"vdev/internal/test/loopfs"
)

// fillUp takes all the space of a file system, and gives what gives it back.
func fillUp(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// What was refused in one piece may fit in smaller ones; and what is written down may take more
	// space, or less.
	for range 3 {
		for _, n := range []int{1 << 20, 64 << 10, 4 << 10} {
			for err = nil; err == nil; {
				_, err = f.Write(make([]byte, n))
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}
		if err := f.Sync(); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := d.Sync(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAFullFileSystemLosesNothingThatWasAnswered: a write that has no space fails, or else is there
// after a flush that succeeds; what was there before stays; and with space things go on.
func TestAFullFileSystemLosesNothingThatWasAnswered(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs", "tmpfs"} {
		t.Run(kind, func(t *testing.T) {
			var dir string
			if kind == "tmpfs" {
				dir = mountTmpfs(t, 8<<20)
			} else {
				dir = loopfs.New(t, kind).Dir
			}
			for _, mode := range modes {
				t.Run(string(mode), func(t *testing.T) {
					full(t, dir, func(r *rig, dev devsw.Dev) *diskOn { return &diskOn{on(r.open(dev), newReactor(t, mode)), dev} })
				})
			}
		})
	}
}

func full(t *testing.T, dir string, open func(r *rig, dev devsw.Dev) *diskOn) {
	const size, piece = 512 << 20, 64 << 10
	path := fileIn(t, dir, nil)
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	r := newRig(t)
	d := open(r, r.create(Config{Path: path, Discard: true}))
	want := map[int64]byte{} // what each piece must have, by its offset
	write := func(off int64, v byte) devsw.Errno {
		t.Helper()
		b := d.Transfer(devsw.BWrite, 0, off, bytes.Repeat([]byte{v}, piece))
		switch {
		case b.Error == 0 && b.Resid != 0:
			t.Errorf("a write of %d bytes is said to be well, but for %d", piece, b.Resid)
		case b.Error == 0:
			want[off] = v
		case b.Error != devsw.ENOSPC:
			t.Errorf("a write: %v", b.Error)
		default:
			delete(want, off) // it may be there in part
		}
		return b.Error
	}
	check := func(when string) {
		t.Helper()
		forget(t, path)
		got := make([]byte, piece)
		for off, v := range want {
			if b := d.Transfer(devsw.BRead, 0, off, got); b.Error != 0 || !bytes.Equal(got, bytes.Repeat([]byte{v}, piece)) {
				t.Errorf("%s: the piece at byte %d has %d and not %d, %v", when, off, got[0], v, b.Error)
			}
		}
	}

	for i := range int64(8) {
		if e := write(i*piece, 1); e != 0 {
			t.Fatal(e)
		}
	}
	if err := d.flush(); err != nil {
		t.Fatal(err)
	}
	free := fillUp(t, dir)
	kept := len(want)
	refused := 0
	for i := range int64(64) { // new pieces, far apart
		if write(1<<20+i*(1<<20), 2) != 0 {
			refused++
		}
	}
	for i := range int64(4) { // where something is already
		_ = write(i*piece, 3)
	}
	flushed := d.flush()
	t.Logf("%d of 64 new pieces were refused, %d of 4 old ones; the flush: %v", refused, kept+64-refused-len(want), flushed)
	if refused == 0 && flushed == nil {
		t.Skip("the file system did not become full")
	}
	if flushed == nil {
		check("full")
	}

	long := bytes.Repeat([]byte{4}, 6<<20) // which is written in pieces
	if b := d.Transfer(devsw.BWrite, 0, 128<<20, long); b.Error != 0 && b.Error != devsw.ENOSPC || b.Error == 0 && b.Resid != 0 {
		t.Errorf("a long write: %v, resid %d", b.Error, b.Resid)
	}
	// Sectors of what failed are old or new.
	got := make([]byte, len(long))
	if b := d.Transfer(devsw.BRead, 0, 128<<20, got); b.Error != 0 {
		t.Errorf("a read of it: %v", b.Error)
	}
	for off := 0; off < len(got); off += 512 {
		if s := got[off : off+512]; !bytes.Equal(s, long[:512]) && !bytes.Equal(s, make([]byte, 512)) {
			t.Fatalf("the sector at byte %d of a write that failed is neither old nor new", off)
		}
	}
	switch err := r.table.BdevIoctl(d.dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{Pos: 4 * piece, N: piece}, rw); {
	case err == nil:
		want[4*piece] = 0
	case !errors.Is(err, devsw.ENOSPC):
		t.Errorf("zeroes: %v", err)
	default:
		delete(want, 4*piece)
	}
	switch err := r.table.BdevDiscard(d.dev, 5*piece, piece); {
	case err == nil, errors.Is(err, devsw.ENOSPC):
		delete(want, 5*piece)
	default:
		t.Errorf("discard: %v", err)
	}
	if second := d.flush(); flushed != nil && second == nil {
		t.Errorf("a flush has failed with %v, and the next one is well", flushed)
	} else if second == nil {
		check("full, after zeroes and a discard")
	}

	free()
	if e := write(256<<20, 5); e != 0 {
		t.Errorf("a write, now that there is space: %v", e)
	}
	if err := d.flush(); (err == nil) != (flushed == nil) {
		t.Errorf("the flush now: %v; while it was full: %v", err, flushed)
	}
	if flushed == nil {
		check("with space again")
	}
}

// forget has the host's page cache forget a file, as far as it can.
func forget(t *testing.T, path string) {
	t.Helper()
	fd, err := sys.OpenFile(path, sys.OpenFlags{})
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	sys.DropCached(fd.Int(), 0, 0)
}

// diskOn is an open disk with its device.
type diskOn struct {
	*disktest.Disk
	dev devsw.Dev
}

func (d *diskOn) flush() error { return d.Table.BdevIoctl(d.dev, devsw.DIOCCACHESYNC, nil, rw) }
