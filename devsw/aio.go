package devsw

// AIO is asynchronous file I/O in the context (an event loop, say) that issued a Buf. A driver
// finds it in Buf.AIO, and calls ReadAt and WriteAt from its d_strategy and Cancel from its
// CancelBuf, on the goroutine of that context. done is called on the same goroutine, later or
// before ReadAt or WriteAt has returned.
type AIO interface {
	// ReadAt reads b.Bcount bytes at byte offset off of descriptor fd into
	// b.Data. It ends with n == b.Bcount, with fewer at the end of the file, or
	// with an error. fd stays open until done is called.
	ReadAt(b *Buf, fd int, off int64, done AIODone)

	// WriteAt writes b.Data, b.Bcount bytes, at byte offset off of descriptor
	// fd. With BMediaFUA in b.Flags the data is on stable storage when done is
	// called.
	WriteAt(b *Buf, fd int, off int64, done AIODone)

	// Cancel interrupts the transfer of b, if it is in flight here and the host
	// can: it ends with ECANCELED, possibly before Cancel returns. On the
	// goroutine of the context.
	Cancel(b *Buf)

	// CancelAll interrupts the transfers in flight that have this done, where the host can: they
	// end with ECANCELED. It may be called on any goroutine and does not block.
	CancelAll(done AIODone)
}

// AIODone is told of the end of a transfer. Drivers implement it on a type that
// lives as long as the unit, so that a transfer costs no closure.
type AIODone interface {
	// AIODone says that the transfer of b has ended after n bytes. The driver
	// sets b.Resid and b.Error and calls b.Biodone. The AIO of a context has set
	// b.InContext.
	AIODone(b *Buf, n int64, err Errno)
}

// Turner is what an AIO may be beside: a context that lets a driver go on with a long piece of work
// later, so that others there have their turn.
type Turner interface {
	// NextTurn has done called on the goroutine of the context, soon, when the
	// others there have had their turn: with n == 0 and no error, or with
	// ECANCELED where Cancel or CancelAll was called meanwhile. It is called on
	// that goroutine too, by the driver that has b.
	NextTurn(b *Buf, done AIODone)
}

// Watcher is what an AIO may be beside: a context that looks after a connection, so that what comes
// from it need not go from one goroutine to another.
type Watcher interface {
	// Watch has w called on the goroutine of the context, soon, whenever fd has
	// become readable, and again as long as that is worth it, until w.Poll says
	// that it is over. fd stays open until w.Over is called. wake makes the
	// context call w.Poll soon. Watch and wake may be called on any goroutine,
	// and do not block; fd is not read, nor are its flags changed.
	Watch(fd int, w Watched) (wake func())
}

// Watched is what a Watcher calls. None of the methods may block.
type Watched interface {
	// Poll does the work there is, or a good deal of it. It tells whether there was any (worked),
	// and whether Poll is not to be called again (over).
	Poll() (worked, over bool)
	// Sleep says that the context is about to sleep until fd becomes readable.
	Sleep()
	// Over says that the watch has ended: fd is not used any more.
	Over()
}
