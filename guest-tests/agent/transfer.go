package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"vdev/guest-tests/internal/pattern"
)

type transferKind int

const (
	doWrite transferKind = iota
	doVerify
	doRead
	doZeros
)

// extent is one read or write.
type extent struct {
	off int64
	len int
}

// job is what all workers of a transfer share, and only read.
type job struct {
	kind  transferKind
	seed  uint64
	check bool // read back after each write
	f     *os.File
	stop  *atomic.Bool // a worker has failed
	max   int          // the longest extent
}

// transfer reads or writes a range of a file or disk in pieces, by several workers, each on a CPU
// of its own. Every byte of the range is transferred exactly once.
func transfer(p params, kind transferKind) (string, error) {
	name := device(p.words[0])
	size, err := sizeOf(name)
	if err != nil && !(kind == doWrite && errors.Is(err, os.ErrNotExist)) {
		return "", err
	}
	off, err := p.number("off", 0)
	if err != nil {
		return "", err
	}
	n, err := p.number("size", size-off)
	if err != nil {
		return "", err
	}
	workers, err := p.number("workers", 1)
	if err != nil {
		return "", err
	}
	seed, err := p.number("seed", 1)
	if err != nil {
		return "", err
	}
	if n <= 0 || n%pattern.BlockSize != 0 || off%pattern.BlockSize != 0 || workers < 1 {
		return "", fmt.Errorf("cannot transfer %d bytes at %d by %d workers", n, off, workers)
	}
	bs := p.opts["bs"]
	if bs == "" {
		bs = "64k"
	}
	extents, err := cut(off, n, bs, uint64(seed))
	if err != nil {
		return "", err
	}

	flags := os.O_RDONLY
	if kind == doWrite {
		flags = os.O_RDWR
		if strings.Contains(p.words[0], "/") && !strings.HasPrefix(name, "/dev/") {
			flags |= os.O_CREATE
		}
	}
	if p.flag("sync") {
		flags |= os.O_SYNC
	}
	if p.flag("direct") {
		flags |= openDirect
	}
	f, err := os.OpenFile(name, flags, 0o644)
	if err != nil {
		return "", err
	}
	j := &job{kind: kind, seed: uint64(seed), check: p.flag("check"), f: f, stop: new(atomic.Bool)}
	for _, e := range extents {
		j.max = max(j.max, e.len)
	}
	err = j.run(share(extents, int(workers), p.flag("rand"), uint64(seed)))
	if err == nil && p.flag("flush") {
		err = flushFile(f)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes in %d pieces", n, len(extents)), nil
}

// cut divides a range into pieces of bs bytes, or, where bs is a range itself, of lengths between
// its bounds.
func cut(off, size int64, bs string, seed uint64) ([]extent, error) {
	low, high, ranged := strings.Cut(bs, "-")
	lo, err := number(low)
	if err != nil {
		return nil, err
	}
	hi := lo
	if ranged {
		if hi, err = number(high); err != nil {
			return nil, err
		}
	}
	if lo < pattern.BlockSize || lo%pattern.BlockSize != 0 || hi < lo || hi > 64<<20 {
		return nil, fmt.Errorf("block size %s", bs)
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	var list []extent
	for n := int64(0); n < size; {
		// Lengths spread evenly over the orders of magnitude, in multiples of the shortest.
		l := lo
		for l*2 <= hi && rng.IntN(2) == 0 {
			l *= 2
		}
		if l < hi {
			l += rng.Int64N(min(l, hi-l)/lo+1) * lo
		}
		l = min(l, size-n)
		list = append(list, extent{off + n, int(l)})
		n += l
	}
	return list, nil
}

// share deals the pieces out to workers: each has a part of its own, in a row, or each its share of
// all of them in disorder.
func share(list []extent, workers int, random bool, seed uint64) [][]extent {
	if random {
		rand.New(rand.NewPCG(seed, 2)).Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	parts := make([][]extent, workers)
	for i := range parts {
		parts[i] = list[len(list)*i/workers : len(list)*(i+1)/workers]
	}
	return parts
}

func (j *job) run(parts [][]extent) error {
	errs := make([]error, len(parts))
	var wg sync.WaitGroup
	for i, part := range parts {
		wg.Go(func() {
			runtime.LockOSThread() // never unlocked: the pinned thread ends with its worker
			pin(i)
			errs[i] = j.work(part)
			if errs[i] != nil {
				j.stop.Store(true)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (j *job) work(part []extent) error {
	buf, free, err := alignedBuffer(j.max)
	if err != nil {
		return err
	}
	defer free()
	for _, e := range part {
		if j.stop.Load() {
			return nil
		}
		p := buf[:e.len]
		if j.kind == doWrite {
			pattern.Fill(p, j.seed, e.off)
			if _, err := j.f.WriteAt(p, e.off); err != nil {
				return fmt.Errorf("write %d bytes at %d: %w", e.len, e.off, bare(err))
			}
			if !j.check {
				continue
			}
			clear(p)
		}
		if n, err := j.f.ReadAt(p, e.off); err != nil {
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("read %d bytes at %d: end of file after %d", e.len, e.off, n)
			}
			return fmt.Errorf("read %d bytes at %d: %w", e.len, e.off, bare(err))
		}
		switch j.kind {
		case doWrite, doVerify:
			if err := pattern.Verify(p, j.seed, e.off); err != nil {
				return fmt.Errorf("in the %d bytes at %d: %w", e.len, e.off, err)
			}
		case doZeros:
			for i, c := range p {
				if c != 0 {
					return fmt.Errorf("byte %d is %#x, not zero", e.off+int64(i), c)
				}
			}
		}
	}
	return nil
}

// bare takes the file's name off an error; the command named the file.
func bare(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// sizeOf returns the size of a file or disk in bytes.
func sizeOf(name string) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return fileSize(f)
}
