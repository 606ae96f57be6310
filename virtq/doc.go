// Package virtq is the device side of a virtqueue: it takes the descriptor chains that a guest
// driver made available, and puts them on the used ring. Split rings are what there is ("Split
// Virtqueues" in the virtio specification, 2.7 in version 1.2), with indirect descriptors,
// notification suppression by flags and by event index, and for legacy devices as well as for those
// of virtio 1.
//
// One goroutine owns a Queue; nothing here locks. The guest driver runs at the same time, and is
// not trusted: a Pop reads every descriptor once, into memory of our own, and checks and uses only
// the copy; every walk is bounded; what leaves the specification breaks the ring, for good, with a
// *BrokenError that names the cause. Once broken, a ring's memory is not touched again.
//
// The order of memory accesses rests on sync/atomic, which is sequentially consistent:
//
//   - avail.idx is loaded before the entries and descriptors that it covers are read;
//   - used elements and all data are written before used.idx is stored (Publish);
//   - used.idx is stored before avail.flags or used_event is loaded (Publish), and avail_event or
//     used.flags is stored before avail.idx is looked at again (EnableNotify). Each side stores its
//     own and then loads the other's, so that one of the two sees that a notification is due.
//
// flags and idx of the used ring are both ours and are stored as one 32-bit word. avail_event has
// something that is not ours beside it, and is replaced in its word by compare-and-swap.
//
// Memory that the front-end took away faults when it is touched. Where the owner of a Queue turns
// faults into panics (debug.SetPanicOnFault) and recovers, the counts are still right: a chain
// whose Push faulted is not in flight any more, one whose Pop faulted never was. The Queue is then
// to be given up with Break, and drained as usual.
//
// A chain that is not to be used yet is suspended (Queue.Suspend): it holds no guest memory, and
// Pop gives it out again. What nothing newer has overtaken can return to the available ring
// (Queue.Unfetch).
//
// With an in-flight region (Config.Inflight) a Queue outlives its process: what was fetched and not
// used is suspended in the next Queue on the same ring. tracker says in which order the region is
// written.
//
// While the guest is being moved to another host (Queue.SetLog), what the device writes is marked
// in a dirty log: a chain's buffers between the device's last write to them and the store of
// used.idx, the used ring after each store. A device that was killed between that store and the
// mark has its successor mark the whole used ring. For the chains that are in flight when the log
// begins, descriptors are read once more; the buffers that are found so are marked, and not
// touched.
//
// Fields of the rings are little-endian; a legacy device's have the guest's byte order. Only
// little-endian hosts are built for, whose guests are taken to be the same, so both are one.
package virtq
