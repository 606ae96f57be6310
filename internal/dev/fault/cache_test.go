package fault

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/dev/vnd"
	"vdev/internal/test/disktest"
)

// medium reads the lower device past the cache. The disk is open.
func (r *rig) medium() []byte {
	r.t.Helper()
	p := make([]byte, size)
	done := make(chan struct{})
	b := &devsw.Buf{Op: devsw.BRead, Dev: r.softc(0).conf.Lower, Data: [][]byte{p}, Bcount: size, Iodone: func(*devsw.Buf) { close(done) }}
	r.table.BdevStrategy(b)
	if <-done; b.Error != 0 {
		r.t.Fatal(b.Error)
	}
	return p
}

func TestACachedWriteReachesTheMediumWithTheFlush(t *testing.T) {
	for _, lower := range lowers {
		t.Run(lower, func(t *testing.T) {
			r := newRig(t, lower, Config{Cache: 1 << 20}, New)
			r.open()
			one := bytes.Repeat([]byte{1}, 4096)
			r.write(8, one)
			if !bytes.Equal(r.read(8, 4096), one) || !bytes.Equal(r.read(9, 512), one[:512]) {
				t.Error("a read does not see the cache")
			}
			if !bytes.Equal(r.medium(), make([]byte, size)) || r.state().Cached != 8 {
				t.Error("the write has not stayed in the cache")
			}
			r.close()
			r.open() // the cache is still there
			if !bytes.Equal(r.read(8, 4096), one) {
				t.Error("the cache is lost")
			}
			must(t, r.flush())
			if !bytes.Equal(r.medium()[4096:8192], one) || r.state().Cached != 0 {
				t.Error("the flush has not written it")
			}
			// Write-through takes only its own sectors along.
			r.write(0, one[:1024])
			if b := r.transfer(devsw.BWrite, devsw.BMediaFUA, 1, bytes.Repeat([]byte{2}, 512)); b.Error != 0 || b.Resid != 0 || b.InContext {
				t.Errorf("error %v, resid %d, in context %v", b.Error, b.Resid, b.InContext)
			}
			if m := r.medium(); m[0] != 0 || m[512] != 2 || r.state().Cached != 1 {
				t.Errorf("the medium has %d, %d; %d are cached", m[0], m[512], r.state().Cached)
			}
			// What is discarded does not come back.
			r.write(16, one)
			must(t, r.node.Discard(8192, 4096))
			must(t, r.zero(0, 512))
			if !bytes.Equal(r.read(16, 4096), make([]byte, 4096)) || r.read(0, 512)[0] != 0 || r.state().Cached != 0 {
				t.Error("what was discarded is still there")
			}
			is(t, "a write beyond the end", asError(r.transfer(devsw.BWrite, 0, size/512+1, one)), devsw.EINVAL)
			if b := r.transfer(devsw.BWrite, 0, size/512-1, one); b.Error != 0 || b.Resid != 4096-512 || r.state().Cached != 1 {
				t.Errorf("a write across the end: error %v, resid %d", b.Error, b.Resid)
			}
			r.close()
		})
	}
}

func TestAFullCacheIsWrittenOut(t *testing.T) {
	r := newRig(t, mdName, Config{Cache: 2048}, New)
	r.open()
	defer r.close()
	p := bytes.Repeat([]byte{3}, 512)
	for i := range int64(4) {
		r.write(2*i, p)
	}
	if n := r.state().Cached; n != 4 {
		t.Errorf("%d sectors are cached", n)
	}
	r.write(8, p)
	if n := r.state().Cached; n != 0 || r.medium()[0] != 3 {
		t.Errorf("%d sectors are cached", n)
	}
}

func TestAWriteThatFailsStaysInTheCache(t *testing.T) {
	for _, sync := range []func(r *rig) error{
		(*rig).flush,
		func(r *rig) error { return asError(r.transfer(devsw.BWrite, devsw.BMediaFUA, 0, make([]byte, 512))) },
	} {
		synctest.Test(t, func(t *testing.T) {
			p := &probe{}
			r := on(t, p, New)
			sc := r.softc(0)
			sc.cache = newCache(512, 1<<20)
			r.open()
			defer r.close()
			r.write(0, make([]byte, 512))
			p.held = true
			answer := make(chan error, 1)
			go func() { answer <- sync(r) }()
			synctest.Wait()
			p.held = false
			p.end(devsw.ENOSPC)
			is(t, "the flush", <-answer, devsw.ENOSPC)
			if r.state().Cached != 1 {
				t.Error("the sector that could not be written is lost")
			}
		})
	}
}

