package vhostuser

import (
	"encoding/binary"
	"math"
	"runtime/debug"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
)

// The state page is the last page of an in-flight region that GET_INFLIGHT_FD has made: the
// back-end chooses the region's size (vhost-user, "Inflight I/O tracking"), and the front-end maps,
// keeps, brings back and, with GET_VRING_BASE_INFLIGHT, migrates all of it. The queues' parts stand
// before it, where every back-end looks for them.
const (
	statePageSize = 4096
	statePageMark = "vdevstat" // 8 bytes
	offStateMark  = 0
	offStateWord  = 8  // u64: the state, and above it the state with each bit inverted
	offStateTag   = 16 // u64
	stateHeader   = 24
)

// StateKeeper is a Device that keeps a state for whoever serves the guest next, beside the requests
// that the in-flight region records.
type StateKeeper interface {
	Device
	// SetStatePage gives the Device the page of the region that the front-end has brought, which
	// the Device then owns: nil where the region has none or is dropped. It is called on the
	// connection's goroutine while no ring runs.
	SetStatePage(p *StatePage)
}

// StatePage keeps 32 bits and a number of a Device's own beyond the end of the process. Whoever
// owns it closes it, and sees to it that there is one call at a time.
//
// It is a mapping of its own. A system call on the file would wait while the front-end makes the
// host fill the file or a part of it. It would fail where the front-end has sealed the file against
// further writing.
type StatePage struct {
	mapped *guestmem.Region // stateHeader bytes
	state  uint32
	tag    uint64
}

// State returns what was stored last, by this process or by another one: 0 where nothing was, or
// where it cannot be trusted. The front-end can change the page: each bit may have any value.
func (p *StatePage) State() uint32 { return p.state }

// Tag returns the number that was stored with the state: 0 where nothing was. It may have any
// value, too.
func (p *StatePage) Tag() uint64 { return p.tag }

// Store stores the state and a number. When it returns, a successor finds them, even if this
// process is killed. Before that, it may find either number, with a state that has all bits of the
// old state, of the new one and of doubt. Where the front-end has truncated the file, the successor
// finds nothing. Store does not wait. Any goroutine.
func (p *StatePage) Store(state uint32, tag uint64, doubt uint32) {
	before, change := p.state, p.tag != tag
	p.state, p.tag = state, tag
	_ = p.touch(func(header []byte) {
		if change {
			guestmem.Store64(header[offStateWord:], stateWord(before|state|doubt))
			guestmem.Store64(header[offStateTag:], tag)
		}
		guestmem.Store64(header[offStateWord:], stateWord(state))
	})
}

// touch calls f with the header, and returns the fault that has ended f, where the front-end has
// cut off the file.
func (p *StatePage) touch(f func(header []byte)) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = faultError(r)
		}
	}()
	f(p.mapped.Bytes())
	return nil
}

// Close unmaps the page. What was stored stays with the front-end.
func (p *StatePage) Close() { p.mapped.Release() }

// stateWord is the form in the page: one word, so that it is there as a whole or not at all.
func stateWord(state uint32) uint64 { return uint64(state) | uint64(^state)<<32 }

// markStatePage makes a state page of the memory at off of a region that is new.
func markStatePage(region *sys.FD, off int64) error {
	page := binary.LittleEndian.AppendUint64([]byte(statePageMark), stateWord(0))
	if _, errno := sys.Pwritev(region.Int(), [][]byte{page}, off, false); errno != 0 {
		return errno
	}
	return nil
}

// openStatePage finds the state page of a region of d, whose file is region: nil for one that was
// made by somebody else. What it maps counts in space.
func openStatePage(space *guestmem.Space, d Inflight, region *sys.FD) *StatePage {
	if d.MmapSize < d.statePage()+statePageSize {
		return nil
	}
	if d.MmapOffset > math.MaxInt64-d.statePage()-statePageSize {
		return nil
	}
	fd, err := region.Dup()
	if err != nil {
		return nil
	}
	mapped, err := space.Map(0, stateHeader, 0, d.MmapOffset+d.statePage(), fd)
	if err != nil {
		return nil
	}
	p := &StatePage{mapped: mapped}
	header := make([]byte, stateHeader)
	err = p.touch(func(shared []byte) { copy(header, shared) })
	if err != nil || string(header[offStateMark:][:len(statePageMark)]) != statePageMark {
		p.Close()
		return nil
	}
	if word := binary.LittleEndian.Uint64(header[offStateWord:]); word == stateWord(uint32(word)) {
		p.state, p.tag = uint32(word), binary.LittleEndian.Uint64(header[offStateTag:])
	}
	return p
}

// statePage returns the offset in the region of the page behind all queues.
func (d Inflight) statePage() uint64 { return (d.size() + statePageSize - 1) &^ (statePageSize - 1) }
