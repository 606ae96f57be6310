package vnd

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"pgregory.net/rapid"

	"vdev/devsw"
	"vdev/internal/reactor"
	"vdev/internal/test/disktest"
	"vdev/internal/test/loopfs"
)

// places are where images are put: the default folder, whose file system is the machine's, and
// memory.
func places(t *testing.T) map[string]func(*testing.T) string {
	p := map[string]func(*testing.T) string{"tempdir": func(t *testing.T) string { return t.TempDir() }}
	if _, err := os.Stat("/dev/shm"); err == nil {
		p["tmpfs"] = func(t *testing.T) string {
			dir, err := os.MkdirTemp("/dev/shm", "vdev-test")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			return dir
		}
	} else {
		t.Logf("no tmpfs to test on: %v", err)
	}
	return p
}

// ways are the ways a transfer can go.
var ways = map[string]struct {
	conf    Config
	aio     bool         // one of the test's
	reactor reactor.Mode // a real one
	// what O_DIRECT is made to want, where the host wants less; 0: what the host wants
	block int64
}{
	"threads":                {},
	"aio":                    {aio: true},
	"4096":                   {conf: Config{SectorSize: 4096}, aio: true},
	"no-discard":             {conf: Config{SectorSize: 512}},
	"direct,threads":         {conf: Config{Direct: true}},
	"direct,aio":             {conf: Config{Direct: true}, aio: true},
	"direct,4096":            {conf: Config{Direct: true, SectorSize: 4096}, aio: true},
	"direct,blocks,threads":  {conf: Config{Direct: true}, block: 4096},
	"direct,blocks,aio":      {conf: Config{Direct: true}, aio: true, block: 4096},
	"direct,huge-blocks,aio": {conf: Config{Direct: true}, aio: true, block: 16384},
	"direct,blocks,4096":     {conf: Config{Direct: true, SectorSize: 4096}, aio: true, block: 4096},
	"bounce,threads":         {conf: Config{Bounce: true}},
	"bounce,aio":             {conf: Config{Bounce: true}, aio: true},
	"direct,bounce,blocks":   {conf: Config{Direct: true, Bounce: true}, aio: true, block: 4096},
	"io_uring":               {reactor: reactor.ModeURing},
	"io_uring,direct":        {conf: Config{Direct: true}, reactor: reactor.ModeURing},
	"io_uring,direct,blocks": {conf: Config{Direct: true}, reactor: reactor.ModeURing, block: 4096},
	"reactor":                {reactor: reactor.ModeThreads},
	"reactor,direct":         {conf: Config{Direct: true}, reactor: reactor.ModeThreads},
	"reactor,direct,blocks":  {conf: Config{Direct: true}, reactor: reactor.ModeThreads, block: 4096},
}

// newReactor makes a reactor for the length of the test.
func newReactor(t *testing.T, mode reactor.Mode) *reactor.Reactor {
	t.Helper()
	pool, err := reactor.NewPool(reactor.Config{Mode: mode})
	if err != nil && mode == reactor.ModeURing {
		t.Skipf("this host has no io_uring: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool.Pick()
}

// impose makes the image want O_DIRECT transfers in blocks of this size.
func (im *image) impose(block int64) {
	if block > im.geo.offAlign {
		im.geo.offAlign = block
		im.geo.memAlign = max(im.geo.memAlign, 512)
		im.geo.zeroAlign = max(im.geo.zeroAlign, block)
		if im.sector < block {
			im.ranges = new(ranges)
		}
	}
}

func TestADiskBehavesAsItsModel(t *testing.T) {
	for place, dir := range places(t) {
		for way, w := range ways {
			t.Run(place+"/"+way, func(t *testing.T) {
				r := newRig(t)
				conf := w.conf
				conf.Discard = way != "no-discard"
				sector := max(int64(conf.SectorSize), 512)
				unit := max(sector, w.block)
				if conf.Direct {
					unit = max(unit, 4096)
				}
				path := fileIn(t, dir(t), nil)
				var re *reactor.Reactor
				if w.reactor != "" {
					re = newReactor(t, w.reactor)
				}
				rapid.Check(t, func(rt *rapid.T) {
					want := bytes.Repeat([]byte("what was there before; "), 40000)
					want = want[:unit*rapid.Int64Range(1, 40).Draw(rt, "blocks")]
					if err := os.WriteFile(path, want, 0o600); err != nil {
						rt.Fatal(err)
					}
					conf.Path = path
					dev, err := r.d.Create(0, conf)
					if err != nil {
						rt.Fatal(err)
					}
					if err := r.tryOpen(dev); err != nil {
						rt.Fatal(err)
					}
					closed := false
					done := func() {
						if !closed {
							closed = true
							r.close(dev)
							if err := r.d.Destroy(0); err != nil {
								rt.Error(err)
							}
						}
					}
					defer done()
					if w.block != 0 {
						r.image(dev).impose(w.block)
					}
					m := r.disk(dev)
					// A range that is not made of the host's blocks is not discarded whole.
					m.Want, m.NoDiscard, m.Undefined = want, !conf.Discard, w.block > 0 || conf.Direct
					if w.aio {
						m.AIO = new(disktest.AIO)
					}
					if re != nil {
						m.AIO, m.Run = re, re.Do
					}
					m.Check(rt)
					done()
					got, err := os.ReadFile(path)
					if err != nil || !bytes.Equal(got, want) {
						rt.Fatalf("the file has %d bytes, and not those that were written (%v)", len(got), err)
					}
				})
			})
		}
	}
}

func TestABlockDeviceBehavesAsItsModel(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		for name, conf := range map[string]Config{
			"buffered":           {Discard: true},
			"direct":             {Discard: true, Direct: true},
			"direct,4096":        {Discard: true, Direct: true, SectorSize: 4096},
			"direct, no discard": {Direct: true},
		} {
			t.Run(fmt.Sprintf("sectors of %d/%s", sector, name), func(t *testing.T) {
				const size = 256 << 10
				conf.Path = loopfs.Loop(t, newFile(t, make([]byte, size)), sector)
				r := newRig(t)
				m := r.open(r.create(conf))
				info, err := r.d.Info(0)
				if err != nil || info.Size != size || info.Discard != conf.Discard || info.DiscardAlign == 0 {
					t.Fatalf("%+v, %v", info, err)
				}
				m.NoDiscard, m.Undefined = !conf.Discard, true
				rapid.Check(t, func(rt *rapid.T) {
					m.Want = make([]byte, size)
					if b := m.Transfer(devsw.BWrite, 0, 0, m.Want); b.Error != 0 {
						rt.Fatal(b.Error)
					}
					m.AIO = nil
					if rapid.Bool().Draw(rt, "aio") {
						m.AIO = new(disktest.AIO)
					}
					m.Check(rt)
				})
			})
		}
	}
}
