// Package load is the guest of a benchmark: a vhost-user front-end with a virtio-blk driver that keeps a disk busy, and tells
// how fast it answers. It knows nothing of vdev: any back-end that serves a virtio-blk device on a Unix socket will do.
//
// A Job says what is to be done, and Run does it: it connects, as QEMU does at device_add, gives each queue a thread of its own
// that keeps Depth requests in flight, and after a warm-up counts and times what completes. A request's memory and descriptors
// are laid out once; on the way of a request there is no allocation, no lock and, with Job.Poll, no system call. The time is
// looked at once for each look at the used ring, so that requests that are found there together have the same end.
//
// # Where the load itself is the limit
//
// A back-end cannot be seen to be faster than what loads it. Result.Waited tells in how many of its turns a queue found
// nothing at first: where that is next to none, requests were complete before they were looked for, and the figures are the
// load's own.
package load
