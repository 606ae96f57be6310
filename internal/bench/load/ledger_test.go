package load

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"vdev/devsw"
	diskdriver "vdev/devsw/disk"
	"vdev/internal/dev/null"
	"vdev/vhostuser"
)

// The disk of serveMemory, and how many blocks a job has there.
const (
	memorySize   = 4 << 20
	memoryBlocks = memorySize / 4096
)

// memory is a disk whose transfers do what a test wants.
type memory struct {
	diskdriver.Switch[struct{}]
	bytes []byte

	mu            sync.Mutex
	reads, writes int
	former        map[int][]byte // for a test
	// transfer returns what is moved from or to in place of at, the bytes of the disk from off on;
	// nil: nothing is.
	transfer func(op devsw.Op, off int, at []byte) []byte
}

func (m *memory) strategy(b *devsw.Buf) {
	b.InContext = true
	m.mu.Lock()
	defer m.mu.Unlock()
	if b.Op == devsw.BRead {
		m.reads++
	} else {
		m.writes++
	}
	off := int(b.Blkno * devsw.DEVBSIZE)
	at := m.bytes[off:][:b.Bcount]
	if m.transfer != nil {
		at = m.transfer(b.Op, off, at)
	}
	b.Error, b.Resid = b.MoveAt(at, 0), 0
	b.Biodone()
}

// serveMemory serves a memory disk, and returns its socket.
func serveMemory(t *testing.T) (*memory, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := vhostuser.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	return serveMemoryOn(t, listener), socket
}

