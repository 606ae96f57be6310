// Package reactor holds the event loops that own virtqueues.
//
// A Reactor is a goroutine locked to a thread. It owns its Sources (a virtqueue each) and the file transfers that it
// has in flight: nobody else touches either, and everything else reaches the loop by Post. Methods say whether they are
// for the reactor's own goroutine ("on the reactor") or for any.
//
// The loop polls the Sources that have had work, submits the transfers they started by few system calls, takes what has
// completed, and lets each Source that has completions publish them, once for the whole batch. When nothing is left to do
// it goes on looking for a short time that adapts to how soon work used to come, then asks each Source for notification,
// looks once more, and sleeps until a kick, a completion or a Post. A Source without work costs nothing.
//
// What is in the page cache the reactor transfers itself. The system call for that may have to wait
// for the storage, and so may the submission of reads that are to be begun: then another thread,
// which stands by with all it needs, becomes the reactor, and leaves the first one nothing but that
// call, and what its ring has. So a Reactor's goroutine is not always the same, but there is one at
// a time.
//
// Other transfers and sleeping go by io_uring, or, where the host refuses it, by epoll and a bounded pool of threads
// (ModeThreads): slower, with the same semantics.
//
// There is no lock but the one of the Post queue, which no block read or write takes in io_uring mode.
package reactor
