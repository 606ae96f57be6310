package virtq

import "vdev/internal/guestmem"

// Memory is one generation of a guest's memory: its regions, as the front-end has shared them. It
// does not change; when the guest's memory does, there is a new one (Queue.SetMemory). A
// vhostuser.Backend makes them, and virtqtest.Mem for tests.
//
// References hold it. Whoever uses buffers of a chain after the chain has ended needs one of its
// own, which Queue.Memory gives. With the last reference the regions that no later Memory has are
// unmapped. Any goroutine may call the methods, if it holds a reference.
type Memory guestmem.Memory

func (m *Memory) guest() *guestmem.Memory { return (*guestmem.Memory)(m) }

// Retain takes a further reference, which is to be released too.
func (m *Memory) Retain() { m.guest().Retain() }

// Release drops a reference, and waits until memory is unmapped if it was the last. That takes as
// long as the host takes to free the memory: seconds, for all of a large guest's.
func (m *Memory) Release() { m.guest().Release() }

// ReleaseSoon is Release for who must not wait, such as an event loop: another goroutine unmaps.
func (m *Memory) ReleaseSoon() { m.guest().ReleaseSoon() }
