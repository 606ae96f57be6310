// Package devsw is the device switch: tables of functions for block devices
// (Bdevsw) and character devices (Cdevsw), found by device number (Dev), after
// NetBSD's driver(9) and sys/kern/subr_devsw.c.
//
// A driver fills in the functions it has and attaches them to a Table; whoever
// uses devices does so through package specfs, which sees to it that a driver's
// d_close is alone. The example there is a whole driver.
//
// # Writing a driver
//
// A transfer (Buf) is handed to d_strategy, which starts it and returns; the
// driver ends it with Biodone, exactly once, on any goroutine. Reads and writes
// of characters (Uio) may sleep.
//
// d_cancel interrupts all that, and does not wait. Two helpers make it easy to
// write: Cv, to sleep until there is something to do or the unit is cancelled,
// and BufSet, for transfers that are in progress somewhere. With both the rule is:
// d_cancel cancels, and d_close resets. Where a driver's transfers are done by
// the issuer (Buf.AIO), d_cancel is AIO.CancelAll, and CancelBuf, which ends one
// transfer with the device open, AIO.Cancel.
//
// d_close may be called for a unit that is not open, or whose d_open failed: it
// is idempotent.
//
// Memory of a transfer that is shared with another process can vanish. A driver
// touches it by Buf.MoveAt, which answers EFAULT then, or lets the kernel do so.
//
// # Compared with NetBSD
//
// As of subr_devsw.c 1.53:
//
//	NetBSD                     here                 the difference
//	devsw_init                 NewTable             a Table is a value, there may be several
//	devsw_attach               Table.Attach         stricter: a block major always needs a bdev, and
//	                                                a major that a detached name had is EEXIST for
//	                                                others. Chosen majors are from 400 on. A name
//	                                                without a block major may get one later, and
//	                                                keeps it: there one that is asked for is EINVAL,
//	                                                and one that is chosen is not remembered
//	devsw_detach               Table.Detach         waits for opens in progress as there, and for
//	                                                last closes, and answers EBUSY, and changes
//	                                                nothing, where a device of the driver is open.
//	                                                Until that is known only opens are refused:
//	                                                d_cancel has to reach an open that sleeps. There
//	                                                every lookup fails at once
//	bdevsw_lookup,             BdevswLookup,        the same
//	bdevsw_lookup_major, ...   BdevswLookupMajor
//	bdevsw_lookup_acquire, ... (in BdevOpen),       an open takes a reference, by a Localcount, as
//	                           BdevswAcquire, ...   there; here a last close takes one too, so that
//	                                                it has one driver from d_cancel on
//	devsw_name2blk, _name2chr  Name2blk, Name2chr   the same
//	devsw_blk2name,            BdevswGetname        names outlive the driver
//	bdevsw_getname
//	devsw_chr2blk, _blk2chr    Chr2blk, Blk2chr     the same
//	bdev_open, bdev_close, ... BdevOpen, ...        a function that is nil answers as NetBSD's no...
//	                                                functions do (ENODEV); d_open and d_close that
//	                                                are nil do nothing, as nullopen
//	cdev_open, cdev_read, ...  CdevOpen, ...        the same; d_poll takes a function to call
//	                                                instead of a thread; the flags of d_read and
//	                                                d_write are those of an open (FNONBLOCK), where
//	                                                specfs hands over IO_NDELAY and its like
//	bdev_detached,             (none)               there is no autoconf(9): no d_devtounit, no
//	dev_minor_unit                                  d_cfdriver
//	(none)                     BdevCancelBuf        one of several users of a device can be stopped
//	                                                with the device open
//	nopoll, nokqfilter         (nil)                the same: always ready for reads and writes
//	KERNEL_LOCK                Table.Lock           one to a Table, and not recursive
//	biodone                    Buf.Biodone          twice is a panic; ends the I/O section
//	localcount(9)              Localcount           one word; several make a count that is spread
//	condvar(9)                 Cv                   knows of cancelling
//	physio, uiomove            specfs, Uio.Uiomove
package devsw
