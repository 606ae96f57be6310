package vnd

import (
	"slices"
	"sync"
	"sync/atomic"

	"vdev/devsw"
	"vdev/devsw/disk"
	"vdev/internal/dev/imagefile"
	"vdev/internal/sys"
)

// image is an image from d_open to d_close. It is the AIODone of all its transfers, and of no
// others': a CancelAll that comes late must not hit what a later open has begun.
type image struct {
	*disk.Base
	file     *imagefile.File
	identity string // of the file
	fd       int
	sector   int64
	geo      geometry
	conf     Config
	hint     devsw.BufFlag // BMayBlock where the file may

	mu sync.Mutex // serialises changes of engines
	// those that transfers were handed to; never changed, only replaced
	engines atomic.Pointer[[]devsw.AIO]
	threads threads // for transfers that come without an AIO

	ranges *ranges // nil where sectors are no smaller than offAlign
	syncer syncer

	// unrecorded: a stable write has failed as a flush does, which is not on record yet.
	unrecorded atomic.Bool
}

func newImage(file *imagefile.File, identity string, conf Config, sector int64, g geometry) *image {
	im := &image{
		Base: disk.NewBase(describe(file, conf, sector, g)),
		file: file, identity: identity,
		fd:     file.FD.Int(),
		sector: sector,
		geo:    g,
		conf:   conf,
	}
	if sector < g.offAlign && !conf.ReadOnly {
		im.ranges = new(ranges)
	}
	im.syncer.sync, im.syncer.record = im.fdatasync, im.record
	if !conf.ReadOnly {
		im.syncer.failed = conf.Failures.Look(identity)
	}
	if file.MayBlock {
		im.hint = devsw.BMayBlock
	}
	return im
}

// Close closes the image, and its locks go with it. Some file systems (NFS, FUSE) write back then,
// and tell of a failure this once.
func (im *image) Close() {
	err := im.file.FD.Close()
	if e := devsw.ToErrno(err); err != nil && !im.conf.ReadOnly && e != devsw.EINTR && im.syncer.fail(e) {
		im.record(e)
	}
}

// Transfer implements disk.Medium.
func (im *image) Transfer(b *devsw.Buf, off, n int64) {
	if im.Cancelled() {
		b.InContext = true
		b.Fail(devsw.ECANCELED)
		return
	}
	b.Flags |= im.hint
	aio := b.AIO
	if aio == nil {
		aio = &im.threads
	} else if !im.knows(aio) {
		im.learn(aio)
	}
	if n < b.Bcount || im.conf.Bounce || im.conf.Direct && !im.aligned(b, off) || im.ranges != nil && b.Op == devsw.BWrite {
		im.bounce(b, off, n, aio)
	} else {
		im.hand(b, off, aio)
	}
}

// hand hands a transfer to an AIO, whose b is from then on.
func (im *image) hand(b *devsw.Buf, off int64, aio devsw.AIO) {
	if b.Op == devsw.BRead {
		aio.ReadAt(b, im.fd, off, im)
	} else {
		aio.WriteAt(b, im.fd, off, im)
	}
	if im.Cancelled() {
		aio.CancelAll(im)
	}
}

// aligned reports whether the host takes b as it is under O_DIRECT.
func (im *image) aligned(b *devsw.Buf, off int64) bool {
	mask := im.geo.offAlign - 1
	if (off|b.Bcount)&mask != 0 {
		return false
	}
	for _, p := range b.Data {
		if int64(len(p))&mask != 0 || !sys.Aligned(p, im.geo.memAlign) {
			return false
		}
	}
	return true
}

// AIODone ends a transfer, or goes on with one that is made of several.
func (im *image) AIODone(b *devsw.Buf, n int64, e devsw.Errno) {
	if o, ok := b.Context.(*op); ok {
		o.step(n, e)
		return
	}
	if b.Op == devsw.BRead {
		if e = im.atEOF(n, e, b.Bcount); e == 0 && n < b.Bcount {
			if e = disk.Zero(b, n, b.Bcount-n); e == 0 {
				n = b.Bcount
			}
		}
	} else {
		e = im.wrote(n, b.Bcount, b.Flags, e)
	}
	b.Error = e
	b.Resid = b.Bcount - n
	im.biodone(b)
}

// atEOF gives the error of a read that ended after n of the bytes wanted with e: 0 also where it
// ended at the end of the image, beyond which everything reads as zeroes.
func (im *image) atEOF(n int64, e devsw.Errno, want int64) devsw.Errno {
	if n == want {
		return e
	}
	// The host does not let O_DIRECT go on from where a file that is not made of whole blocks ends.
	if e == devsw.EINVAL && im.conf.Direct && n&(im.geo.offAlign-1) != 0 {
		e = 0
	}
	if e == 0 && im.file.Block {
		e = devsw.EIO // the device has become smaller
	}
	return e
}

// wrote gives the error of a write that ended after n bytes with e, of the bytes wanted.
func (im *image) wrote(n, want int64, flags devsw.BufFlag, e devsw.Errno) devsw.Errno {
	if e == 0 && n < want {
		e = devsw.EIO
	}
	if e == devsw.EIO && flags&devsw.BMediaFUA != 0 {
		// The host tells a failed writeback once: this write may have taken the news of another
		// one's from the next flush.
		if im.syncer.fail(e) {
			im.unrecorded.Store(true)
		}
	}
	return e
}

func (im *image) knows(a devsw.AIO) bool {
	p := im.engines.Load()
	return p != nil && slices.Contains(*p, a)
}

// learn remembers an AIO, so that cancel finds it.
func (im *image) learn(a devsw.AIO) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.knows(a) {
		return
	}
	var s []devsw.AIO
	if p := im.engines.Load(); p != nil {
		s = slices.Clone(*p)
	}
	s = append(s, a)
	im.engines.Store(&s)
}

// Cancel interrupts what is in progress, where the host can, and what begins later. What is in a
// system call, an fdatasync for one, ends when the host has done it, and the image keeps its locks
// until then.
//
// A transfer that finds Cancelled not set once it has been handed to an AIO is among those that
// Cancel finds there, since an AIO does one before the other.
func (im *image) Cancel() {
	im.threads.CancelAll(im)
	// Under mu, for an AIO that is being learnt: either it is there, or its transfer finds
	// cancelled set.
	im.mu.Lock()
	p := im.engines.Load()
	im.mu.Unlock()
	if p != nil {
		for _, a := range *p {
			a.CancelAll(im)
		}
	}
	if im.ranges != nil {
		im.ranges.cancel()
	}
}

// CancelBuf interrupts one transfer, wherever it is, where the host can.
func (im *image) CancelBuf(b *devsw.Buf) {
	if b.AIO != nil {
		b.AIO.Cancel(b)
	}
	im.threads.Cancel(b)
	if im.ranges != nil {
		im.ranges.cancelBuf(b)
	}
}

// Grow reads the image's size again.
func (im *image) Grow() (int64, error) {
	length, err := im.file.Length()
	if err != nil {
		return 0, err
	}
	size, err := diskSize(im.conf.Path, length, im.sector, im.geo.offAlign, im.conf.ReadOnly)
	if err != nil {
		return 0, err
	}
	return im.Resize(size), nil
}
