package load

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Pattern is a kind of load: on a disk by the names that fio has for them, or on a port of a
// console.
type Pattern string

// The patterns of disks. A sequential one has a part of the disk for each queue, which it begins
// again at its end.
const (
	Read      Pattern = "read"      // sequential
	Write     Pattern = "write"     // sequential
	RandRead  Pattern = "randread"  // any block, with equal chances
	RandWrite Pattern = "randwrite" // any block, with equal chances
	ReadWrite Pattern = "rw"        // sequential, a part of it reads (Job.ReadPercent)
	RandRW    Pattern = "randrw"    // any block, a part of it reads
)

// Patterns are all of them.
var Patterns = []Pattern{Read, Write, RandRead, RandWrite, ReadWrite, RandRW}

// The patterns of consoles.
const (
	Output Pattern = "output" // from the guest to the host's side
	Input  Pattern = "input"  // from the host's side to the guest
	Both   Pattern = "both"   // each as fast as it goes
	// Echo has the guest send a buffer, and wait until the host's side has sent it back.
	Echo Pattern = "echo"
)

// ConsolePatterns are all of them.
var ConsolePatterns = []Pattern{Output, Input, Both, Echo}

// Console tells whether the pattern is one of consoles.
func (p Pattern) Console() bool { return slices.Contains(ConsolePatterns, p) }

func (p Pattern) random() bool { return p == RandRead || p == RandWrite || p == RandRW }

// Reads tells whether the pattern has reads, Writes whether it has writes.
func (p Pattern) Reads() bool { return p != Write && p != RandWrite }

// Writes tells whether the pattern has writes.
func (p Pattern) Writes() bool { return p != Read && p != RandRead }

// Bounds of a Job.
const (
	MaxQueues    = 256
	MaxDepth     = 4096
	MaxBlockSize = 4 << 20
)

// Job says what load there is to be. A console's has only Pattern, BlockSize, Depth, CPUs,
// BackendCPUs, Warmup, Length, Idle and Seed.
type Job struct {
	Pattern     Pattern
	ReadPercent int // of the requests of rw and randrw, 0 to 100
	// BlockSize is how many bytes a request has, a multiple of 512. On a console it is how many a
	// chain and a receive buffer have, whatever number.
	BlockSize int64
	// Depth is how many requests are in flight in each queue, on a console how many chains of
	// output. There are as many receive buffers, and at least as many as Linux has. (An echo is one
	// at a time.)
	Depth  int
	Queues int
	Size   int64 // bytes of the disk that are used, from its start; 0: all of it

	// Poll has each queue look at its used ring all the time. Else it sleeps until it is called.
	Poll bool
	// CPUs are the processors of the queues' threads, in turn; none: wherever the host puts them.
	CPUs []int
	// BackendCPUs are the processors that the back-end's process is bound to meanwhile; none:
	// wherever it may run.
	BackendCPUs []int

	Warmup time.Duration // not counted
	// counted; 0 with Verify: the disk is written, read and looked at, and nothing is measured,
	// Idle neither
	Length time.Duration

	// Idle is how long the connection stays, with nothing to do, from a second after the end of the
	// last request on. Result.Idle is measured in that time. 0: it is not measured.
	Idle time.Duration

	// Verify finds out whether the disk keeps what is written to it. Each queue has a part of the
	// disk for itself, in the random patterns too; where the pattern writes, a part has at least
	// Depth blocks. Before the load all of the part is written, and after the load it is read.
	// Whatever is read, by the load as well, must be what this Run has written there last. It costs
	// much time, and some memory for each block.
	Verify bool
	Seed   uint64 // of the random numbers
}

func (j *Job) check() error {
	if j.Pattern.Console() {
		return j.checkConsole()
	}
	switch {
	case !slices.Contains(Patterns, j.Pattern):
		var names []string
		for _, p := range Patterns {
			names = append(names, string(p))
		}
		return fmt.Errorf("pattern %q: must be one of %s", j.Pattern, strings.Join(names, ", "))
	case j.ReadPercent < 0 || j.ReadPercent > 100:
		return fmt.Errorf("%d per cent reads: must be from 0 to 100", j.ReadPercent)
	case j.BlockSize < 512 || j.BlockSize > MaxBlockSize || j.BlockSize%512 != 0:
		return fmt.Errorf("block size %d: must be a multiple of 512 bytes, at most %d", j.BlockSize, MaxBlockSize)
	case j.Depth < 1 || j.Depth > MaxDepth:
		return fmt.Errorf("depth %d: must be from 1 to %d", j.Depth, MaxDepth)
	case j.Queues < 1 || j.Queues > MaxQueues:
		return fmt.Errorf("%d queues: must be from 1 to %d", j.Queues, MaxQueues)
	case j.Size < 0:
		return fmt.Errorf("size %d: must not be negative", j.Size)
	case j.Warmup < 0 || j.Length < 0 || j.Length == 0 && (!j.Verify || j.Idle > 0) || j.Idle < 0:
		return errors.New("the length must be more than 0, and neither the warm-up nor the idle time less")
	}
	return nil
}
