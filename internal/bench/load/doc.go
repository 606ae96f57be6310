// Package load is the guest of a benchmark: a vhost-user front-end with a virtio-blk guest driver.
// It keeps a disk busy, and tells how fast the disk answers. It knows nothing of vdev: any back-end
// that serves a virtio-blk device on a Unix socket will do.
//
// A Job says what is to be done, and Run does it. Run connects as QEMU does at device_add, and
// gives each queue a thread of its own that keeps Depth requests in flight. After a warm-up it
// counts and times what completes. A request's memory and descriptors are laid out once; a request
// takes no allocation, no lock and, with Job.Poll, no system call. The clock is read once for each
// look at the used ring, so requests that are found there together have the same end.
//
// # Consoles
//
// With a Target.Host it is a console that is kept busy: one of its ports, by the guest driver of
// package consoletest, and at the port's other side whatever the host has there. A stream goes each
// way. Whoever receives it knows what must come, byte by byte, and where it begins and ends. A
// buffer takes no allocation and no lock.
//
// # Where the load itself is the limit
//
// A back-end that is faster than its load does not show it. Result.Waited tells in how many of its
// turns a queue found nothing at first. Where that is close to none, requests were complete before
// the load looked for them, and the figures are the load's own.
package load
