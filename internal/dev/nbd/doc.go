// Package nbd is a disk that a server somewhere else has: a client of the NBD protocol, after Linux's nbd and QEMU's block driver of
// that name. NetBSD has no such driver. The protocol is that of the NetworkBlockDevice project, doc/proto.md, in its fixed newstyle
// form; the server is found by an NBD URI (doc/uri.md).
//
// # The connection
//
// The handshake asks for extended headers, else for structured replies, and chooses the export with NBD_OPT_GO (with
// NBD_OPT_EXPORT_NAME where a server does not have that). The server's smallest block must not be larger than the disk's sectors;
// transfers that are larger than its largest payload go in parts. TLS (nbds) works with certificates, of which tls-certificates=DIR
// names the directory, with the file names that QEMU and nbdkit use (ca-cert.pem, client-cert.pem, client-key.pem). Pre-shared keys
// and anonymous TLS are refused with EOPNOTSUPP: Go's crypto/tls has neither. With nbd:// nothing is encrypted; a server that
// demands TLS is refused.
//
// Where the server says that several connections are as good as one (NBD_FLAG_CAN_MULTI_CONN), there are several, and a request goes
// to the one with the least to do, or that its context has (see Concurrency). Not every server that says so
// is right. nbd-server says it of exports that are "temporary", of which each connection has its own. So
// from the first change on all goes by one connection, until another one has shown what was written. Where
// that shows something else, everything fails with ESTALE, and Driver.Notify's function is told.
//
// Extended headers have lengths of 64 bits. They are used as far as they go: whoever asks for a discard
// gives 2 GiB at most at a time, which is two requests (largePiece), so that others have their turn.
//
// FLUSH and FUA are the server's; a server that has only FLUSH gets one after each write with
// BMediaFUA; one that has only FUA gets it with every write. One that has neither says nothing of
// when a write is stable: flushes succeed then, as with other clients of the protocol, and
// Driver.Warnings tells. Zeroes are written with FAST_ZERO first, and with NO_HOLE unless they may
// be given back.
//
// # When the server goes
//
// A connection that the server drops is dialed again, with back-off, and what it owed is asked for again, on another connection if
// there is one. Requests that find no connection wait for at most Config.ReconnectDelay, and fail with EIO then: like QEMU's
// reconnect-delay, but that the time runs on until a server has answered a request, so that one which only comes back to fall over
// the same request again does not do so for ever. The export must still be what it was: not smaller, not read-only, with the same
// commands.
//
// # d_cancel, CancelBuf, and what they promise
//
// d_cancel ends every transfer and command with ECANCELED, each exactly once; those whose memory a goroutine is just touching, as soon
// as it is not, without waiting for the server: a transfer between socket and memory is interrupted. From then on the bytes of a late
// answer are read and thrown away.
//
// A write (or trim, or zeroes) that the server has and has not answered may still take effect. So:
//
//   - After d_cancel nothing more is sent, but a connection on which the server owes the answer to such a request stays until the
//     answer has come, or until the server drops it; so does one with a flush on it, whose error, of which a server tells once, is the
//     next flush's. Only then does the next d_open dial; d_cancel ends that wait, too, and nothing
//     else does. A request of which the server has got a part is never completed: the connection is shut down in the server's
//     direction, and the driver waits for the server to hang up.
//   - After CancelBuf the disk stays open. The request is held against its blocks: what touches them waits until the server has
//     answered or dropped the connection. Of a write that is given up in the middle the rest is copied, and sent.
//
// Hence a write that was given up does not land after a newer one, as long as the server answers a request only when it has carried
// it out, and drops a connection only when it has carried out or forgotten what came by it (proto.md demands so of NBD_CMD_DISC).
//
// No client can guarantee more. A server that drops a connection and works on what it has got by it, a network that loses a
// connection (noticed by TCP's keep-alive) between a client and a server that live on, a proxy that answers for another: each can
// bring a write that was given up, or one that was asked for a second time, after a newer one. The same goes for this process's own
// end, which leaves nobody to wait, for destroying a unit, which waits for a second, and for a server that breaks the protocol: its
// connection is closed at once, and the writes it owed fail with EIO.
//
// # What a server takes with it
//
// A server may keep in its own memory what it has answered, until it is asked to flush; when it is
// killed, that is gone, and what is read afterwards is old. So: where a server has ended and
// another one has come in its place, while there were writes that it had answered and that no flush
// covered, everything fails with ESTALE, reads as well. That outlasts d_close, for an opener that
// goes on where it was (devsw.FRESUME); one that begins anew is served with what there is, as after
// a power failure.
//
// A server of the driver's own says itself when it is another one (Server.Start). Of one that is
// somebody else's it is known by the process that has made its Unix socket; of TCP, and of sockets
// that a service manager has made, nothing is known. There a connection that breaks may be the
// network's fault, and is no reason to take a guest's disk away: the requests go on, and
// Driver.Notify's function is told. Config.Unflushed has the driver take the one or the other for
// granted. A server without FLUSH is never known to have anything on stable storage.
//
// A flush that has failed stays so: the server tells of it once, and may have dropped what it could
// not write. Driver.State tells of that and of a loss, for whoever serves the disk next;
// Driver.ClearState ends both.
//
// # Between opens
//
// Some servers end with their last client. So the first connection, by which the disk was looked
// at, stays until the first open, and one stays between two opens, but with TLS. An open makes a
// new one first, by which it learns the size, and then lets go of the other. A server that takes
// one client at a time does not answer that in time: the open goes on with the connection that
// there is, and later ones do not try. With the protocol the size cannot be asked for without
// another connection (DIOCGROW, Driver.Reread).
//
// # A server of the driver's own
//
// With Config.Server the server runs while the disk is open: it is started before a connection is dialed, and stopped when the last
// connection of a disk that was closed has gone. One that owes answers for too long after d_cancel is killed: it can write no more
// then, and the next d_open need not wait.
//
// # Trust
//
// The server is not trusted. What it says is checked before it is used: it makes the driver touch no memory but that of the read it
// answers, and there each byte at most once in each answer; read without end; or keep more than a few buffers for a connection.
//
// # Memory
//
// Large payloads go straight between the socket and the transfer's memory; smaller ones, and with TLS all, are copied (Buf.MoveAt).
// Memory that is gone is EFAULT; for a write of which a part has been sent the connection ends with it.
//
// # Concurrency
//
// A connection has a sender and a receiver, each a goroutine, and without TLS, while it waits, a thread (sys.Stream); a client has a goroutine for each of its connections beside, which dials
// anew. Transfers end on these.
//
// Where transfers come from a context that can look after a connection (devsw.Watcher), and without TLS, the first one has its
// connection go over to that context, which then sends and receives in place of the two: nothing goes from one goroutine to another
// any more, but for transfers of other contexts. The sender helps out when the context is about to sleep and the socket is full; and
// the receiver takes the connection back with d_cancel. After d_close connections end by themselves, as said above.
//
// client.mu is not held over a system call that could block, or over a call to anybody else.
//
// # One device at a time
//
// A unit is open through its block device or through its character device, not through both: EBUSY.
package nbd
