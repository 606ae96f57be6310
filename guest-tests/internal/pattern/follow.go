package pattern

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Follower looks at a stream of patterns that may begin and break off anywhere, and tells what of
// them has come: a block that was lost, doubled or damaged begins a new Run. The zero value is
// ready.
type Follower struct {
	Runs    []Run // at most maxRuns
	Skipped int64 // bytes that are in no block that was found
	Dropped int   // runs beyond those

	rest []byte // less than a block
}

// Run is so many blocks of one pattern that follow each other.
type Run struct {
	Seed       uint64
	First, End uint64 // numbers of blocks; End is the one that would have come next
}

// maxRuns bounds what is remembered of a stream that has nothing in order.
const maxRuns = 1000

// String is seed:first-end for each run.
func (f *Follower) String() string {
	var b strings.Builder
	for _, r := range f.Runs {
		fmt.Fprintf(&b, "%d:%d-%d ", r.Seed, r.First, r.End)
	}
	if f.Dropped > 0 {
		fmt.Fprintf(&b, "and %d more ", f.Dropped)
	}
	return fmt.Sprintf("%sskipped=%d", b.String(), f.Skipped)
}

// Blocks is how many have come.
func (f *Follower) Blocks() (n uint64) {
	for _, r := range f.Runs {
		n += r.End - r.First
	}
	return n
}

// Take looks at the next bytes of the stream.
func (f *Follower) Take(p []byte) {
	p = append(f.rest, p...)
	for len(p) >= BlockSize {
		b := p[:BlockSize]
		seed, block := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b)
		x := start(seed, block)
		good := true
		for i := 16; i < BlockSize && good; i += 8 {
			x += step
			good = binary.LittleEndian.Uint64(b[i:]) == x
		}
		if !good {
			f.Skipped++
			p = p[1:]
			continue
		}
		f.follow(seed, block)
		p = p[BlockSize:]
	}
	f.rest = append(f.rest[:0], p...)
}

func (f *Follower) follow(seed, block uint64) {
	if n := len(f.Runs); n > 0 {
		if r := &f.Runs[n-1]; r.Seed == seed && r.End == block {
			r.End++
			return
		}
	}
	if len(f.Runs) == maxRuns {
		f.Dropped++
		return
	}
	f.Runs = append(f.Runs, Run{Seed: seed, First: block, End: block + 1})
}