// TestAFlushInProgressHidesAndForgetsNothing has a read and newer writes come while the lower
// device writes the cache out.
func TestAFlushInProgressHidesAndForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &probe{}
		r := on(t, p, New)
		r.softc(0).cache = newCache(512, 1<<20)
		r.open()
		defer r.close()
		r.write(0, bytes.Repeat([]byte{1}, 1024))
		p.held = true
		got := make([]byte, 1024)
		_, read := r.start(devsw.BRead, 0, 0, got) // the probe reads nothing
		flushed := make(chan error, 1)
		go func() { flushed <- r.flush() }()
		synctest.Wait()
		r.write(1, bytes.Repeat([]byte{2}, 512))
		p.endThose(0, func(b *devsw.Buf) bool { return b.Op == devsw.BWrite })
		is(t, "flush", <-flushed, devsw.ENODEV) // the probe has no d_ioctl
		if n := r.state().Cached; n != 1 {
			t.Errorf("%d sectors are cached, want the one that is newer than the flush", n)
		}
		p.end(0)
		if <-read; got[0] != 1 || got[512] != 1 {
			t.Errorf("the read gave %d, %d", got[0], got[512])
		}
		p.held = false
		if got := r.read(0, 1024); got[512] != 2 {
			t.Errorf("the newer write is lost: %d", got[512])
		}
	})
}

func TestCancelEndsAWriteThroughThatTheLowerDeviceHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &probe{}
		r := on(t, p, New)
		r.softc(0).cache = newCache(512, 1<<20)
		r.open()
		p.held = true
		b, done := r.start(devsw.BWrite, devsw.BMediaFUA, 0, make([]byte, 512))
		synctest.Wait()
		r.close()
		if <-done; b.Error != devsw.ECANCELED || b.Resid != 512 {
			t.Errorf("error %v, resid %d", b.Error, b.Resid)
		}
	})
}

func TestACrashByRuleLosesTheWriteAndTurnsThePowerOff(t *testing.T) {
	for _, op := range []Ops{Write, Flush} {
		t.Run(op.String(), func(t *testing.T) {
			rules := parse(t, fmt.Sprintf("crash:%v:skip=1:count=1:keep=0:off", op))
			r := newRig(t, mdName, Config{Rules: rules, Cache: 1 << 20}, New)
			r.open()
			r.write(0, bytes.Repeat([]byte{1}, 512))
			must(t, r.flush())
			for i := range operations {
				if o := operations[i]; o.op == op {
					is(t, "the operation that crashes", o.do(r), devsw.EIO)
				}
			}
			for _, o := range operations {
				is(t, o.op.String()+" without power", o.do(r), devsw.EIO)
			}
			if s := r.state(); !s.Off || s.Cached != 0 || s.Injected[Crash] != 1 {
				t.Errorf("%+v", s)
			}
			r.close()
			r.open() // the power is back
			defer r.close()
			if p := r.read(0, 1024); p[0] != 1 || p[512] != 0 {
				t.Errorf("the disk has %d, %d", p[0], p[512])
			}
			is(t, "a crash with a bad chance", r.node.Ioctl(FAULTCRASH, &Outage{Keep: 2}, rw), devsw.EINVAL)
		})
	}
}

// TestACrashTearsExactlyWhatWasNotFlushed compares the disk with a model that knows, for each
// sector, what is on stable storage and what was written since: a crash leaves one of the two, and
// the medium has no more than that.
func TestACrashTearsExactlyWhatWasNotFlushed(t *testing.T) {
	const sectors = 32
	for _, lower := range lowers {
		t.Run(lower, func(t *testing.T) {
			r := newRig(t, lower, Config{Cache: 8 << 10}, New)
			torn := 0
			rapid.Check(t, func(rt *rapid.T) {
				r.open()
				defer r.close()
				r.write(0, make([]byte, sectors*512))
				must(t, r.flush())
				var stable, now [sectors]byte
				next := byte(0)
				draw := func() (first, n int) {
					first = rapid.IntRange(0, sectors-1).Draw(rt, "first")
					return first, rapid.IntRange(1, min(8, sectors-first)).Draw(rt, "n")
				}
				write := func(flags devsw.BufFlag) (first, n int) {
					first, n = draw()
					next++
					if b := r.transfer(devsw.BWrite, flags, int64(first), bytes.Repeat([]byte{next}, n*512)); b.Error != 0 || b.Resid != 0 {
						rt.Fatalf("write: %v, %d", b.Error, b.Resid)
					}
					for i := first; i < first+n; i++ {
						now[i] = next
					}
					return first, n
				}
				look := func() (got [sectors]byte) {
					p := r.read(0, sectors*512)
					for i := range got {
						got[i] = p[i*512]
						if !bytes.Equal(p[i*512:][:512], bytes.Repeat(got[i:i+1], 512)) {
							rt.Fatalf("sector %d is torn within itself", i)
						}
					}
					return got
				}
				rt.Repeat(map[string]func(*rapid.T){
					"write": func(*rapid.T) {
						write(0)
						if r.state().Cached == 0 {
							stable = now // it was too much for the cache
						}
					},
					"fua": func(*rapid.T) {
						first, n := write(devsw.BMediaFUA)
						copy(stable[first:first+n], now[first:first+n])
						if r.state().Cached == 0 {
							stable = now
						}
					},
					"flush": func(*rapid.T) {
						if err := r.flush(); err != nil {
							rt.Fatal(err)
						}
						stable = now
					},
					"discard": func(*rapid.T) {
						first, n := draw()
						if err := r.node.Discard(int64(first*512), int64(n*512)); err != nil {
							rt.Fatal(err)
						}
						clear(stable[first : first+n])
						clear(now[first : first+n])
					},
					"crash": func(*rapid.T) {
						o := Outage{Seed: rapid.Uint64().Draw(rt, "seed"), Keep: 0.5}
						if err := r.node.Ioctl(FAULTCRASH, &o, rw); err != nil {
							rt.Fatal(err)
						}
						got := look()
						kept := 0
						for i := range got {
							if got[i] != stable[i] && got[i] != now[i] {
								rt.Fatalf("sector %d has %d, neither %d nor %d", i, got[i], stable[i], now[i])
							}
							if now[i] != stable[i] && got[i] == now[i] {
								kept++
							}
						}
						if o.Kept < kept {
							rt.Fatalf("%d sectors were kept, and %d are there", o.Kept, kept)
						}
						if o.Kept > 0 && o.Dropped > 0 {
							torn++
						}
						stable, now = got, got
					},
					"": func(*rapid.T) {
						if got := look(); got != now {
							rt.Fatalf("the disk has %v, want %v", got, now)
						}
					},
				})
			})
			if torn == 0 {
				t.Error("no crash has torn anything")
			}
		})
	}
}

