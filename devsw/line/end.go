package line

import (
	"sync/atomic"

	"vdev/devsw"
)

// Role says what an End is to its Line.
type Role uint8

const (
	// Main is the other side of the line. While there is no such End, nobody is attached
	// (POLLHUP). On a line with the overflow Wait the oldest of them counts: what it has taken may
	// go, and what it has not taken stays.
	Main Role = iota
	// Watcher sees the output too, as a log does. It may be overtaken, and does not count.
	Watcher
)

// String gives "main" or "watcher".
func (r Role) String() string {
	if r == Main {
		return "main"
	}
	return "watcher"
}

// End is one of those at the other side of a Line: a terminal, a client, a file. Every one embeds a
// Base. The Line calls the functions with none of its locks held that output needs.
type End interface {
	// Writev takes the next bytes of the output and returns how many. It is called on a goroutine
	// that the End has for itself, and may wait for as long as it likes. What it does not take it
	// is given again. p and what is in it are the Line's, and not to be changed; they are valid
	// until Writev returns. There are at most 64 KiB, in at most eight pieces. An error does what
	// Base.Hangup does.
	Writev(p [][]byte) (n int, err error)

	// Close is called once, when the Line has done with the End, whoever caused that. A Writev in
	// progress must return soon then, whatever the terminal does. Close does not wait.
	Close()

	base() *Base
}

// Input is an End that also has input.
type Input interface {
	End
	// Readv moves input to p, the memory of a d_read, and returns the number of bytes. It does not
	// wait. The memory may vanish: it is written to by the kernel, or by devsw.Kcopy. Errors:
	//
	//	EAGAIN   there is nothing. Base.Ready is called once there is something
	//	EFAULT   the memory is gone; it is the answer of the d_read
	//	other    there will be nothing any more (io.EOF): the End is removed
	//
	// Nothing, without an error, means io.EOF too. Calls do not overlap. The first may come when
	// Add has been called.
	Readv(p [][]byte) (n int, err error)
}

// Direct is an End that a d_write can give its bytes to itself, on a line with the overflow Wait:
// as a rule, one with a descriptor. A large d_write does so where nothing waits for the End.
type Direct interface {
	End
	// WritevNow takes what it can of p, the memory of a d_write, without waiting, and returns how
	// many bytes that is. It is a system call, since the memory may vanish. What it does not take,
	// also because of an error, goes to Writev. No Writev is in progress. A lock is held: it calls
	// no function of Base.
	WritevNow(p [][]byte) (n int, err error)
}

// state is where an End stands.
type state uint8

const (
	seated state = iota + 1 // it gets output, and has input
	hungup                  // only what is there of its input is read
	out                     // removed
)

// feed is what the goroutine of an End does.
type feed uint8

const (
	looking feed = iota
	asleep       // until wake
	writing      // in Writev
)

// stake is what an End has to do with Line.reached, where the overflow is Wait.
type stake uint8

const (
	none    stake = iota
	fresh         // it is the main end, and is to begin there
	counts        // it is the main end, or was: what it takes counts
	leaving       // it was, and has gone in a Writev: see Line.leaving
)

// Base is the part of an End that its Line keeps. The zero Base is ready to use, for one Add. Its
// methods may be called on any goroutine, also before Add, when Ready, Hangup and Remove do
// nothing.
type Base struct {
	line  atomic.Pointer[Line]
	users atomic.Int32 // Close, and the goroutine that writes: what is to come of them

	// Set by Add.
	end    End
	in     Input  // nil: no input
	direct Direct // nil: it is not
	name   string
	role   Role
	wake   chan struct{} // has room for one: the goroutine is to look
	done   chan struct{}

	// Changed with both locks of the Line held.
	state state

	// Under Line.mu.
	feed  feed
	stake stake
	cur   cursor
	sent  int64
	lost  int64

	size atomic.Pointer[devsw.Winsize] // nil: none

	// Under input.mu.
	ready    bool // Readv is to be tried
	received int64
}

func (b *Base) base() *Base { return b }

// Ready says that Readv may find something. It costs little where the Line knows that already. It
// is not called with a lock held that Readv takes.
func (b *Base) Ready() {
	if l := b.line.Load(); l != nil {
		l.input.arrived(b)
	}
}

// SetSize says how large the window of the terminal is, in characters; where it has no rows or
// columns, there is none. Of the ends that have one the newest decides for the Line.
func (b *Base) SetSize(size devsw.Winsize) {
	if size.Row == 0 || size.Col == 0 {
		b.size.Store(nil)
	} else {
		b.size.Store(&size)
	}
	if l := b.line.Load(); l != nil {
		l.sizeChanged()
	}
}

// Hangup says that the other side has gone. The End gets no more output, and does not count as
// attached. What Readv has is read still; when that is over, the End is removed. Who calls Hangup
// sees to it that a Writev in progress returns.
func (b *Base) Hangup() {
	if l := b.line.Load(); l != nil {
		l.hangup(b)
	}
}

// Remove takes the End out of its Line. Its Close is called, if it was not before. Input that was
// not read stays where it is.
func (b *Base) Remove() {
	if l := b.line.Load(); l != nil {
		l.remove(b)
	}
}

// Done is closed when the Line has done with the End: Close has returned, and no call of its
// functions is in progress or will come. It is nil before Add.
func (b *Base) Done() <-chan struct{} { return b.done }

// leave is called when one of the users has gone.
func (b *Base) leave(l *Line) {
	if b.users.Add(-1) == 0 {
		close(b.done)
		l.users.Release()
	}
}
