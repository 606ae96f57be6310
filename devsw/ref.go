package devsw

// Ref is a reference on the driver of one device: a Detach waits until it is
// released. With it a last close calls d_cancel and d_close of one driver, or
// neither of them, whatever is attached and detached meanwhile. It is used on one
// goroutine at a time.
// NetBSD: bdevsw_lookup_acquire, cdevsw_lookup_acquire, which are for opens alone.
type Ref struct {
	t   *Table
	a   *attached
	dev Dev
}

// BdevswAcquire gives a reference on the driver of a block device, nil where
// there is no driver, or none any more. It never waits.
func (t *Table) BdevswAcquire(dev Dev) *Ref { return acquire(t, &t.bdev, dev) }

// CdevswAcquire gives a reference on the driver of a character device; see
// BdevswAcquire.
func (t *Table) CdevswAcquire(dev Dev) *Ref { return acquire(t, &t.cdev, dev) }

func acquire[T any](t *Table, list *drivers[T], dev Dev) *Ref {
	e := lookup(list, dev)
	if e == nil || !e.refs.Acquire() {
		return nil
	}
	return &Ref{t: t, a: &e.attached, dev: dev}
}

// Release ends the reference. It is called once, and the Ref is not used any more.
func (r *Ref) Release() { r.a.refs.Release() }

// Cancel calls d_cancel. ENODEV: the driver has none.
func (r *Ref) Cancel(flag Flag, mode Mode) error {
	if r.a.cancel == nil {
		return ENODEV
	}
	r.t.enter(r.a.flag)
	defer r.t.exit(r.a.flag)
	return r.a.cancel(r.dev, flag, mode)
}

// Close calls d_close. Whatever that answers, the device counts as closed.
func (r *Ref) Close(flag Flag, mode Mode) error {
	defer r.closed()
	if r.a.close == nil {
		return nil
	}
	r.t.enter(r.a.flag)
	defer r.t.exit(r.a.flag)
	return r.a.close(r.dev, flag, mode)
}

// closed notes that the device is closed.
func (r *Ref) closed() {
	r.t.mu.Lock()
	defer r.t.mu.Unlock()
	delete(r.a.isOpen, r.dev)
}

// open calls d_open. It alone takes a reference on the driver for the length of
// the call by itself, since nothing else keeps the driver attached yet.
func open[T any](t *Table, list *drivers[T], dev Dev, flag Flag, mode Mode) error {
	e := lookup(list, dev)
	if e == nil || !e.opens.Acquire() {
		return ENXIO
	}
	defer e.opens.Release()
	step("open acquired")
	if e.open != nil {
		t.enter(e.flag)
		defer t.exit(e.flag)
		if err := e.open(dev, flag, mode); err != nil {
			return err
		}
		step("d_open returned")
	}
	// From here on the driver cannot be detached, before the open's own reference is let go.
	t.mu.Lock()
	defer t.mu.Unlock()
	e.isOpen[dev] = struct{}{}
	return nil
}

// cancel calls d_cancel of the driver there is.
func cancel(r *Ref, flag Flag, mode Mode) error {
	if r == nil {
		return ENXIO
	}
	defer r.Release()
	return r.Cancel(flag, mode)
}

// closeDev calls d_close of the driver there is.
func closeDev(r *Ref, flag Flag, mode Mode) error {
	if r == nil {
		return ENXIO
	}
	defer r.Release()
	return r.Close(flag, mode)
}
