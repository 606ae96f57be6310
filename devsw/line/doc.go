// Package line is a kit for character devices whose other side are terminals, sockets and files: a
// Line, with what is attached to it, is a unit of a Driver.
//
// What is written to a Line, its output, is kept in a buffer, and each End is given it at its own
// pace, from the oldest byte that is kept on. Who attaches sees what was before, in order, then
// what comes, without a gap. With the overflow Drop, for consoles, d_write takes everything at
// once, whoever listens: nobody at the other side can have it wait. With the overflow Wait, for
// data, no byte is lost: d_write waits, or answers EAGAIN, while the buffer is full of what the
// main end has not taken.
//
// Input is read when d_read asks for it, from the ends by turns, and no sooner. What nobody asks
// for stays where it comes from.
//
// A Line, with what it holds and who is attached, is there before d_open and after d_close. A
// driver of one's own is made of an End: see the example.
//
// # What d_read, d_write and the others promise
//
//   - d_write with FNONBLOCK takes what there is room for, and answers EAGAIN where there is none.
//     After EAGAIN, or less than all, EVFILTWrite knotes are activated when there is room.
//   - d_read with FNONBLOCK answers EAGAIN where there is no input. EVFILTRead knotes are activated
//     when there is some. There is no end of file.
//   - Without FNONBLOCK d_write returns when all is taken, d_read when there is something.
//   - Between d_cancel and d_close both answer ECANCELED.
//   - Memory of the Uio that has vanished is EFAULT.
//   - d_poll answers POLLHUP while there is no main end. That, and the size of the window
//     (TIOCGWINSZ, ENOTTY where there is none), is what EVFILTLine is about.
//   - A knote is activated when it is attached, where its event is there already, and that of
//     EVFILTLine always.
//   - When the Line is closed all answer ENXIO, and d_poll POLLERR.
//
// d_write makes no system call but the one that wakes the goroutine of an End, and allocates
// nothing once the buffer has grown. With the overflow Wait there is one more, that does not wait
// either: a large d_write gives its bytes straight to a main end that has taken all before (see
// Direct).
//
// # Locks
//
// input.mu is for the input, Line.mu for the output. Both are held, in this order, to change who is
// attached, so that either is enough to see it. Of the ends' functions Readv is called with
// input.mu held, WritevNow with Line.mu, and no other with a lock. Knotes are activated with none.
package line
