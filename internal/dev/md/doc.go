// Package md is the memory disk, after NetBSD's md(4) with MD_KMEM_ALLOCATED. The disk's contents
// are memory of the process: all zero at first, or loaded from a file, and lost when the process
// ends. A guest that has written there must not go on with another memory disk (devsw.HoldsAlways).
//
// A write takes memory page by page, and a discard frees it, so the size costs nothing by itself. A
// host that runs out of memory ends processes; no write fails with an error. A flush has nothing to
// do.
//
// Concurrency: a transfer copies on the goroutine that issues it, and has ended when d_strategy
// returns. A long one in a context with turns (devsw.Turner) goes on there in later turns.
// Transfers take no lock, and no operation takes one that another could hold for long. Transfers
// that overlap in time and place leave a mixture of what was written, as on any disk without atomic
// writes.
package md
