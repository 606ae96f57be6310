package reactor

import (
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
)

// file is what the reactor has learnt of a file.
type file struct {
	done devsw.AIODone // whose it is: numbers are used again
	// buffered: transfers go by the page cache.
	buffered bool
	// waits: reads know no RWF_NOWAIT.
	waits  bool
	trust  int // how many such reads may be made without a look at the clock
	reads  skip
	begun  int           // transfers by the page cache that the engine has
	stuck  int           // calls that threads are still in, who lost the reactor over them
	resume time.Duration // when the next one that may wait may be made in line, by Clock
	pause  time.Duration // how long before that the last of them came back
}

// For how long what may wait of a file's transfers goes by the engine once a call that has stalled
// is back. A file that stalls again soon is one that is written faster than its disk can take, and
// each stall holds up the others on the reactor: it is left alone twice as long each time.
const (
	leastPause = 100 * time.Millisecond
	mostPause  = 6400 * time.Millisecond
	soon       = time.Second
)

// back says that a call that had stalled is back. On the reactor.
func (f *file) back(now time.Duration) {
	if f.stuck--; f.stuck > 0 {
		return // the last one tells
	}
	if again := now-f.resume < max(f.pause, soon); again && f.pause > 0 {
		f.pause = min(2*f.pause, mostPause)
	} else {
		f.pause = leastPause
	}
	f.resume = now + f.pause
}

// skip counts tries that are not worth making: the more have failed in a row, the more are left
// out.
type skip struct{ left, length uint8 }

const maxSkip = 32

// try tells whether to try.
func (s *skip) try() bool {
	if s.left == 0 {
		return true
	}
	s.left--
	return false
}

func (s *skip) failed() {
	s.length = min(2*s.length+1, maxSkip)
	s.left = s.length
}

func (s *skip) worked() { s.length = 0 }

// of returns what is known of the file that o is for.
func (r *Reactor) of(o *op) *file {
	if o.fd >= len(r.files) {
		r.files = append(r.files, make([]file, o.fd+1-len(r.files))...)
	}
	f := &r.files[o.fd]
	if f.done != o.done {
		// A stepped reactor has no thread that stands by: it makes no transfer itself.
		*f = file{done: o.done, buffered: r.mode != ModeStepped && sys.Buffered(o.fd)}
	}
	return f
}
