// Package fault is a disk that stands on another one and does, on command, what storage does on a
// bad day. NetBSD has no such driver; Linux's dm-delay, dm-flakey and dm-log-writes are related.
//
// # Rules
//
// A Rule says what happens (Action) to which operations (Ops), where, how often and by what chance.
// Rules come with the Config, by the ioctl FAULTSET, or as text (ParseRule). All rules that match
// an operation act on it, in the order they were set. First come the delays, added up, and the
// hangs. Then the first rule that ends the operation (error, short, crash) does so; without one the
// operation goes to the lower device:
//
//	delay   it begins later
//	hang    it begins when it is released (FAULTRELEASE)
//	error   it fails with an errno, and does nothing
//	short   only the first part is transferred, without an error
//	crash   the power fails (see below); the operation itself fails with EIO
//
// Each rule has a random generator of its own, with the rule's seed: the same operations in the
// same order meet the same faults.
//
// d_cancel ends operations that are delayed or hang with ECANCELED. Where the rule says
// "uncancellable" it does not, as there is storage that cannot cancel; a drain then waits until
// their time has passed or they are released. A delay of d_cancel itself makes it slow. An error of
// d_cancel makes it refuse with ENODEV, as a driver without one does; NewWithoutCancel makes a
// driver whose table has none. d_close then does d_cancel's work. Delays of d_cancel and of d_close
// are not cancelled. CancelBuf ends one transfer that is held in the same way; for any other it
// calls the lower device's CancelBuf.
//
// # The volatile cache
//
// With Config.Cache writes stay in memory, and reads see them there, until a flush or BMediaFUA
// puts them on the lower device. At a crash, chance decides for each sector that is only in memory
// whether it has reached the medium. So a write of many sectors is torn, and writes take effect out
// of order. Discards and zeroes have no such delay. The cache stays as it is while the device is
// closed and opened again, as a disk's does when its machine is reset. When the unit is destroyed,
// the contents of the cache are lost. The guest is not told, since a disk that loses its cache with
// its power does not tell either, and the cache is there to play such a disk. So
// devsw.DiskInfo.Holds does not mean the cache: it is the lower device's.
//
// # The lower device
//
// d_open opens it through the device switch, and d_close closes it. Nobody else may use it. It is
// taken down as specfs takes devices down: cancel, drain, close. If its d_cancel answers ENODEV, so
// does this one.
//
// A unit is open through its block device or through its character device, not through both: EBUSY.
//
// # Concurrency
//
// The goroutine that issues a transfer hands it on, with the issuer's AIO and without an
// allocation, if no rule delays it. A goroutine of the driver's own hands on a transfer that was
// delayed or hung, without an AIO: the issuer's must not be used there.
//
// Lock order: the right to write a cache out (cache.writing), then softc.mu, then cache.mu,
// xferList.mu and the locks of the BufSets. Only the first is held while another driver is called
// or while anything is waited for. Without rules and cache a transfer takes xferList.mu alone.
package fault
