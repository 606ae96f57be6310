// Package specfs knows who has a device open, what is in progress on it, and how
// to take it down. It is the one way to a driver of package devsw, after NetBSD's
// sys/miscfs/specfs.
//
// A Node is one way to a device; several nodes may lead to the same one. What a
// Node does to the device (Read, Write, Ioctl, Strategy, ...) is a section: it
// can be entered while the node is open, and a drain waits for its end. The
// section of a transfer ends with its biodone.
//
// # Taking a device down
//
// The last close of a device, or its revocation, interrupts what is in progress
// (d_cancel, which does not wait), drains, and calls d_close, which is then alone:
//
//	                     Open: counts, then d_open
//	                   ┌──────────────────────────────┐
//	                   │          d_open fails        │
//	                   │      (never opened before)   │
//	┌────────┐ count 1 ▼                              │
//	│ closed ├─────► opening ──── d_open well ────► open ◄──┐ more opens
//	└────────┘         │                              │ └───┘ (character)
//	     ▲             │ revoked                      │ last Close, Revoke, or a
//	     │             │                              │ failed Open that was last
//	     │             └───────────┬──────────────────┘
//	     │                         ▼
//	     │   ┌─ closing ──────────────────────────────────────────┐
//	     │   │ No section can be entered: ENXIO. An open of a     │
//	     │   │ block device fails: EBUSY; of a character device   │
//	     │   │ it waits.                                          │
//	     │   │                                                    │
//	     │   │  d_cancel ─ nil ──► drain ──► d_close ──► drain    │
//	     │   │      │                           ▲                 │
//	     │   │      └── ENODEV, or no d_cancel ─┘                 │
//	     │   └────────────────────────┬───────────────────────────┘
//	     └────────────────────────────┘ openers and revokers are woken
//
// Opening counts as having the device open: d_open may sleep for ever, and a
// revoke closes the device under it. So d_close may be called for a device whose
// d_open has not returned, and must be idempotent.
//
// Each Node has a life within that one:
//
//	not open ──Open──► open (n times) ──Close × n──► not open
//	    └──────────────────┴───── Revoke ─────► gone, for ever
//
// # Locks
//
// FS.mu guards everything but the counts of sections. It is held for a few
// instructions and never while a driver, a trace function or an Iodone is called.
// The count of a queue is a devsw.Localcount, one word that is changed without a
// lock; its own mutex is taken by those who drain, and by the last to leave then.
// Lock order:
//
//	the driver's locks, or the table's one lock → FS.mu → Localcount's mutex
//
// Life.mu is a leaf: nothing else is locked under it, and no function is called.
//
// # Compared with NetBSD
//
// As of spec_vnops.c 1.219 and driver(9) with d_cancel:
//
//	NetBSD                      here                 the difference
//	spec_node_init              FS.Node              a Node is known to the device only while it has
//	                                                 opens or operations, so it needs no release
//	spec_node_destroy           (none)               Revoke forgets the node; the rest is garbage
//	                                                 collection
//	spec_node_lookup_by_dev     FS.Lookup            gives only nodes that have the device open
//	spec_node_lookup_by_mount   (none)               there are no mounts; see Claim
//	spec_node_setmountedfs      Node.Claim, Unclaim  for block and character devices; the claimer
//	                                                 may open again
//	spec_node_getmountedfs      (none)               a claim is answered by EBUSY, and not looked at
//	spec_node_revoke            Node.Revoke          the revoked node's Open fails with EBADF
//	                                                 whatever d_open answered
//	VOP_REVOKE(REVOKEALL)       FS.RevokeDevice      all nodes are marked before the first is
//	                                                 closed, so that only one close comes, with one
//	                                                 d_cancel
//	vdevgone                    FS.Vdevgone          the same, and it does not wait for an open that
//	                                                 sleeps: it wakes it
//	spec_io_enter, _exit        sections             a count for each queue instead of one for the
//	                                                 device; refused from closing on, not only to
//	                                                 revoked nodes; only a node that is itself open
//	                                                 can enter
//	spec_io_drain               Node.Drain, and      takes a context, and says what it waits for
//	                            within Close         (DrainError)
//	spec_open                   Node.Open            d_open is a section; a failed last open also
//	                                                 closes where the d_open of a revoked node still
//	                                                 sleeps. No module autoload, no kauth(9), no
//	                                                 size of the vnode
//	spec_close                  Node.Close           no buffer cache to flush, no controlling
//	                                                 terminal. Without a driver there is neither
//	                                                 d_cancel nor d_close
//	spec_read, spec_write       Node.Read, Write     a block device transfers directly, as physio(9)
//	                                                 does. flag is FNONBLOCK where there it is
//	                                                 IO_NDELAY
//	spec_strategy               Node.Strategy        the section ends with biodone and with the
//	                                                 return of d_strategy, whichever is later;
//	                                                 NetBSD's ends with the return, and its buffer
//	                                                 cache waits for the rest. No copy-on-write hook
//	spec_ioctl, spec_poll,      Node.Ioctl, Poll,    the same
//	spec_kqfilter               Kqfilter
//	spec_fdiscard               Node.Discard         a section here
//	(bdev_size)                 Node.Psize           a section here
//	spec_mmap, spec_fsync,      (none)               there are no mappings, no buffer cache, and no
//	spec_advlock, spec_bmap,                         file system above
//	spec_pathconf, ...
//	(none)                      Node.CancelBuf       one of several users can be stopped with the
//	                                                 device open
//	(none)                      Node.WaitClosed      EBUSY from a block open that comes a moment too
//	                                                 early can be waited for
//	(none)                      Lives, Life          an open and its close without a process that
//	                                                 waits for them
//	(none)                      WithTrace            the order of operations can be watched
//	(none)                      FS.InProgress        what is in progress, and since when
package specfs
