package vhostusertest

import (
	"fmt"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
	"vdev/vhostuser"
)

// LogPage is how many bytes of guest memory one bit of a Log stands for.
const LogPage = guestmem.LogPage

// Log is a dirty log: memory that is shared with a back-end, which marks in it what it writes to
// guest memory.
type Log struct {
	fd   *sys.FD
	size uint64
	mem  []byte // whole pages
}

// NewLog makes a log of n bytes, each of which covers 8 pages of guest memory.
func NewLog(n int) (*Log, error) {
	fd, err := sys.NewMemfd("vhost-log", int64(n))
	if err != nil {
		return nil, err
	}
	page := sys.PageSize()
	mem, err := sys.Mmap(fd.Int(), 0, (n+page-1)&^(page-1), true)
	if err != nil {
		fd.Close()
		return nil, err
	}
	return &Log{fd, uint64(n), mem}, nil
}

// Close closes the front-end's mapping and file of the log.
func (l *Log) Close() {
	if err := sys.Munmap(l.mem); err != nil {
		panic(err)
	}
	l.fd.Close()
}

// FD returns the log's file, which stays the log's.
func (l *Log) FD() int { return l.fd.Int() }

// Take returns the marked pages in order, and clears their marks. The back-end may mark at the same
// time.
func (l *Log) Take() (pages []uint64) {
	for i := 0; i < len(l.mem); i += 4 {
		word, _ := guestmem.AtUint32(l.mem[i:])
		if word.Load() == 0 {
			continue
		}
		bits := word.Swap(0)
		for bit := range 32 {
			if bits>>bit&1 != 0 {
				pages = append(pages, uint64(8*i+bit))
			}
		}
	}
	return pages
}

// SetLogBase gives the back-end a log, the size bytes of the file fd from offset on, and waits for
// the reply.
func (f *Frontend) SetLogBase(size, offset uint64, fd int) error {
	p, err := f.Ask(vhostuser.SetLogBase, vhostuser.LogBase{MmapSize: size, MmapOffset: offset}.Append(nil), fd)
	if err == nil && len(p) != 8 {
		err = fmt.Errorf("SET_LOG_BASE: reply of %d bytes", len(p))
	}
	return err
}

// SetLogFD sets what is signalled when something was marked.
func (f *Frontend) SetLogFD(fd int) error { return f.Tell(vhostuser.SetLogFD, nil, fd) }

// StartLog makes the back-end mark in l what it writes, as QEMU does when a migration begins. rings
// are all that are set up; those that are set up later get the log then.
func (f *Frontend) StartLog(l *Log, rings ...*Ring) error {
	if err := f.SetLogBase(l.size, 0, l.FD()); err != nil {
		return err
	}
	return f.log(true, rings)
}

// StopLog ends what StartLog began.
func (f *Frontend) StopLog(rings ...*Ring) error { return f.log(false, rings) }

func (f *Frontend) log(on bool, rings []*Ring) error {
	features := f.features &^ vhostuser.FLogAll
	if on {
		features |= vhostuser.FLogAll
	}
	if err := f.SetFeatures(features); err != nil {
		return err
	}
	for _, r := range rings {
		if err := f.SetVringAddr(r.Addr()); err != nil {
			return err
		}
	}
	return nil
}
