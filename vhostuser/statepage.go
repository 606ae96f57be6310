package vhostuser

import (
	"encoding/binary"
	"math"

	"vdev/internal/sys"
)

// The state page is the last page of an in-flight region that GET_INFLIGHT_FD has made: the back-end chooses the region's size
// (vhost-user, "Inflight I/O tracking"), and the front-end maps, keeps, brings back and, with GET_VRING_BASE_INFLIGHT, migrates
// all of it. The queues' parts stand before it, where every back-end looks for them.
const (
	statePageSize = 4096
	statePageMark = "vdevstat" // 8 bytes
	offStateMark  = 0
	offStateWord  = 8 // u64: the state, and above it the state with each bit inverted
	stateHeader   = 16
)

// StateKeeper is a Device that has something to tell whoever serves the guest next, beside the requests that the in-flight
// region records.
type StateKeeper interface {
	Device
	// SetStatePage gives the Device the page of the region that the front-end has brought, which the Device then owns: nil where the
	// region has none or is dropped. It is called on the connection's goroutine while no ring runs.
	SetStatePage(p *StatePage)
}

// StatePage keeps 32 bits of a Device's own beyond the end of the process. Whoever owns it closes it, and sees to it that there is
// one call at a time.
type StatePage struct {
	fd    *sys.FD // a duplicate of the region's
	off   int64
	state uint32
}

// State returns what was stored last, by this process or by another one: 0 where nothing was, or where it is not to be trusted. The
// page is the front-end's to change: each bit may have any value.
func (p *StatePage) State() uint32 { return p.state }

// Store stores the state: when it returns, a successor finds it, though this process be killed. It goes by a system call, so that a
// front-end that cuts off the file causes no fault; where that fails the successor finds nothing.
func (p *StatePage) Store(state uint32) {
	p.state = state
	_, _ = sys.Pwritev(p.fd.Int(), [][]byte{stateWord(state)}, p.off+offStateWord, false)
}

// Close lets go of the page. What was stored stays with the front-end.
func (p *StatePage) Close() { p.fd.Close() }

// stateWord is the form in the page: one word, so that it is there as a whole or not at all.
func stateWord(state uint32) []byte {
	return binary.LittleEndian.AppendUint64(nil, uint64(state)|uint64(^state)<<32)
}

// markStatePage makes a state page of the memory at off of a region that is new.
func markStatePage(region *sys.FD, off int64) error {
	page := append([]byte(statePageMark), stateWord(0)...)
	if _, errno := sys.Pwritev(region.Int(), [][]byte{page}, off, false); errno != 0 {
		return errno
	}
	return nil
}

// openStatePage finds the state page of a region of d, whose file is region: nil for one that was made by somebody else.
func openStatePage(d Inflight, region *sys.FD) *StatePage {
	if d.MmapSize < d.statePage()+statePageSize {
		return nil
	}
	if d.MmapOffset > math.MaxInt64-d.statePage()-statePageSize {
		return nil
	}
	off := int64(d.MmapOffset + d.statePage())
	header := make([]byte, stateHeader)
	if n, errno := sys.Preadv(region.Int(), [][]byte{header}, off); errno != 0 || n < len(header) {
		return nil
	}
	if string(header[offStateMark:][:len(statePageMark)]) != statePageMark {
		return nil
	}
	fd, err := region.Dup()
	if err != nil {
		return nil
	}
	p := &StatePage{fd: fd, off: off}
	word := binary.LittleEndian.Uint64(header[offStateWord:])
	if state := uint32(word); uint32(word>>32) == ^state {
		p.state = state
	}
	return p
}

// statePage returns the offset in the region of the page behind all queues.
func (d Inflight) statePage() uint64 { return (d.size() + statePageSize - 1) &^ (statePageSize - 1) }
