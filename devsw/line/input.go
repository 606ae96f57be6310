package line

import (
	"slices"
	"sync"

	"vdev/devsw"
)

// input is the way from the ends to d_read.
type input struct {
	line *Line
	cv   *devsw.Cv // of mu: who sleeps in d_read

	mu     sync.Mutex
	ends   []*Base // those that have input, the oldest first
	turn   int     // of ends: whose turn it is
	read   int64   // bytes
	closed bool
}

// arrived says that b has input, perhaps.
func (in *input) arrived(b *Base) {
	in.mu.Lock()
	known := b.ready
	if b.ready = true; !known {
		in.cv.Broadcast()
	}
	in.mu.Unlock()
	if !known {
		in.line.tell(devsw.EVFILTRead)
	}
}

// waits tells whether a d_read has something to look at.
func (in *input) waits() bool {
	return in.closed || slices.ContainsFunc(in.ends, func(b *Base) bool { return b.ready })
}

// transfer is d_read. That it answers EAGAIN means that no end is ready, and each that becomes so
// is told of.
func (in *input) transfer(u *devsw.Uio, flag devsw.Flag) error {
	if u.Resid == 0 {
		return nil
	}
	in.mu.Lock()
	for {
		if in.closed {
			in.mu.Unlock()
			return devsw.ENXIO
		}
		if in.cv.Cancelled() {
			in.mu.Unlock()
			return devsw.ECANCELED
		}
		over, err := in.next(u)
		if over != nil {
			in.mu.Unlock()
			in.line.remove(over)
			in.mu.Lock()
			continue
		}
		if err == devsw.EAGAIN && flag&devsw.FNONBLOCK == 0 {
			if err = in.cv.Wait(in.waits); err == nil {
				continue
			}
		}
		in.mu.Unlock()
		return err
	}
}

// next reads from the end whose turn it is: one that has hung up, the oldest first; else from one
// after the other. over is an end whose input is over.
func (in *input) next(u *devsw.Uio) (over *Base, err error) {
	for _, b := range in.ends {
		if b.state == hungup && b.ready {
			if over, err := in.from(b, u); err != devsw.EAGAIN {
				return over, err
			}
		}
	}
	for range in.ends {
		if in.turn >= len(in.ends) {
			in.turn = 0
		}
		b := in.ends[in.turn]
		in.turn++
		if b.state == seated && b.ready {
			if over, err := in.from(b, u); err != devsw.EAGAIN {
				return over, err
			}
		}
	}
	return nil, devsw.EAGAIN
}

func (in *input) from(b *Base, u *devsw.Uio) (over *Base, err error) {
	n, err := b.in.Readv(u.Iov)
	switch {
	case n > 0:
		u.Advance(n)
		in.read += int64(n)
		b.received += int64(n)
		return nil, nil
	case err == devsw.EAGAIN:
		b.ready = false // a Ready that comes meanwhile waits for the lock
		return nil, err
	case err == devsw.EFAULT:
		return nil, err
	}
	return b, nil
}
