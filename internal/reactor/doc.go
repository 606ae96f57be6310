// Package reactor holds the event loops that own virtqueues, and their file transfers.
//
// # The loop
//
// A Reactor is a goroutine locked to a thread. It owns its Sources (a virtqueue each), its Timers
// and the file transfers that it has in flight: nobody else touches any of them, and everything
// else reaches the loop by Post (post.go). Methods say whether they are for the reactor's own
// goroutine ("on the reactor") or for any.
//
// A round (round.go) polls the Sources that have had work, one owner after the other (roster.go),
// submits the transfers they started by few system calls, takes what has completed, and lets each
// Source that has completions publish them, once for the whole batch. When nothing is left to do
// the loop rests (rest.go): it goes on looking for a short time that adapts to how soon work used
// to come, then asks each Source for notification, looks once more, and sleeps until a kick, a
// completion, a timer or a Post. A Source without work costs nothing.
//
// An engine (engine.go) sleeps and transfers for the loop: by io_uring, or, where the host refuses
// it, by epoll and a bounded crew of threads (ModeThreads): slower, with the same semantics. A Pool
// (pool.go) has the reactors that devices share.
//
// # File transfers
//
// A transfer (aio.go) is made in one of these ways:
//
//   - What is in the page cache the reactor copies itself (aio_inline.go).
//   - All else the engine has (aio_submit.go).
//   - What is long is begun piece by piece, in turns with others (aio_turns.go).
//   - A file that has a call that is stuck has threads of its own (aio_crew.go).
//
// The system call for a copy may have to wait for the storage, and so may the submission of reads
// that are to be begun. Both are made under the guard (guard.go): where one stalls, another thread,
// which stands by with all it needs, becomes the reactor (takeover.go), and leaves the first one
// nothing but that call, and what its ring has. So a Reactor's goroutine is not always the same,
// but there is one at a time. What the first one has goes back by complete (aio_completed.go).
//
// # Who else touches a reactor
//
//   - Reactor.mu is for what was posted; workers.mu for the transfers that wait for the crew;
//     Pool.mu for Pick. Nobody takes one while he has another. In io_uring mode no read or write
//     takes any.
//   - guard.word and signals.word say who owns the reactor, or a descriptor, while a call is in
//     progress: the thread that makes it, or who watches it.
//   - All else that another goroutine reads is atomic, and one goroutine writes it.
package reactor
