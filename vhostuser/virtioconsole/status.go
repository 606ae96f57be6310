package virtioconsole

import (
	"vdev/devsw"
	"vdev/specfs"
)

// State is how a port's device stands.
type State string

// The states of a port's device.
const (
	StateClosed  State = "closed"  // no ring of the port runs
	StateOpening State = "opening" // a console's output is kept meanwhile, other ports wait
	StateOpen    State = "open"
	StateFailed  State = "failed"  // it could not be opened; as opening, until the next start
	StateRevoked State = "revoked" // likewise
	StateClosing State = "closing" // cancel, drain, close
)

// Status is what a Device is doing at the moment.
type Status struct {
	Multiport bool // was negotiated
	// Ready: the guest driver has said DEVICE_READY 1, or had done so before this back-end came.
	Ready bool
	// RowsFirst is Config's.
	RowsFirst bool
	// Refused is how many control messages of the guest driver's were too short, unknown, or about
	// a port that it does not have.
	Refused uint64
	Ports   []PortStatus // by ID
}

// PortStatus is what a port is doing. Bytes and chains are counted from AddPort on.
type PortStatus struct {
	Port
	State State
	Err   error // of StateFailed
	// Attached: somebody is at the other side.
	Attached bool
	// Added, GuestReady and GuestOpen, with MULTIPORT: the guest driver was told of the port, has
	// answered that it is ready, and that it is open.
	Added, GuestReady, GuestOpen bool
	// Size is the window's, and Told what the guest was told of it with MULTIPORT. Zero: nothing is
	// known, or was told.
	Size, Told devsw.Winsize
	In, Out    uint64             // bytes that were given to the guest, and to the device
	Backlog    int                // bytes of a console's output that the device has not taken
	Dropped    uint64             // bytes of a console's output that were lost for that
	Odd        uint64             // chains without any room, or with buffers in the wrong direction
	Errors     uint64             // of d_read and d_write
	Operations []specfs.Operation // in progress on the device, the oldest first
}

// Status tells what the device is doing. It waits for nothing. Any goroutine.
func (d *Device) Status() Status {
	closing := make(map[devsw.Dev]specfs.DeviceStatus)
	for _, sd := range d.fs.Devices() {
		if sd.Mode == devsw.IFCHR {
			closing[sd.Dev] = sd
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	st := Status{Multiport: d.multi, Ready: d.ready, RowsFirst: d.rowsFirst, Refused: d.refused.Load()}
	for _, s := range d.slots {
		p := s.port.Load()
		if p == nil {
			continue
		}
		ps := PortStatus{
			Port: p.Port, State: StateClosed, Attached: p.side == sideThere,
			Added: s.told.port == p, GuestReady: s.guestReady, GuestOpen: s.guestOpen,
			Size: p.size, Told: s.told.size,
			In: p.count.in.Load(), Out: p.count.out.Load(), Backlog: p.backlog.len(), Dropped: p.count.dropped.Load(),
			Odd: p.count.odd.Load(), Errors: p.count.errs.Load(),
			Operations: closing[p.Dev].Operations,
		}
		switch l := p.life; {
		case closing[p.Dev].Closing:
			ps.State = StateClosing
		case l == nil:
		case p.open.Load() != nil:
			ps.State = StateOpen
		case l.Err() != nil:
			ps.State, ps.Err = StateFailed, l.Err()
		case p.lost:
			ps.State = StateRevoked
		default:
			ps.State = StateOpening
		}
		st.Ports = append(st.Ports, ps)
	}
	return st
}
