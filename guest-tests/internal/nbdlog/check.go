package nbdlog

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"

	"vdev/guest-tests/internal/pattern"
)

// What the agent's load (guest-tests/agent/load.go) puts on a disk: slots, with a pattern whose
// seed is a version, and journals.
const (
	journalMagic = 0x6c616e72756f6a76
	journalHead  = 32
	epochShift   = 24
)

// version tells how old a block at a byte of the disk is, beside others of that place: a larger
// number is newer. 0: it does not say. No load was before epoch 1, so that the patterns of other
// commands, whose seeds are small, are of no version.
func version(block []byte, off int64) uint64 {
	le := binary.LittleEndian
	if le.Uint64(block) == journalMagic {
		// Each write of a journal acknowledges something more.
		var sum uint64
		for i := range le.Uint64(block[16:]) {
			if at := journalHead + 8*int(i); at+8 <= len(block) {
				sum += le.Uint64(block[at:])
			}
		}
		return le.Uint64(block[8:])<<48 | sum&(1<<48-1)
	}
	seed := le.Uint64(block[8:])
	if seed < 1<<epochShift || pattern.Verify(block, seed, off) != nil {
		return 0
	}
	return seed
}

var hashSeed = maphash.MakeSeed()

// block is what a write puts into one block.
type block struct {
	hash    uint64
	version uint64
}

func blocks(data []byte, off int64) []block {
	var list []block
	for ; len(data) >= pattern.BlockSize; data, off = data[pattern.BlockSize:], off+pattern.BlockSize {
		b := data[:pattern.BlockSize]
		list = append(list, block{maphash.Bytes(hashSeed, b), version(b, off)})
	}
	return list
}

// checker holds a client to the order of writes. The server may carry out a write at any time
// between the client's sending it and its getting the answer, or learning that the server has ended
// the connection: so it must not have two that put different things into one block, and none that
// is older than one it has had.
type checker struct {
	owed   map[int64][]*request // writes that are not answered, by block
	newest map[int64]block
}

func newChecker() checker { return checker{map[int64][]*request{}, map[int64]block{}} }

// begin takes note of a write that the client has sent, and says what is wrong with it, and how
// many of its blocks the server has, or has had, just so: those were asked for a second time.
func (c *checker) begin(r *request) (repeated int, wrong string) {
	first := r.off / pattern.BlockSize
	for i, b := range r.blocks {
		n := first + int64(i)
		for _, o := range c.owed[n] {
			if was := o.blocks[n-o.off/pattern.BlockSize]; was.hash != b.hash && wrong == "" {
				wrong = fmt.Sprintf("block %d is written (version %#x, connection %d) while the server owes the answer to another write of it (version %#x, connection %d)",
					n, b.version, r.conn, was.version, o.conn)
			}
		}
		was := c.newest[n]
		switch {
		case b.version != 0 && was.version != 0 && b.version < was.version:
			if wrong == "" {
				wrong = fmt.Sprintf("block %d is written with version %#x (connection %d) after version %#x", n, b.version, r.conn, was.version)
			}
		default:
			c.newest[n] = b
		}
		if was == b {
			repeated++
		}
		c.owed[n] = append(c.owed[n], r)
	}
	return repeated, wrong
}

// end takes note of a write that the server will not carry out any more, because it has.
func (c *checker) end(r *request) {
	first := r.off / pattern.BlockSize
	for i := range r.blocks {
		n := first + int64(i)
		list := c.owed[n]
		for k, o := range list {
			if o == r {
				list = append(list[:k], list[k+1:]...)
				break
			}
		}
		if c.owed[n] = list; len(list) == 0 {
			delete(c.owed, n)
		}
	}
}
