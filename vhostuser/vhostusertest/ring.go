package vhostusertest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/virtq/virtqtest"
)

// Ring is one virtqueue, seen by the front-end and the guest driver: the guest driver (Driver), and
// the descriptors that wake either side.
type Ring struct {
	*virtqtest.Driver
	Index int // as the front-end counts, from 0
	// Base is where the ring begins when it is started: at first where the Driver begins, then what
	// GET_VRING_BASE has answered.
	Base uint16

	f               *Frontend
	kick, call, err *sys.FD
}

// NewRing makes a ring with size descriptors in m, with the features that SetFeatures sent.
func (f *Frontend) NewRing(m *virtqtest.Mem, index, size int) (*Ring, error) {
	d := virtqtest.New(m, size, f.ringFeatures())
	r := &Ring{Driver: d, Index: index, f: f, Base: d.Layout().Base}
	for _, fd := range []**sys.FD{&r.kick, &r.call, &r.err} {
		var err error
		if *fd, err = sys.NewEventfd(); err != nil {
			r.Close()
			return nil, err
		}
	}
	return r, nil
}

func (f *Frontend) ringFeatures() uint64 {
	return f.features &^ (vhostuser.FProtocolFeatures | vhostuser.FLogAll)
}

// Renew makes the ring, which has stopped, one of a guest driver that begins anew: the ring is zero
// and empty where it was, begins at 0, and has the features that SetFeatures sent.
func (r *Ring) Renew() {
	r.Driver = r.Driver.Renew(r.f.ringFeatures())
	r.Base = r.Layout().Base
}

// StartAt is the Driver's StartAt, and makes the back-end begin there as well.
func (r *Ring) StartAt(idx uint16) {
	r.Driver.StartAt(idx)
	r.Base = idx
}

// Close closes the ring's descriptors.
func (r *Ring) Close() { sys.CloseAll([]*sys.FD{r.kick, r.call, r.err}) }

// KickFD, CallFD and ErrFD return the eventfds, which stay the ring's.
func (r *Ring) KickFD() int { return r.kick.Int() }

// CallFD returns the eventfd that the back-end signals completions on.
func (r *Ring) CallFD() int { return r.call.Int() }

// ErrFD returns the eventfd that the back-end signals a broken ring on.
func (r *Ring) ErrFD() int { return r.err.Int() }

// Setup sends all that describes the ring, without starting it: call and error descriptors, size,
// base and addresses.
func (r *Ring) Setup() error {
	err := r.f.SetVringErr(r.Index, r.err.Int())
	if err == nil {
		err = r.f.SetVringCall(r.Index, r.call.Int())
	}
	if err == nil {
		err = r.f.SetVringNum(r.Index, r.Layout().Size)
	}
	if err == nil {
		err = r.f.SetVringBase(r.Index, uint32(r.Base))
	}
	if err == nil {
		err = r.f.SetVringAddr(r.Addr())
	}
	return err
}

// Addr returns the payload of SET_VRING_ADDR. Where SetFeatures sent VHOST_F_LOG_ALL, the used ring
// is marked too.
func (r *Ring) Addr() vhostuser.VringAddr {
	layout := r.Layout()
	a := vhostuser.VringAddr{Index: uint32(r.Index), Desc: layout.Desc, Avail: layout.Avail, Used: layout.Used, Log: r.UsedPhys()}
	if r.f.features&vhostuser.FLogAll != 0 {
		a.Flags = vhostuser.VringLog
	}
	return a
}

// Start starts and enables the ring as QEMU does.
func (r *Ring) Start() error {
	err := r.Setup()
	if err == nil {
		err = r.f.SetVringKick(r.Index, r.kick.Int())
	}
	if err == nil && r.f.features&vhostuser.FProtocolFeatures != 0 {
		err = r.f.SetVringEnable(r.Index, true)
	}
	return err
}

// Stop disables the ring and stops it, as QEMU does.
func (r *Ring) Stop() error {
	if r.f.features&vhostuser.FProtocolFeatures != 0 {
		if err := r.f.SetVringEnable(r.Index, false); err != nil {
			return err
		}
	}
	var err error
	r.Base, err = r.f.GetVringBase(r.Index)
	return err
}

// Reconnect makes the ring one of f, another connection of the same guest. It does as QEMU does
// when it has lost the back-end, and with it the answer to GET_VRING_BASE: the ring begins where
// the used ring ends. Start starts it there.
func (r *Ring) Reconnect(f *Frontend) {
	r.f = f
	r.Base = r.UsedIdx()
}

// Notify shows the back-end what was added, and kicks it if it wants that.
func (r *Ring) Notify() error {
	if !r.Kick() {
		return nil
	}
	return sys.EventfdWrite(r.kick.Int())
}

// Called tells whether the call descriptor was signalled since it was asked last.
func (r *Ring) Called() bool {
	_, err := sys.EventfdRead(r.call.Int())
	return err == nil
}

// Failed tells whether the error descriptor was signalled since it was asked last.
func (r *Ring) Failed() bool {
	_, err := sys.EventfdRead(r.err.Int())
	return err == nil
}

// Wait waits for the next used element, sleeping on the call descriptor, and returns it as Used
// does.
func (r *Ring) Wait() (head uint16, written uint32, err error) {
	return r.WaitContext(context.Background())
}

// WaitContext is Wait, which the end of ctx ends as well. Its error is ctx's cause then.
func (r *Ring) WaitContext(ctx context.Context) (head uint16, written uint32, err error) {
	woken := make(chan struct{})
	sleeps := context.AfterFunc(ctx, func() {
		defer close(woken)
		// It fails only where nobody could sleep on it either.
		_ = sys.EventfdWrite(r.call.Int())
	})
	defer func() {
		if !sleeps() {
			<-woken // after which the descriptor may be closed
		}
	}()
	deadline := time.Now().Add(Timeout)
	for {
		if ctx.Err() != nil {
			return 0, 0, context.Cause(ctx)
		}
		if head, written, ok := r.Used(); ok {
			return head, written, nil
		}
		if r.EnableCalls() {
			continue
		}
		left := time.Until(deadline)
		if left <= 0 {
			return 0, 0, fmt.Errorf("ring %d: no completion within %v", r.Index, Timeout)
		}
		if err := sys.WaitReadable(r.call.Int(), left); err != nil {
			return 0, 0, err
		}
		r.Called()
		r.DisableCalls()
	}
}

// Do adds one chain, notifies, and waits until it was used.
func (r *Ring) Do(readable, writable []virtqtest.Seg) (written uint32, err error) {
	if _, ok := r.Add(readable, writable); !ok {
		return 0, errors.New("no room in the ring")
	}
	if err := r.Notify(); err != nil {
		return 0, err
	}
	_, written, err = r.Wait()
	return written, err
}
