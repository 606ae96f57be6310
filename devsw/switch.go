package devsw

// Bdevsw is a block device driver: its operations and its type.
// NetBSD: struct bdevsw, driver(9).
//
// An operation that is nil answers as its comment says. A Bdevsw is not changed
// once attached.
type Bdevsw struct {
	// Name is for messages. It need not be the name the driver is attached by.
	Name string

	// Open makes the unit ready. It is called for every open, so possibly for a
	// unit that is open already, and may sleep for ever; Cancel must wake it.
	// Nil: nothing to do.
	Open func(dev Dev, flag Flag, mode Mode) error

	// Cancel interrupts every operation in progress on the unit, an Open
	// included, and every one that begins before Close is called, and returns
	// without waiting for them. It must not sleep. It is called once per last
	// close, before Close, and answers nil or ENODEV. After nil the device is
	// drained before Close is called, so Close is alone. ENODEV, which is also
	// what nil (no function) means: Close is called at once, interrupts what is
	// in progress itself, and is not alone.
	Cancel func(dev Dev, flag Flag, mode Mode) error

	// Close releases what Open took. It is called once per last close, and also for a unit whose
	// Open failed or never returned: it is idempotent. Nil: nothing to do.
	Close func(dev Dev, flag Flag, mode Mode) error

	// Strategy starts the transfer b and returns; it must not sleep. The
	// transfer ends with b.Biodone. Nil: ENODEV.
	Strategy func(b *Buf)

	// CancelBuf interrupts one transfer, b, if the driver has it in progress and can interrupt it.
	// It returns without waiting, and must not sleep: b ends by biodone, as ever, with ECANCELED.
	// It is called while the unit is open; if b has an AIO, on the goroutine that issued b. b may
	// have ended by then: the driver looks for b among those it has, and reads nothing of it but
	// what the issuer set. A transfer that is just being handed from one place to another may be
	// missed: the caller calls again. It is for stopping one of several users of a device that
	// stays open. vdev's own: NetBSD has only the d_cancel of a whole device. Nil: ENODEV.
	CancelBuf func(b *Buf)

	// Ioctl runs a command; see Cmd for the type of data. Nil: ENODEV.
	Ioctl func(dev Dev, cmd Cmd, data any, flag Flag) error

	// Dump writes p at block blkno (units of DEVBSIZE). It may be called for a
	// unit that is not open, with the system in any state: it takes no lock and
	// does not sleep. Nil: ENODEV.
	Dump func(dev Dev, blkno int64, p []byte) error

	// Psize is the size in units of DEVBSIZE, -1 where there is none. Nil: -1.
	Psize func(dev Dev) int64

	// Discard discards the bytes pos to pos+n: they need not be kept. Nil: ENODEV.
	Discard func(dev Dev, pos, n int64) error

	// Flag is DDisk, DTape or DOther, and DMPSafe.
	Flag DFlag
}

// Cdevsw is a character device driver: its operations and its type.
// NetBSD: struct cdevsw, driver(9). What is said of Bdevsw goes for it too.
type Cdevsw struct {
	// Name is for messages. It need not be the name the driver is attached by.
	Name string

	// Open, Cancel and Close are as in Bdevsw.
	Open   func(dev Dev, flag Flag, mode Mode) error
	Cancel func(dev Dev, flag Flag, mode Mode) error
	Close  func(dev Dev, flag Flag, mode Mode) error

	// Read moves bytes into u, at least one unless u is empty or the end is reached. It may sleep
	// for them; with FNONBLOCK in flag it answers EAGAIN instead (on NetBSD the flags are
	// vn_read's, and it is IO_NDELAY). specfs does not call it for no bytes. Cancel wakes it: see
	// Cv. Nil: ENODEV.
	Read func(dev Dev, u *Uio, flag Flag) error

	// Write moves bytes out of u, and may sleep like Read. Nil: ENODEV.
	Write func(dev Dev, u *Uio, flag Flag) error

	// Ioctl runs a command; see Cmd for the type of data. Nil: ENODEV.
	Ioctl func(dev Dev, cmd Cmd, data any, flag Flag) error

	// Stop stops or flushes output of a terminal. Nil: nothing.
	Stop func(tp *Tty, flag Flag)

	// TTY is the unit's terminal, or nil. Nil: nil.
	TTY func(dev Dev) *Tty

	// Poll answers which of events the unit is ready for, and POLLERR and
	// POLLHUP where they are so. Where none is and wake is not nil, wake is
	// called once when one may be: see Selinfo. It does not sleep. Nil: always
	// ready for all of them.
	Poll func(dev Dev, events PollEvents, wake func()) PollEvents

	// Mmap gives the driver's own name for the page at byte offset off, or -1.
	// Nil: -1.
	Mmap func(dev Dev, off int64, flag Flag) int64

	// Kqfilter attaches kn to the unit: see Klist. Nil: always ready for reads
	// and writes.
	Kqfilter func(dev Dev, kn *Knote) error

	// Discard discards the bytes pos to pos+n: they need not be kept. Nil: ENODEV.
	Discard func(dev Dev, pos, n int64) error

	// Flag is the driver's type, and DMPSafe.
	Flag DFlag
}

// Tty is a terminal, as far as the device switch has to do with it.
// NetBSD: struct tty.
type Tty struct {
	Dev    Dev // the character device it belongs to
	Driver any // the driver's
}
