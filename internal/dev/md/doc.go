// Package md is the memory disk, after NetBSD's md(4) with MD_KMEM_ALLOCATED: a disk whose contents are memory of the
// process, all zero at first or loaded from a file, and gone with it. A guest that has written there is
// not to go on with another one (devsw.HoldsAlways).
//
// Memory is taken page by page as it is written and given back by discards, so that the size costs nothing by itself; a
// host that runs out of memory meanwhile ends processes, and answers no write with an error. A flush has nothing to do.
//
// Concurrency: transfers copy on the goroutine that issues them and have ended when d_strategy returns, but for long ones in a context
// with turns (devsw.Turner), which go on there in later ones; no operation takes a lock that another could hold for long, and
// transfers take none. Transfers that overlap in time and place leave there a
// mixture of what was written, as on any disk without atomic writes.
package md