func TestTheSameSeedTearsTheSameSectors(t *testing.T) {
	var after [2][]byte
	for i := range after {
		r := newRig(t, mdName, Config{Cache: 1 << 20}, New)
		r.open()
		r.write(0, bytes.Repeat([]byte{1}, size))
		o := Outage{Seed: 11, Keep: 0.3}
		must(t, r.node.Ioctl(FAULTCRASH, &o, rw))
		after[i] = r.read(0, size)
		if o.Kept == 0 || o.Dropped == 0 || o.Kept+o.Dropped != size/512 {
			t.Errorf("%+v", o)
		}
		r.close()
	}
	if !bytes.Equal(after[0], after[1]) {
		t.Error("two crashes with the same seed differ")
	}
}

// TestADiskBehavesAsItsModel has all the ways through the driver compared with an array of bytes.
func TestADiskBehavesAsItsModel(t *testing.T) {
	for name, conf := range map[string]Config{
		"plain":       {},
		"cache":       {Cache: 1 << 20},
		"small cache": {Cache: 4096},
		"delays":      {Rules: parse(t, "delay:read:prob=0.5:time=1ns-10us:seed=1", "delay:write:prob=0.5:time=1ns-10us:seed=2")},
	} {
		t.Run(name, func(t *testing.T) {
			for _, lower := range lowers {
				t.Run(lower, func(t *testing.T) {
					r := newRig(t, lower, conf, New)
					rapid.Check(t, func(rt *rapid.T) {
						r.open()
						defer r.close()
						m := &disktest.Disk{Table: r.table, Dev: r.dev, Sector: 512, Want: r.read(0, size)}
						m.Check(rt)
					})
				})
			}
		})
	}
}

func TestSectorsOf4096BytesAreCachedWhole(t *testing.T) {
	r := &rig{t: t, table: devsw.NewTable()}
	d, err := md.New(r.table)
	must(t, err)
	dev, err := d.Create(0, md.Config{Size: size, SectorSize: 4096})
	must(t, err)
	r.stack(Config{Lower: dev, Info: func() (devsw.DiskInfo, error) { return d.Info(0) }, Cache: 1 << 20,
		Rules: parse(t, "short:read:bytes=6144:count=1")}, New)
	r.open()
	defer r.close()
	is(t, "a write of a part", asError(r.transfer(devsw.BWrite, 0, 0, make([]byte, 512))), devsw.EINVAL)
	r.write(8, bytes.Repeat([]byte{1}, 8192))
	if n := r.state().Cached; n != 2 {
		t.Errorf("%d sectors are cached", n)
	}
	if b := r.transfer(devsw.BRead, 0, 8, make([]byte, 8192)); b.Resid != 4096 {
		t.Errorf("a short read leaves %d", b.Resid)
	}
	must(t, r.flush())
	if m := r.medium(); m[4095] != 0 || m[4096] != 1 || m[12287] != 1 || m[12288] != 0 {
		t.Error("the medium has something else")
	}
}

func TestAReadOnlyDiskStaysSo(t *testing.T) {
	r := &rig{t: t, table: devsw.NewTable()}
	path := t.TempDir() + "/disk"
	must(t, os.WriteFile(path, make([]byte, size), 0o600))
	d, err := vnd.New(r.table)
	must(t, err)
	dev, err := d.Create(0, vnd.Config{Path: path, ReadOnly: true})
	must(t, err)
	r.stack(Config{Lower: dev, Info: func() (devsw.DiskInfo, error) { return d.Info(0) }, Cache: 1 << 20}, New)
	is(t, "an open for writing", r.node.Open(t.Context(), rw), devsw.EROFS)
	must(t, r.node.Open(t.Context(), devsw.FREAD))
	is(t, "a write", asError(r.transfer(devsw.BWrite, 0, 0, make([]byte, 512))), devsw.EROFS)
	must(t, r.node.Close(devsw.FREAD))
}