// serveMemoryOn serves a memory disk on a socket.
func serveMemoryOn(t *testing.T, ln net.Listener) *memory {
	t.Helper()
	m := &memory{bytes: make([]byte, memorySize), former: map[int][]byte{}}
	table := devsw.NewTable()
	err := m.Attach(table, "memory", devsw.NODEVMAJOR, devsw.NODEVMAJOR, diskdriver.Funcs{
		Cancel:   func(devsw.Dev, devsw.Flag, devsw.Mode) error { return nil },
		Strategy: m.strategy,
	}, func(*struct{}) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	dev, err := m.Create(0, new(struct{}))
	if err != nil {
		t.Fatal(err)
	}
	info := func() (devsw.DiskInfo, error) {
		return devsw.DiskInfo{Size: memorySize, SectorSize: devsw.DEVBSIZE}, nil
	}
	serveDisk(t, ln, table, dev, info, m.Detach)
	return m
}

// now has the disk do transfers from now on, and begin to count anew.
func (m *memory) now(transfer func(op devsw.Op, off int, at []byte) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.transfer, m.reads, m.writes = transfer, 0, 0
}

// counted returns how many reads and writes there were.
func (m *memory) counted() (reads, writes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reads, m.writes
}

func TestEachPatternReadsAndWritesWhatItSays(t *testing.T) {
	m, socket := serveMemory(t)
	for _, pattern := range Patterns {
		err := patiently(job(pattern), func(j Job) error {
			m.now(nil)
			_, err := Run(t.Context(), socket, j)
			reads, writes := m.counted()
			if err == nil && ((reads > 0) != pattern.Reads() || (writes > 0) != pattern.Writes()) {
				return fmt.Errorf("%d reads, %d writes: a longer length is needed", reads, writes)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", pattern, err)
		}
	}
}

func TestADiskIsVerifiedWithoutALoad(t *testing.T) {
	m, socket := serveMemory(t)
	j := job(RandWrite)
	j.Length, j.Verify = 0, true
	r, err := Run(t.Context(), socket, j)
	if reads, writes := m.counted(); err != nil || r.Requests != 0 || writes != memoryBlocks || reads != memoryBlocks {
		t.Errorf("%d requests counted, %d writes, %d reads, %v", r.Requests, writes, reads, err)
	}
	// The same once more, but for one write: what is there is the first run's.
	m.now(func(op devsw.Op, off int, at []byte) []byte {
		if op == devsw.BWrite && off == 77*4096 {
			return nil
		}
		return at
	})
	if _, err := Run(t.Context(), socket, j); err == nil || !regexp.MustCompile(`sector 616, byte 0: read 0x.*: nothing of this run$`).MatchString(err.Error()) {
		t.Errorf("error %v", err)
	}
}

func TestADiskThatKeepsNothingIsFoundOut(t *testing.T) {
	table := devsw.NewTable()
	driver, err := null.New(table)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := driver.Create(0, null.Config{Size: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := vhostuser.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	serveDisk(t, listener, table, dev, func() (devsw.DiskInfo, error) { return driver.Info(0) }, driver.Detach)
	for _, pattern := range Patterns {
		j := job(pattern)
		j.Verify = true
		if _, err := Run(t.Context(), socket, j); err == nil || !strings.HasSuffix(err.Error(), "nothing of this run") {
			t.Errorf("%s: error %v", pattern, err)
		}
	}
}

func TestADiskThatDoesNotKeepWhatIsWrittenIsFoundOut(t *testing.T) {
	const older, another = "an older write's data, that of write [0-9]+ of [0-9]+$", "another block's data, that of sector [0-9]+$"
	for name, fault := range map[string]struct {
		// act is transfer for every 16th block, when all blocks have been written. It is told how
		// often that one was, this time included.
		act  func(m *memory, op devsw.Op, off int, at []byte, written int) []byte
		want string
	}{
		"it loses writes": {func(_ *memory, op devsw.Op, _ int, at []byte, _ int) []byte {
			if op == devsw.BWrite {
				return nil
			}
			return at
		}, older},
		"it loses all of a write but the first sector": {func(_ *memory, op devsw.Op, _ int, at []byte, _ int) []byte {
			if op == devsw.BWrite {
				return at[:512]
			}
			return at
		}, older},
		"it writes to another block": {func(m *memory, op devsw.Op, off int, at []byte, _ int) []byte {
			if op == devsw.BWrite {
				return m.bytes[off+4096:][:4096]
			}
			return at
		}, older + "|" + another},
		"it reads another block": {func(m *memory, op devsw.Op, off int, at []byte, _ int) []byte {
			if op == devsw.BRead {
				return m.bytes[off+4096:][:4096]
			}
			return at
		}, another},
		"it reads what was there before": {func(m *memory, op devsw.Op, off int, at []byte, written int) []byte {
			switch {
			case op == devsw.BWrite:
				m.former[off] = slices.Clone(at)
			case written > 1:
				return m.former[off]
			}
			return at
		}, older},
		"it reads nothing": {func(_ *memory, op devsw.Op, _ int, at []byte, _ int) []byte {
			if op == devsw.BRead {
				return nil
			}
			return at
		}, "read 0x0, .*: nothing of this run$"},
		"it reads a wrong byte": {func(_ *memory, op devsw.Op, _ int, at []byte, _ int) []byte {
			if op == devsw.BRead {
				at = slices.Clone(at)
				at[1000] ^= 0x40
			}
			return at
		}, "byte 488: .*: it is damaged$"},
	} {
		t.Run(name, func(t *testing.T) {
			m, socket := serveMemory(t)
			j := job(RandRW)
			j.Verify = true
			err := patiently(j, func(j Job) error {
				written, acted := map[int]int{}, false
				m.now(func(op devsw.Op, off int, at []byte) []byte {
					if op == devsw.BWrite {
						written[off]++
					}
					if m.writes <= memoryBlocks || off/4096%16 != 3 {
						return at
					}
					moved := fault.act(m, op, off, at, written[off])
					acted = acted || len(moved) != len(at) || &moved[0] != &at[0]
					return moved
				})
				_, err := Run(t.Context(), socket, j)
				m.now(nil)
				if err == nil && !acted {
					return errors.New("nothing was wrong: a longer length is needed")
				}
				return err
			})
			if err == nil || !regexp.MustCompile(fault.want).MatchString(err.Error()) {
				t.Errorf("error %v, want %s", err, fault.want)
			}
		})
	}
}

func TestABlockIsWrittenByOneRequestAlone(t *testing.T) {
	const first, blocks = 100, 8
	rng := rand.New(rand.NewPCG(1, 2))
	l := newLedger(1, first, blocks, 4096)
	type request struct {
		block int64
		read  bool
	}
	var inFlight []request
	chosen := map[request]int{}
	for range 100000 {
		// As many in flight as there are blocks at most.
		if n := len(inFlight); n == blocks || n > 0 && rng.IntN(2) == 0 {
			i := rng.IntN(n)
			l.release(inFlight[i].block)
			inFlight = slices.Delete(inFlight, i, i+1)
			continue
		}
		r := request{read: rng.IntN(3) == 0}
		wanted, before := first+rng.Int64N(blocks), slices.Clone(l.writes)
		r.block = l.claim(wanted, r.read)
		if r.block < first || r.block >= first+blocks {
			t.Fatalf("block %d", r.block)
		}
		conflicts := func(block int64) bool {
			return slices.ContainsFunc(inFlight, func(o request) bool { return o.block == block && !(o.read && r.read) })
		}
		if conflicts(r.block) || r.block != wanted && !conflicts(wanted) {
			t.Fatalf("%+v in place of block %d beside %+v", r, wanted, inFlight)
		}
		if !r.read {
			before[r.block-first]++
		}
		if !slices.Equal(before, l.writes) {
			t.Fatalf("%+v: writes %v, want %v", r, l.writes, before)
		}
		chosen[r]++
		inFlight = append(inFlight, r)
	}
	if len(chosen) != 2*blocks {
		t.Errorf("not all blocks were read and written: %v", chosen)
	}
}
