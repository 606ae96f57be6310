package guestmem

import (
	"errors"
	"fmt"
	"sync"

	"vdev/internal/sys"
)

// Space counts what one device's front-ends take of the process's address space: regions, logs and
// in-flight regions, of the present memory and of earlier generations that somebody still uses. The
// zero Space is ready to use, and must not be copied. Its methods may be called from any goroutine.
//
// A front-end can make a file of any size out of nothing, and send it as often as it likes. Without
// a bound it could fill the process's address space. Then the Go runtime would end the process,
// with all its devices, the next time it wants memory.
type Space struct {
	// AnyFiles: memory may be any file that can be mapped. Otherwise it must be memory of the
	// kernel's own: a memfd, or a file of tmpfs or hugetlbfs. A page of another file comes from
	// storage, or from a server. A thread waits for it, the garbage collector waits for that
	// thread, and with it the whole process. AnyFiles does not change while the Space is in use.
	AnyFiles bool

	held  held // guarded by mappings.mu
	later later
}

// held is what mappings take.
type held struct {
	bytes uint64
	count uint64 // of mappings
}

func (h held) plus(o held) held { return held{h.bytes + o.bytes, h.count + o.count} }

func (h held) minus(o held) held { return held{h.bytes - o.bytes, h.count - o.count} }

// limits are what a Space and all of them together may hold.
type limits struct{ one, all held }

// The shares of what there is. Of 128 TiB, which is what a process has on most hosts, a device's
// front-end may have 16, and all of them 96: the largest guests have a few, each disk of a guest
// maps all of it, and one that changes its memory has the old and the new for a while. The last
// quarter is for vdev itself, and for mapping memory again when it has to be fenced (Again), which
// takes half of that at most. Of the mappings that the kernel allows (vm.max_map_count, 65530), a
// front-end may have 1024, which is twice MaxRegions and some, and all of them half.
const (
	oneOf, allOf = 8, 4 // 1/8; all but 1/4
	oneMappings  = 2*MaxRegions + 6
	allMappings  = 2 // 1/2
)

// hostLimits asks the host, once.
var hostLimits = sync.OnceValue(func() limits {
	return limitsOf(sys.AddressSpace(), sys.AddressLimit(), sys.MaxMappings())
})

// limitsOf gives the limits for the bytes of address space that the process's architecture has,
// those that it may use (RLIMIT_AS), and the number of mappings. Who sets RLIMIT_AS knows his
// guests: one of them may use it all.
func limitsOf(space, limit, mappings uint64) limits {
	use := min(space, limit)
	all := held{use - use/allOf, mappings / allMappings}
	return limits{one: held{min(space/oneOf, all.bytes), min(oneMappings, all.count)}, all: all}
}

// again gives the limits for mapping once more what is there already: all but 1/8.
func (l limits) again() limits {
	all := held{l.all.bytes + l.all.bytes/(allOf-1)/2, l.all.count + l.all.count/2}
	return limits{one: l.one.plus(l.one), all: all}
}

// ErrSpace is wrapped by errors that say that a front-end, or all of them, would have more mapped
// than they may.
var ErrSpace = errors.New("too much memory is shared")

// takeLocked adds h to what s, and all together, hold, unless that is more than they may.
// mappings.mu is held.
func (s *Space) takeLocked(h held, l limits) error {
	one, all := s.held.plus(h), mappings.held.plus(h)
	for _, c := range []struct {
		who         string
		have, limit held
	}{{"this device's front-end", one, l.one}, {"all front-ends together", all, l.all}} {
		if c.have.bytes > c.limit.bytes {
			return fmt.Errorf("%w: memory, log and in-flight region of %s would take %#x bytes of address space, and may take %#x",
				ErrSpace, c.who, c.have.bytes, c.limit.bytes)
		}
		if c.have.count > c.limit.count {
			return fmt.Errorf("%w: memory, log and in-flight region of %s would be %d mappings, and may be %d",
				ErrSpace, c.who, c.have.count, c.limit.count)
		}
	}
	s.held, mappings.held = one, all
	return nil
}

// giveLocked is the end of what was taken. mappings.mu is held.
func (s *Space) giveLocked(h held) {
	s.held, mappings.held = s.held.minus(h), mappings.held.minus(h)
}
