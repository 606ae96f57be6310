package disk_test

import (
	"bytes"
	"testing"

	"vdev/devsw"
	"vdev/internal/dev/fault"
	"vdev/internal/dev/md"
	"vdev/internal/dev/null"
	"vdev/internal/test/disktest"
)

// TestALongCopyTakesTurns: the context is never held for more than a MiB of it, it ends as a short
// one does, and it is given up in between.
func TestALongCopyTakesTurns(t *testing.T) {
	const (
		size = 8 << 20
		turn = 1 << 20
		rw   = devsw.FREAD | devsw.FWRITE
	)
	for _, c := range []struct {
		name string
		make func(t *testing.T, table *devsw.Table) devsw.Dev
		ops  []devsw.Op
	}{
		{"md", makeMD, []devsw.Op{devsw.BWrite, devsw.BRead}},
		{"fault on md", func(t *testing.T, table *devsw.Table) devsw.Dev {
			lower := makeMD(t, table)
			d := attach(t, table, fault.New)
			return must(d.Create(0, fault.Config{Lower: lower, Info: func() (devsw.DiskInfo, error) {
				return devsw.DiskInfo{Size: size, SectorSize: 512}, nil
			}}))(t)
		}, []devsw.Op{devsw.BWrite, devsw.BRead}},
		{"null", func(t *testing.T, table *devsw.Table) devsw.Dev {
			return must(attach(t, table, null.New).Create(0, null.Config{Size: size, ReadZeroes: true}))(t)
		}, []devsw.Op{devsw.BRead}},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := devsw.NewTable()
			dev := c.make(t, table)
			if err := table.BdevOpen(dev, rw, devsw.IFBLK); err != nil {
				t.Fatal(err)
			}
			shut := func() {
				if err := table.BdevCancel(dev, rw, devsw.IFBLK); err != nil {
					t.Error(err)
				}
			}
			defer func() {
				shut()
				if err := table.BdevClose(dev, rw, devsw.IFBLK); err != nil {
					t.Error(err)
				}
			}()
			mem := make([]byte, size)
			for _, op := range c.ops {
				for _, end := range []string{"well", "cancelled", "cut", "closed"} {
					aio := new(disktest.Turns)
					d := &disktest.Disk{Table: table, Dev: dev, AIO: aio}
					var first int64
					if end == "cut" {
						first = 2 * turn // so that the disk's end cuts it
					}
					for i := range mem {
						mem[i] = byte(i>>12) + byte(len(end))
					}
					if op == devsw.BRead && c.name == "null" {
						copy(mem, "not zero")
					}
					b, done := d.Buf(op, 0, first, mem[:turn/2], mem[turn/2:])
					table.BdevStrategy(b)
					turns := 1
					for len(done) == 0 {
						select {
						case <-done:
						default:
							if turns == 3 && end == "cancelled" {
								table.BdevCancelBuf(b)
							}
							if turns == 3 && end == "closed" {
								shut()
							}
							if !aio.Next() {
								t.Fatal("it waits for no turn")
							}
							turns++
							continue
						}
						break
					}
					want, resid, least := devsw.Errno(0), int64(0), 8
					switch end {
					case "cancelled", "closed":
						want, resid, least = devsw.ECANCELED, size-3*turn, 4
					case "cut":
						resid, least = 2*turn, 6
					}
					if b.Error != want || b.Resid != resid || turns != least || !b.InContext {
						t.Errorf("%v, %s: %v, resid %d, in context %v, after %d turns; want %v, %d, and %d turns",
							op, end, b.Error, b.Resid, b.InContext, turns, want, resid, least)
					}
					if end == "closed" {
						if err := table.BdevClose(dev, rw, devsw.IFBLK); err != nil {
							t.Fatal(err)
						}
						if err := table.BdevOpen(dev, rw, devsw.IFBLK); err != nil {
							t.Fatal(err)
						}
					}
					if end != "well" {
						continue
					}
					if op == devsw.BWrite {
						got := make([]byte, size)
						(&disktest.Disk{Table: table, Dev: dev}).Transfer(devsw.BRead, 0, 0, got)
						if !bytes.Equal(got, mem) {
							t.Error("it has written other data")
						}
					} else if c.name == "null" && !bytes.Equal(mem, make([]byte, size)) {
						t.Error("it has not read zeroes")
					}
				}
			}
		})
	}
}

func makeMD(t *testing.T, table *devsw.Table) devsw.Dev {
	return must(attach(t, table, md.New).Create(0, md.Config{Size: 8 << 20}))(t)
}

func attach[D interface{ Detach() error }](t *testing.T, table *devsw.Table, make func(*devsw.Table) (D, error)) D {
	t.Helper()
	d := must(make(table))(t)
	t.Cleanup(func() {
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
