// Package fault is a disk that stands on another one and does, on command, what storage does on a bad day. NetBSD has no such
// driver; Linux's dm-delay, dm-flakey and dm-log-writes are the relatives.
//
// # Rules
//
// A Rule says what happens (Action) to which operations (Ops), where, how often and by what chance. Rules come with the Config,
// by the ioctl FAULTSET, or as text (ParseRule). All rules that match an operation act on it, in the order they were set: first
// the delays, added up, and the hangs; then the first rule that ends it (error, short, crash) does so, or else it goes to the
// lower device:
//
//	delay   it begins later
//	hang    it begins when it is released (FAULTRELEASE)
//	error   it fails with an errno, and does nothing
//	short   only the first part is transferred, without an error
//	crash   the power fails (see below); the operation itself fails with EIO
//
// What is random comes from a generator for each rule, with the rule's seed: the same operations in the same order meet the same
// faults.
//
// d_cancel ends what is delayed or hangs with ECANCELED, except where the rule says "uncancellable"; a drain then waits for its
// time or release, since cancelling is what other storage cannot do either. In d_cancel itself a delay makes it slow and an error
// makes it refuse with ENODEV, as a driver without one does; NewWithoutCancel makes a driver whose table has none. d_close then
// does d_cancel's work. Neither a delay in d_cancel nor one in d_close is cancelled. CancelBuf ends one transfer that is held in the
// same way, and is passed on for one that is not.
//
// # The volatile cache
//
// With Config.Cache writes stay in memory, and reads see them there, until a flush or BMediaFUA puts them on the lower device. A
// crash decides for each sector that is only in memory, by chance, whether it has reached the medium: so a write of many sectors
// is torn, and writes take effect out of order. Discards and zeroes have no such delay. The cache stays as it is while the
// device is closed and opened again, as a disk's does when its machine is reset; what is in it when the unit is destroyed is
// lost. The guest is not told of that: a disk that loses its cache with its power does not tell, either, and to play such a disk is
// what the cache is for. So it is none of what devsw.DiskInfo.Holds is about, which is the lower device's.
//
// # The lower device
//
// It is opened, through the device switch, by d_open and closed by d_close, and must not be used by anybody else. It is taken
// down as specfs takes devices down: cancel, drain, close. Its d_cancel's ENODEV is passed on.
//
// A unit is open through its block device or through its character device, not through both: EBUSY.
//
// # Concurrency
//
// A transfer that no rule delays is handed on by the goroutine that issues it, with the issuer's AIO, and costs no allocation. One
// that was delayed, or hung, is handed on by a goroutine of the driver's own, without an AIO: that of the issuer must not be used
// there.
//
// Lock order: the right to write a cache out (cache.writing), then softc.mu, then cache.mu, xferList.mu and the locks of the
// BufSets. Only the first is held while another driver is called or while anything is waited for. Without rules and cache a
// transfer takes xferList.mu alone.
package fault
