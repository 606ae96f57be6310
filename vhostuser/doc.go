// Package vhostuser is the back-end side of the vhost-user protocol: it serves a virtio device,
// which implements Device, to a front-end such as QEMU. It speaks what QEMU 7.2 to 11.1 need for a
// device with a configuration space and virtqueues; sections are cited from the specification in
// QEMU's docs/interop/vhost-user.rst.
//
// A Backend serves one front-end at a time over a Unix socket (Serve, ServeConn). Each connection
// has one goroutine, which handles one message at a time and answers it; it owns the state of the
// session and of its rings, and calls the Device. A ring that runs is a Queue, which belongs to one
// of the Reactors that all devices of a process share: only there is the ring touched, by
// Device.Process and by what the Device posts. The connection's goroutine changes something of a
// Queue only on its reactor, and waits for that (a barrier) before it answers the message. It never
// waits for the Device's requests, but in Device.StopDevice, StopQueue and PauseQueue.
//
// A device is stopped once. When no ring is enabled, the first GET_VRING_BASE stops all of them
// (Device.StopDevice), and each further one is answered from what that left. RESET_DEVICE, a second
// SET_OWNER and the end of the connection do the same. What is to become of the requests in flight
// is in one function, policy.
//
// A ring may have an in-flight region, memory of the front-end's in which it records what was
// fetched and not completed. Whoever serves it next, this process after a pause, another one after
// a crash, or one on a migration's target, has those requests first, in their order. Queue.Suspend
// leaves a request there on purpose. A guest that resets its device has forgotten them: a new
// session and RESET_DEVICE drop the region.
//
// A front-end that moves its guest elsewhere while it runs has a dirty log: from SET_LOG_BASE and
// VHOST_F_LOG_ALL on, rings mark in it what is written to guest memory. Package virtq does that; a
// Device has no part in it.
//
// Locks: Backend.mu guards which connection is served, session.mu its deadlines, notifier.mu the
// back-end channel. None of them is held while another is taken, while the Device is called, or on
// the way of a request.
//
// An error of a front-end ends its connection or, where it asks for an acknowledgement, is told by
// that. What a guest can do wrong breaks its ring and leaves the rest alone. Nothing here logs:
// Config.Trace gets events.
package vhostuser
