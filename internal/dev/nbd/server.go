package nbd

import (
	"context"
	"fmt"
	"time"

	"vdev/devsw"
)

// Server starts and ends the server of a disk, where that is the driver's to do: it runs while the disk is open.
type Server interface {
	// Start sees to it that the server runs and listens, and returns when it does or when ctx is done. It is called before each
	// connection is dialed and again after its handshake, by several goroutines at once.
	//
	// generation is another one than before where a server has ended otherwise than by Stop, and may have taken with it what it had
	// answered and not been asked to flush.
	//
	// After an error it is called again, as after one of the connection: see Config.ReconnectDelay. One that wraps EINVAL, or is a
	// *RefusedError, ends a d_open at once.
	Start(ctx context.Context) (generation uint64, err error)

	// Stop ends the server in order, which is to put on stable storage what it has answered, and returns when it is gone. It is called
	// when the last connection of a disk that was closed has gone, and whenever nothing came of an open. No Start runs meanwhile.
	Stop()

	// Kill ends the server at once, whatever it is doing, and returns when it is gone and can do nothing any more. It is called when
	// the server owes answers for too long after a d_cancel (Config.KillAfter), or when the unit is destroyed, at any time.
	Kill()
}

// defaultKillAfter is how long after d_cancel a Server may owe answers where the Config does not say.
const defaultKillAfter = 30 * time.Second

// ErrForgotten is what Driver.Notify's function gets when writes are lost.
var ErrForgotten = fmt.Errorf("the server has ended and is another one now: "+
	"what it had answered and not been asked to flush may be lost, and flushes fail until the disk is closed: %w", devsw.EIO)

// nobody is the Server of a disk whose server is somebody else's.
type nobody struct{}

func (nobody) Start(context.Context) (uint64, error) { return 0, nil }
func (nobody) Stop()                                 {}
func (nobody) Kill()                                 {}

// stability is what is known of writes that a server has answered. It is under client.mu.
type stability struct {
	generation uint64 // of the server; see Server
	acked      uint64 // how many writes were answered
	stable     uint64 // how many of them a flush has covered since
	lost       bool   // some of the rest may be lost: flushes fail until d_close
	told       bool   // one has

	// owing is what the next flush is told: the error of one that nobody waited for any more, or of a loss of which none was told
	// before d_close.
	owing devsw.Errno
}

// inherited is what the next open of the disk has to know of it.
func (s stability) inherited() stability {
	next := stability{generation: s.generation, owing: s.owing}
	if s.acked > s.stable {
		next.acked = 1
	}
	if s.lost && !s.told {
		next.owing = devsw.EIO
	}
	return next
}

// answered notes that a server of this generation has answered a write, and tells whether that is news of a loss.
func (s *stability) answered(generation uint64) (news bool) {
	s.acked++
	return generation != s.generation && s.lose()
}

// arrived notes that there is a server of this generation, and tells whether that is news of a loss.
func (s *stability) arrived(generation uint64) (news bool) {
	if generation == s.generation {
		return false
	}
	s.generation = generation
	return s.acked > s.stable && s.lose()
}

func (s *stability) lose() (news bool) {
	news = !s.lost
	s.lost = true
	return news
}

// flushed notes that a server of this generation has flushed the first n writes.
func (s *stability) flushed(generation, n uint64) {
	if generation == s.generation {
		s.stable = max(s.stable, n)
	}
}

// tell gives what a flush that has gone well must say nevertheless.
func (s *stability) tell() devsw.Errno {
	if s.lost {
		s.told = true
		return devsw.EIO
	}
	e := s.owing
	s.owing = 0
	return e
}
