// Package nbd is a disk that an NBD server has: a client of the protocol, after Linux's nbd and
// QEMU's block driver of that name. NetBSD has no such driver. The protocol is that of the
// NetworkBlockDevice project, doc/proto.md, in its fixed newstyle form. An NBD URI names the server
// (doc/uri.md).
//
// # The connection
//
// The handshake asks for extended headers, else for structured replies, and chooses the export with
// NBD_OPT_GO (with NBD_OPT_EXPORT_NAME where a server does not have that). The server's smallest
// block must not be larger than the disk's sectors. Transfers that are larger than its largest
// payload are sent in parts. TLS (nbds) works with certificates, of which tls-certificates=DIR
// names the directory, with the file names that QEMU and nbdkit use (ca-cert.pem, client-cert.pem,
// client-key.pem). Pre-shared keys and anonymous TLS are refused with EOPNOTSUPP: Go's crypto/tls
// has neither. With nbd:// nothing is encrypted; a server that demands TLS is refused.
//
// Where the server says that several connections are as good as one (NBD_FLAG_CAN_MULTI_CONN),
// there are several. A request goes to the one with the least to do, or to the one that its context
// has (see Concurrency). Not every server that says so is right: nbd-server says it of exports that
// are "temporary", of which each connection has its own. So from the first change on, all requests
// go by one connection, until another one has shown what was written. If that shows something else,
// everything fails with ESTALE, and Driver.Notify's function is called.
//
// Extended headers have lengths of 64 bits. A discard nevertheless comes in pieces of at most 2
// GiB, which are two requests each (largePiece), so that others have their turn.
//
// FLUSH and FUA are the server's. A server that has only FLUSH gets one after each write with
// BMediaFUA; a server that has only FUA gets it with every write. A server that has neither does
// not say when a write is stable: flushes succeed then, as with other clients of the protocol, and
// Driver.Warnings tells. Zeroes are written with FAST_ZERO first, and with NO_HOLE unless they may
// be discarded.
//
// # When the server goes
//
// The driver dials again, with back-off, when the server drops a connection, and sends unanswered
// requests again, on another connection if there is one. Requests that find no connection wait for
// at most Config.ReconnectDelay, and then fail with EIO. That is like QEMU's reconnect-delay, but
// the time runs on until a server has answered a request: a server that comes back and falls over
// the same request again does not do so for ever. The export must still be what it was: not
// smaller, not read-only, with the same commands.
//
// # d_cancel, CancelBuf, and what they promise
//
// d_cancel ends every transfer and command with ECANCELED, each exactly once, without waiting for
// the server. A transfer between socket and memory is interrupted, and ends as soon as no goroutine
// touches its memory. From then on the bytes of a late answer are read and thrown away.
//
// A write (or trim, or zeroes) that the server has and has not answered may still take effect. So:
//
//   - After d_cancel nothing more is sent. A connection on which the server owes the answer to such
//     a request stays until the answer has come, or until the server drops the connection. So does
//     one with a flush on it: a server tells of an error once, and this error is the next flush's.
//     Only then does the next d_open dial; d_cancel ends that wait, too, and nothing else does. A
//     request of which the server has got a part is never completed: the connection is shut down in
//     the server's direction, and the driver waits for the server to hang up.
//   - After CancelBuf the disk stays open. The request blocks its range of the disk: what touches
//     the range waits until the server has answered or dropped the connection. When a write is
//     cancelled in the middle, the rest is copied, and sent.
//
// Hence a cancelled write does not land after a newer one, as long as the server answers a request
// only when it has carried it out, and drops a connection only when it has carried out or forgotten
// what came by it (proto.md demands that of NBD_CMD_DISC).
//
// No client can guarantee more. A server may drop a connection and go on working on what came by
// it. A network may lose a connection (noticed by TCP's keep-alive) between a client and a server
// that live on. A proxy may answer for another server. Each of these can carry out a cancelled
// write, or one that was sent a second time, after a newer one. So can the end of this process,
// which leaves nobody to wait; the destruction of a unit, which waits for a second only; and a
// server that breaks the protocol: its connection is closed at once, and the writes that it owes
// fail with EIO.
//
// # What a server takes with it
//
// A server may keep answered writes in its own memory until it is asked to flush. When it is killed
// they are gone, and reads give old data. So, where a server has ended and another one has taken
// its place, while there were answered writes that no flush covered, everything fails with ESTALE,
// reads as well. That outlasts d_close, for an opener that goes on where it was (devsw.FRESUME). An
// opener that begins anew gets what there is, as after a power failure.
//
// A server of the driver's own says when it is another one (Server.Start). A server that is
// somebody else's is known by the process that has made its Unix socket. With TCP, and with sockets
// that a service manager has made, nothing is known. There a connection that breaks may be the
// network's fault, and is no reason to take a guest's disk away: the requests go on, and
// Driver.Notify's function is called. Config.Unflushed makes the driver assume the one or the
// other. A server without FLUSH is never known to have anything on stable storage.
//
// After a flush has failed, all later ones fail: the server tells of it once, and may have dropped
// what it could not write. Driver.State tells of that and of a loss, for whoever serves the disk
// next. Driver.ClearState ends both.
//
// # Between opens
//
// Some servers end with their last client. So the first connection, by which the driver looks at
// the disk, stays until the first open, and one stays between two opens, but not with TLS. An open
// first makes a new connection, by which it learns the size, and then closes the old one. A server
// that takes one client at a time does not answer the new one in time: the open goes on with the
// old connection, and later opens do not try. The protocol has no way to ask for the size without
// another connection (DIOCGROW, Driver.Reread).
//
// # A server of the driver's own
//
// With Config.Server the server runs while the disk is open. The driver starts it before it dials,
// and ends it when the last connection of a disk that was closed has gone. The driver kills a
// server that owes answers for too long after d_cancel: it can write no more then, and the next
// d_open need not wait.
//
// # Trust
//
// The server is not trusted. What it says is checked before it is used. It cannot make the driver
// touch any memory but that of the read it answers, and there each byte at most once in each
// answer. It cannot make the driver read without an end, or keep more than a few buffers for a
// connection.
//
// # Memory
//
// Large payloads go straight between the socket and the transfer's memory. Smaller ones, and with
// TLS all, are copied (Buf.MoveAt). Memory that is gone is EFAULT; if a part of the write has been
// sent, the connection ends too.
//
// # Concurrency
//
// A connection has a sender and a receiver. Each is a goroutine and, without TLS and while it
// waits, a thread (sys.Stream). For each connection a client has another goroutine, which dials
// anew. Transfers end on these.
//
// Where transfers come from a context that can look after a connection (devsw.Watcher), and without
// TLS, the first transfer moves its connection to that context. The context then sends and receives
// in place of the two goroutines, so that only transfers of other contexts go from one goroutine to
// another. The sender helps when the context is about to sleep and the socket is full. At d_cancel
// the receiver takes the connection back. After d_close connections end by themselves, as said
// above.
//
// client.mu is not held over a system call that could block, or over a call to anybody else.
//
// # One device at a time
//
// A unit is open through its block device or through its character device, not through both: EBUSY.
package nbd
