package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vdev/guest-tests/internal/pattern"
)

// A load writes and reads a disk until it is told to finish, and holds the disk to what it has
// answered.
//
// Each of its workers has one request under way, and a part of the disk of its own: a journal
// sector, and slots of bs bytes. What is in a slot is the pattern (see internal/pattern) whose seed
// is the slot's version. A worker writes a slot's next version, and then, in its journal, which
// versions are acknowledged by now. So two things can be told: while a load runs, it reads its
// slots and knows exactly what must be there; and after a crash of whatever kind the next load
// reads the journals and finds in each slot the version that was acknowledged last or the one that
// was being written, else a write was lost or an old one has landed late. It goes on with versions
// of a new epoch, above all those, so that what lands later yet is seen as well.
//
// With "flush" the disk may forget what it has acknowledged until it was flushed: versions count as
// acknowledged after a flush only, and a slot may go back to any version from that one on. The
// cache may also be lost while the flush is under way, and the next back-end, which knows of no
// cache that was lost, then answers that flush. So what was flushed is read back, and written again
// if it is not there: a flush that does nothing does not profit from that.
const (
	journalMagic = 0x6c616e72756f6a76
	journalHead  = 32 // magic, epoch, number of slots, checksum
	slotsMax     = (pattern.BlockSize - journalHead) / 8
	// epochShift is where the epoch stands in a version: each load on a disk has its own, from 1
	// on.
	epochShift = 24
)

type load struct {
	file     *os.File
	off      int64 // of worker 0's part, in bytes
	bs       int64
	slots    int
	workers  int
	volatile bool // "flush"
	errors   bool // the disk may go away
	look     bool // only
	quit     <-chan struct{}

	failed  atomic.Bool
	writes  atomic.Int64
	reads   atomic.Int64
	flushes atomic.Int64
	resumed atomic.Int64
	longest atomic.Int64 // ns
}

const loadKeys = "off bs slots workers flush errors"

func init() {
	commands["load"] = command{
		usage: "DISK [off=B] [bs=B] [slots=N] [workers=N] [flush] [errors]: writes and verifies until finish",
		words: 1, keys: loadKeys, run: func(p params) (string, error) { return runLoad(p, false) },
	}
	commands["check-load"] = command{
		usage: "DISK [off=B] [bs=B] [slots=N] [workers=N] [flush]: verifies what such a load has left",
		words: 1, keys: loadKeys, run: func(p params) (string, error) { return runLoad(p, true) },
	}
}

