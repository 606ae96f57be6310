package nbd

import (
	"context"
	"fmt"
	"time"

	"vdev/devsw"
)

// Server starts and ends the server of a disk, where that is the driver's to do: it runs while the
// disk is open.
type Server interface {
	// Start sees to it that the server runs and listens, and returns when it does or when ctx is
	// done. It is called before each connection is dialed and again after its handshake, by several
	// goroutines at once.
	//
	// generation is another one than before where a server has ended otherwise than by Stop, and
	// may have taken with it what it had answered and not been asked to flush.
	//
	// After an error it is called again, as after one of the connection: see Config.ReconnectDelay.
	// One that wraps EINVAL, or is a *RefusedError, ends a d_open at once.
	Start(ctx context.Context) (generation uint64, err error)

	// Stop ends the server in order, which is to put on stable storage what it has answered, and
	// returns when it is gone. It is called when the last connection of a disk that was closed has
	// gone, and whenever nothing came of an open. No Start runs meanwhile.
	Stop()

	// Kill ends the server at once, whatever it is doing, and returns when it is gone and can do
	// nothing any more. It is called when the server owes answers for too long after a d_cancel
	// (Config.KillAfter), or when the unit is destroyed, at any time.
	Kill()
}

// Holder is a Server that has what was written end with it, or with what it keeps for it.
type Holder interface {
	Server
	// Holding is for devsw.DiskInfo, and does not change.
	Holding() (devsw.Holding, uint64)
}

// Sizer is a Server that knows the size of the disk while it does not run.
type Sizer interface {
	Server
	// Size gives the size in bytes, which may have changed since the server has run last. It waits
	// as long as storage does. ok is false where it does not know. It is called while no Start
	// runs, or at the same time.
	Size() (size int64, ok bool, err error)
}

// defaultKillAfter is how long after d_cancel a Server may owe answers where the Config does not
// say.
const defaultKillAfter = 30 * time.Second

// LostError is what Driver.Notify's function gets when what a server has answered, and not been
// asked to flush, is lost, or may be.
type LostError struct {
	Writes uint64 // how many of them there are: none that came later is among them
	// Perhaps: nobody knows whether the server is another one than before. Requests go on.
	Perhaps bool
	// Foreign: the server is none of the driver's own (Config.Server).
	Foreign bool
	// Split: nothing is lost, but what was written by one connection is not there by another one.
	Split bool
}

func (e *LostError) Error() string {
	if e.Split {
		return "the server says that all connections show the same disk (NBD_FLAG_CAN_MULTI_CONN), " +
			"and what was written by one is not seen by another: every request fails until the " +
			"guest resets the device. With the option connections=1 there is one. But an export " +
			"whose content goes with its connection, as that of nbd-server's 'temporary' does, is " +
			"empty again whenever vdev connects anew: after each reset of the guest, and after a " +
			"connection that was lost"
	}
	writes := "1 write"
	if e.Writes != 1 {
		writes = fmt.Sprintf("%d writes", e.Writes)
	}
	writes += " that it had answered and not been asked to flush"
	if e.Perhaps {
		return "the server was away, and it cannot be told whether it was started anew: if so, " +
			writes + " may be lost (with the option unflushed=lost requests fail in such a case; " +
			"with unflushed=kept the server is taken to lose nothing)"
	}
	way := "every request fails until the guest resets the device " +
		"(restart the guest: it finds the disk as after a power failure)"
	if e.Foreign {
		way += "; for a server that keeps nothing in its own memory there is the option " +
			"unflushed=kept"
	}
	return "the server has ended and was started anew, and up to " + writes + " are lost: " + way
}

// Unwrap gives ESTALE, with which the requests end.
func (e *LostError) Unwrap() error { return devsw.ESTALE }

// Unflushed says what becomes of writes that a server has answered, and not been asked to flush,
// when it ends and another one comes in its place.
type Unflushed int

const (
	// UnflushedAuto: they are lost with a server of which it can be told that it is another process
	// than before: one behind a Unix socket, which is not a service manager's. Of others they are
	// taken to be kept.
	UnflushedAuto Unflushed = iota
	// UnflushedLost: they are lost whenever the last connection breaks and it cannot be told that
	// the server is the same process.
	UnflushedLost
	// UnflushedKept: they are not lost, since the server keeps nothing in its own memory.
	UnflushedKept
)

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

	// lost is how many others are lost. If any is, everything fails until an open without FRESUME.
	lost uint64
	// split says that they are not lost, but seen by one connection alone.
	split bool

	// failed is not 0 where a flush has failed, with that error. A server may tell of it once, and
	// have dropped what it could not write: later flushes fail as well.
	failed devsw.Errno
}

// inherited is what the next open of the disk has to know of it: resumed says that its opener goes
// on where it was (FRESUME).
func (s stability) inherited(resumed bool) stability {
	next := stability{generation: s.generation, failed: s.failed}
	if resumed {
		next.acked, next.lost, next.split = s.volatile(), s.lost, s.split
	}
	return next
}

// volatile is how many writes a server would take with it.
func (s *stability) volatile() uint64 { return s.acked - s.stable }

// answered notes that a server of this generation has answered a write, and tells whether that is
// news of a loss.
func (s *stability) answered(generation uint64) (news bool) {
	s.acked++
	return generation != s.generation && s.lose()
}

// arrived notes that there is a server of this generation, and tells whether that is news of a
// loss.
func (s *stability) arrived(generation uint64) (news bool) {
	if generation == s.generation {
		return false
	}
	s.generation = generation
	return s.volatile() > 0 && s.lose()
}

func (s *stability) lose() (news bool) {
	news = s.lost == 0
	s.lost += s.volatile()
	s.stable = s.acked
	return news
}

// flushed notes that a server of this generation has flushed the first n writes.
func (s *stability) flushed(generation, n uint64) {
	if generation == s.generation {
		s.stable = max(s.stable, n)
	}
}