func runLoad(p params, look bool) (string, error) {
	if p.quit == nil && !look {
		return "", errors.New("a load has no end but finish: use start NAME load")
	}
	l := &load{quit: p.quit, look: look, volatile: p.flag("flush"), errors: p.flag("errors")}
	numbers := map[string]int64{"off": 0, "bs": 4096, "slots": 8, "workers": 32}
	for key, value := range numbers {
		n, err := p.number(key, value)
		if err != nil {
			return "", err
		}
		numbers[key] = n
	}
	l.off, l.bs, l.slots, l.workers = numbers["off"], numbers["bs"], int(numbers["slots"]), int(numbers["workers"])
	if l.bs < pattern.BlockSize || l.bs%pattern.BlockSize != 0 || l.slots < 1 || l.slots > slotsMax || l.workers < 1 {
		return "", fmt.Errorf("cannot do %d slots of %d bytes with %d workers", l.slots, l.bs, l.workers)
	}
	flags := os.O_RDWR
	if !strings.Contains(p.words[0], "/") {
		flags |= openDirect // a disk, not a file
	}
	f, err := os.OpenFile(device(p.words[0]), flags, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	l.file = f
	errs := make([]error, l.workers)
	var wg sync.WaitGroup
	for i := range l.workers {
		wg.Go(func() {
			runtime.LockOSThread() // never unlocked: the pinned thread ends with its worker
			pin(i)
			errs[i] = l.work(i)
			if errs[i] != nil {
				l.failed.Store(true)
			}
		})
	}
	wg.Wait()
	text := fmt.Sprintf("%d writes, %d reads, %d flushes, %d slots found, longest %.3f s", l.writes.Load(), l.reads.Load(), l.flushes.Load(),
		l.resumed.Load(), time.Duration(l.longest.Load()).Seconds())
	var wrong []error
	for _, err := range errs {
		var went syscall.Errno
		// Linux gives a disk that goes away no length.
		if l.errors && (errors.As(err, &went) || errors.Is(err, io.EOF)) {
			if !strings.Contains(text, "ended by") {
				text += ", ended by " + explain(err)
			}
			continue
		}
		wrong = append(wrong, err)
	}
	if err := errors.Join(wrong...); err != nil {
		return text + ": ", err
	}
	return text, nil
}

// loader is one worker.
type loader struct {
	*load
	at      int64  // of its journal
	epoch   uint64 // of the versions that it writes
	buf     []byte
	rng     *rand.Rand
	acked   []uint64 // by slot; 0: never written. With a volatile cache: what was flushed
	written []uint64 // the newest version that may be on the disk
}

func (l *load) work(number int) error {
	buf, free, err := alignedBuffer(int(l.bs))
	if err != nil {
		return err
	}
	defer free()
	w := &loader{
		load: l, at: l.off + int64(number)*(pattern.BlockSize+l.bs*int64(l.slots)), buf: buf,
		rng:   rand.New(rand.NewPCG(uint64(number), uint64(time.Now().UnixNano()))),
		acked: make([]uint64, l.slots), written: make([]uint64, l.slots),
	}
	if err := w.serve(); err != nil {
		return fmt.Errorf("worker %d: %w", number, err)
	}
	return nil
}

func (w *loader) serve() error {
	if err := w.resume(); err != nil || w.look {
		return err
	}
	for n := 0; !w.failed.Load(); n++ {
		select {
		case <-w.quit:
			return w.finish()
		default:
		}
		slot := w.rng.IntN(w.slots)
		step := w.write
		if n%3 == 2 {
			step = w.read
		}
		if err := step(slot); err != nil {
			return err
		}
	}
	return nil
}

// resume reads what an earlier load has left, and verifies it.
func (w *loader) resume() error {
	p := w.buf[:pattern.BlockSize]
	if err := w.transfer(p, w.at, false); err != nil {
		return err
	}
	fresh := true
	for _, c := range p {
		fresh = fresh && c == 0
	}
	if !fresh {
		sum := binary.LittleEndian.Uint32(p[24:])
		binary.LittleEndian.PutUint32(p[24:], 0)
		if binary.LittleEndian.Uint64(p) != journalMagic || int(binary.LittleEndian.Uint64(p[16:])) != w.slots || crc32.ChecksumIEEE(p) != sum {
			return fmt.Errorf("the journal at %d is torn, or not of such a load: % x", w.at, p[:journalHead])
		}
		w.epoch = binary.LittleEndian.Uint64(p[8:])
		for i := range w.acked {
			if w.acked[i] = binary.LittleEndian.Uint64(p[journalHead+8*i:]); w.acked[i] != 0 {
				w.resumed.Add(1)
			}
		}
	}
	for slot, version := range w.acked {
		// One more write may have been under way: of this epoch's first version of that slot, or of
		// the one after what the journal has. Of what a volatile cache held anything may be there
		// as well.
		w.written[slot] = max(version+1, w.epoch<<epochShift)
		if w.volatile {
			w.written[slot] = (w.epoch+1)<<epochShift - 1
		}
		if err := w.read(slot); err != nil {
			return err
		}
	}
	if w.look {
		return nil
	}
	w.epoch++
	if err := w.writeJournal(); err != nil || !w.volatile {
		return err
	}
	return w.flush()
}

// finish reads everything once more.
func (w *loader) finish() error {
	for slot := range w.acked {
		if err := w.read(slot); err != nil {
			return fmt.Errorf("at the end: %w", err)
		}
	}
	return nil
}

// write writes a slot's next version and then the journal.
func (w *loader) write(slot int) error {
	off := w.place(slot)
	next := max(w.written[slot]+1, w.epoch<<epochShift)
	for there := false; !there; {
		pattern.Fill(w.buf, next, off)
		w.written[slot] = next
		if err := w.transfer(w.buf, off, true); err != nil {
			return err
		}
		w.writes.Add(1)
		if !w.volatile {
			break
		}
		if err := w.flush(); err != nil {
			return err
		}
		if err := w.read(slot); err != nil {
			return err
		}
		there = pattern.Verify(w.buf, next, off) == nil
	}
	w.acked[slot] = next
	return w.writeJournal()
}

func (w *loader) writeJournal() error {
	p := w.buf[:pattern.BlockSize]
	clear(p)
	binary.LittleEndian.PutUint64(p, journalMagic)
	binary.LittleEndian.PutUint64(p[8:], w.epoch)
	binary.LittleEndian.PutUint64(p[16:], uint64(w.slots))
	for i, v := range w.acked {
		binary.LittleEndian.PutUint64(p[journalHead+8*i:], v)
	}
	binary.LittleEndian.PutUint32(p[24:], crc32.ChecksumIEEE(p))
	return w.transfer(p, w.at, true)
}

func (w *loader) flush() error {
	begin := time.Now()
	err := w.file.Sync()
	w.took(begin)
	w.flushes.Add(1)
	if err != nil {
		return fmt.Errorf("flush: %w", bare(err))
	}
	return nil
}

func (w *loader) place(slot int) int64 { return w.at + pattern.BlockSize + int64(slot)*w.bs }

// read verifies a slot. Each of its blocks is of a version from the acknowledged one to the newest
// that was written.
func (w *loader) read(slot int) error {
	off := w.place(slot)
	for i := range w.buf {
		w.buf[i] = 0xee // so that a read which transfers nothing is seen
	}
	if err := w.transfer(w.buf, off, false); err != nil {
		return err
	}
	w.reads.Add(1)
	for i := int64(0); i < w.bs; i += pattern.BlockSize {
		block := w.buf[i : i+pattern.BlockSize]
		version := binary.LittleEndian.Uint64(block[8:])
		if version == 0 && w.acked[slot] == 0 {
			for _, c := range block {
				if c != 0 {
					return fmt.Errorf("at %d something was read that nobody wrote: % x", off+i, block[:16])
				}
			}
			continue
		}
		if version < w.acked[slot] || version > w.written[slot] {
			return fmt.Errorf("the block at %d is of version %#x; %#x was acknowledged, %#x the last written", off+i, version, w.acked[slot], w.written[slot])
		}
		if err := pattern.Verify(block, version, off+i); err != nil {
			return err
		}
	}
	return nil
}

// transfer reads or writes p, and notes how long that took.
func (w *loader) transfer(p []byte, off int64, write bool) error {
	begin := time.Now()
	var err error
	what := "read"
	if write {
		what = "write"
		_, err = w.file.WriteAt(p, off)
	} else {
		_, err = w.file.ReadAt(p, off)
	}
	w.took(begin)
	if err != nil {
		return fmt.Errorf("%s %d bytes at %d: %w", what, len(p), off, bare(err))
	}
	return nil
}

func (w *loader) took(begin time.Time) {
	d := int64(time.Since(begin))
	for {
		now := w.longest.Load()
		if d <= now || w.longest.CompareAndSwap(now, d) {
			return
		}
	}
}
