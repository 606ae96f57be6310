package virtioblk

import (
	"bytes"
	"encoding/binary"
	"maps"
	"runtime"
	"slices"
	"testing"
	"time"

	"vdev/internal/dev/md"
	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

const (
	fuzzSectors = 16
	fuzzDisk    = fuzzSectors * sectorSize
	fuzzRing    = 128 // descriptors
	fuzzInput   = 192 // bytes that are looked at, some ten to twenty requests
	fuzzArena   = 64 << 10
)

// fuzzFilled is an arena in which nothing is.
var fuzzFilled = bytes.Repeat([]byte{0xa5}, fuzzArena)

// fuzzPayloads are sectors to write, by a byte of the input.
var fuzzPayloads = func() (all [256][]byte) {
	for i := range all {
		for j := range sectorSize {
			all[i] = append(all[i], byte(i+3*j))
		}
	}
	return all
}()

// fuzzBench is a disk with a model of it, for FuzzRequests: one ring, whose place stays the same,
// and an arena of guest memory in which the buffers lie.
type fuzzBench struct {
	*bench
	ring              *vhostusertest.Ring
	desc, avail, used uint64
	arena             []byte // guest memory
	phys              uint64 // of arena
	readOnly          bool

	disk   []byte // the model
	shadow []byte // what arena has to be like
	at     int    // where the next buffer goes
	flight map[uint16]*fuzzRequest
}

// fuzzRequest is what is expected of a request in flight.
type fuzzRequest struct {
	writable spans
	status   uint8
	data     []byte // what the writable bytes begin with
	written  uint32 // used.len
}

// spans are parts of the arena, in bytes.
type spans [][2]int // offset, length

func (s spans) length() (n int) {
	for _, p := range s {
		n += p[1]
	}
	return n
}

// put copies data to where s is in memory.
func (s spans) put(memory, data []byte) {
	for _, p := range s {
		data = data[copy(memory[p[0]:p[0]+p[1]], data):]
	}
}

// last is the offset of the last byte.
func (s spans) last() int {
	for _, p := range slices.Backward(s) {
		if p[1] > 0 {
			return p[0] + p[1] - 1
		}
	}
	panic("no byte")
}

func newFuzzBench(f *testing.F, readOnly bool) *fuzzBench {
	w := &fuzzBench{
		bench:    newBenchOn(f, vhostuser.ReactorConfig{Mode: vhostuser.ModeStepped}, 1, mdDisk(md.Config{Size: fuzzDisk, ReadOnly: readOnly}), nil),
		readOnly: readOnly, disk: make([]byte, fuzzDisk), flight: make(map[uint16]*fuzzRequest),
	}
	w.desc, w.avail, w.used = w.mem.Alloc(16*fuzzRing, 16), w.mem.Alloc(6+2*fuzzRing, 2), w.mem.Alloc(6+8*fuzzRing, 4)
	w.phys = w.mem.Alloc(fuzzArena, 4096)
	w.arena = w.mem.Bytes(w.phys, fuzzArena)
	w.shadow = bytes.Clone(fuzzFilled)
	copy(w.arena, w.shadow)
	w.start(w.all())
	w.ring = w.rings[0]
	w.restart(f)
	return w
}

// restart stops the ring, and starts a new one in the same place.
func (w *fuzzBench) restart(t testing.TB) {
	t.Helper()
	if err := w.ring.Stop(); err != nil {
		t.Fatal(err)
	}
	w.ring.Failed()
	clear(w.mem.Bytes(w.desc, 16*fuzzRing))
	clear(w.mem.Bytes(w.avail, 6+2*fuzzRing))
	clear(w.mem.Bytes(w.used, 6+8*fuzzRing))
	w.ring.Driver = virtqtest.NewAt(w.mem, fuzzRing, w.f.Features()&^(vhostuser.FProtocolFeatures|vhostuser.FLogAll), w.desc, w.avail, w.used)
	w.ring.Base = 0
	clear(w.flight)
	if err := w.ring.Start(); err != nil {
		t.Fatal(err)
	}
	w.ring.DisableCalls()
	w.trace.Lock()
	w.trace.events = w.trace.events[:0]
	w.trace.Unlock()
}

// fuzzBytes is the fuzzer's input. At its end it is all zeros.
type fuzzBytes []byte

func (b *fuzzBytes) byte() byte {
	if len(*b) == 0 {
		return 0
	}
	v := (*b)[0]
	*b = (*b)[1:]
	return v
}

func (b *fuzzBytes) word() uint16 { return uint16(b.byte()) | uint16(b.byte())<<8 }

// sector is one on the disk, just behind it, or far away.
func (b *fuzzBytes) sector() uint64 {
	if v := b.word(); v < 0xf000 {
		return uint64(v) % (fuzzSectors + 4)
	} else {
		return ^uint64(0) - uint64(0xffff-v)
	}
}

// length is some bytes, or some sectors.
func (b *fuzzBytes) length() int {
	v := int(b.word())
	if v&0x8000 != 0 {
		return v & 7 * sectorSize
	}
	return v & 0x3ff
}

var fuzzTypes = []uint32{tIn, tOut, tFlush, tGetID, tDiscard, tWriteZeroes}

// Bits of the second byte of a request. The lowest two are how many buffers its data has, each
// way, the next two likewise.
const (
	fuzzIndirect  = 1 << 4
	fuzzShapeless = 1 << 5 // header and status have no buffers of their own
	fuzzWait      = 1 << 6 // for what is in flight, before
)

// add builds a request as the input says, and puts it into the ring. It is false where there is no
// room, or no buffer.
func (w *fuzzBench) add(in *fuzzBytes) (head uint16, r *fuzzRequest, ok bool) {
	kind, shape := in.byte(), in.byte()
	header := make([]byte, headerSize)
	typ := uint32(kind)
	if int(kind) < len(fuzzTypes) {
		typ = fuzzTypes[kind]
	}
	binary.LittleEndian.PutUint32(header, typ)
	binary.LittleEndian.PutUint64(header[8:], in.sector())

	var lens [2][]int // readable, writable
	for dir, n := range []byte{shape & 3, shape >> 2 & 3} {
		for range n {
			lens[dir] = append(lens[dir], in.length())
		}
	}
	if shape&fuzzShapeless == 0 {
		lens[0] = append([]int{headerSize}, lens[0]...)
		lens[1] = append(lens[1], 1)
	}
	var segs [2][]virtqtest.Seg
	var where [2]spans
	at := w.at
	for dir := range lens {
		for _, n := range lens[dir] {
			if at+n+8 > len(w.arena)-fuzzDisk-headerSize-64 {
				return 0, nil, false
			}
			segs[dir] = append(segs[dir], virtqtest.Seg{Addr: w.phys + uint64(at), Len: uint32(n)})
			where[dir] = append(where[dir], [2]int{at, n})
			at += n + 8
		}
	}
	if len(segs[0])+len(segs[1]) == 0 {
		return 0, nil, false
	}

	total := where[0].length()
	readable := append(make([]byte, 0, total+sectorSize), header...)
	for len(readable) < total {
		if typ == tDiscard || typ == tWriteZeroes {
			readable = binary.LittleEndian.AppendUint64(readable, in.sector())
			n := uint32(in.word())
			if n >= 0xf000 {
				n <<= 16
			}
			readable = binary.LittleEndian.AppendUint32(readable, n&^0xffc0)
			readable = binary.LittleEndian.AppendUint32(readable, uint32(in.byte())&7)
			continue
		}
		readable = append(readable, fuzzPayloads[in.byte()][:sectorSize]...)
	}
	readable = readable[:total]

	if shape&fuzzIndirect != 0 {
		head, ok = w.ring.AddIndirect(segs[0], segs[1])
	} else {
		head, ok = w.ring.Add(segs[0], segs[1])
	}
	if !ok {
		return 0, nil, false
	}
	w.at = at
	where[0].put(w.arena, readable)
	where[0].put(w.shadow, readable)
	r = w.expect(readable, where[1])
	return head, r, true
}

// expect does a request with the model. It is nil where the ring is to break.
func (w *fuzzBench) expect(readable []byte, writable spans) *fuzzRequest {
	room := int64(writable.length()) - 1
	if room < 0 {
		return nil
	}
	// The status counts where it comes next after what is written.
	written := func(n int64) uint32 {
		if n == room {
			n++
		}
		return uint32(n)
	}
	bad := func(status uint8) *fuzzRequest {
		return &fuzzRequest{writable: writable, status: status, written: written(0)}
	}
	good := func(data []byte) *fuzzRequest {
		return &fuzzRequest{writable: writable, status: statusOK, data: data, written: written(int64(len(data)))}
	}
	if len(readable) < headerSize {
		return bad(statusIOErr)
	}
	le := binary.LittleEndian
	typ, sector, payload := le.Uint32(readable), le.Uint64(readable[8:]), readable[headerSize:]
	off := int64(sector * sectorSize)
	within := func(sector uint64, n int64) bool {
		return sector <= fuzzSectors && n <= int64(fuzzSectors-sector)*sectorSize
	}
	switch typ {
	case tIn:
		if room%sectorSize != 0 || len(payload) > 0 || !within(sector, room) {
			return bad(statusIOErr)
		}
		return good(bytes.Clone(w.disk[off : off+room]))
	case tOut:
		if len(payload)%sectorSize != 0 || room > 0 || w.readOnly || !within(sector, int64(len(payload))) {
			return bad(statusIOErr)
		}
		copy(w.disk[off:], payload)
		return good(nil)
	case tFlush:
		return good(nil)
	case tGetID:
		if room < idSize {
			return bad(statusIOErr)
		}
		id := make([]byte, idSize)
		copy(id, "vdev-test")
		return good(id)
	case tDiscard, tWriteZeroes:
		feature := uint64(fDiscard)
		if typ == tWriteZeroes {
			feature = fWriteZeroes
		}
		switch {
		case w.f.Features()&feature == 0:
			return bad(statusUnsupp)
		case room > 0, len(payload) == 0, len(payload)%rangeSize != 0, len(payload) > maxRanges*rangeSize:
			return bad(statusIOErr)
		}
		for p := payload; len(p) > 0; p = p[rangeSize:] {
			sector, n, flags := le.Uint64(p), le.Uint32(p[8:]), le.Uint32(p[12:])
			switch {
			case flags > 1, flags == 1 && typ == tDiscard:
				return bad(statusUnsupp)
			case !within(sector, int64(n)*sectorSize):
				return bad(statusIOErr)
			}
		}
		for p := payload; len(p) > 0; p = p[rangeSize:] {
			clear(w.disk[le.Uint64(p)*sectorSize:][:int64(le.Uint32(p[8:]))*sectorSize])
		}
		return good(nil)
	}
	return bad(statusUnsupp)
}

// next returns what comes back next.
func (w *fuzzBench) next(t *testing.T) (head uint16, written uint32) {
	if head, written, ok := w.ring.Used(); ok {
		return head, written
	}
	// What may sleep is done by goroutines of the device's, beside.
	for begun := time.Now(); time.Since(begun) < vhostusertest.Timeout; runtime.Gosched() {
		w.reactors.Step()
		if head, written, ok := w.ring.Used(); ok {
			return head, written
		}
	}
	t.Fatalf("%d requests in flight do not come back", len(w.flight))
	return 0, 0
}

// wait has what is in the ring done, and checks what came of it.
func (w *fuzzBench) wait(t *testing.T) {
	if err := w.ring.Notify(); err != nil {
		t.Fatal(err)
	}
	for len(w.flight) > 0 {
		head, written := w.next(t)
		r := w.flight[head]
		if r == nil {
			t.Fatalf("head %d comes back, which is not in flight", head)
		}
		delete(w.flight, head)
		if status := w.arena[r.writable.last()]; status != r.status {
			t.Fatalf("status %d, want %d", status, r.status)
		}
		if written != r.written {
			t.Fatalf("%d bytes written, want %d", written, r.written)
		}
		r.writable.put(w.shadow, r.data)
		w.shadow[r.writable.last()] = r.status
	}
	if !bytes.Equal(w.arena[:w.at+8], w.shadow[:w.at+8]) {
		for i := range w.at + 8 {
			if w.arena[i] != w.shadow[i] {
				t.Fatalf("guest memory at byte %d is %#x, and should be %#x", i, w.arena[i], w.shadow[i])
			}
		}
	}
}

// plain does a request of usual form with the whole disk, in the last part of the arena.
func (w *fuzzBench) plain(t *testing.T, typ uint32, data []byte) {
	at := len(w.arena) - fuzzDisk - headerSize - 8
	h := w.arena[at : at+headerSize]
	clear(h)
	binary.LittleEndian.PutUint32(h, typ)
	body := w.arena[at+headerSize:][:fuzzDisk]
	seg := func(off, n int) virtqtest.Seg { return virtqtest.Seg{Addr: w.phys + uint64(at+off), Len: uint32(n)} }
	readable, status := []virtqtest.Seg{seg(0, headerSize)}, []virtqtest.Seg{seg(headerSize+fuzzDisk, 1)}
	if typ == tOut {
		copy(body, data)
		readable = append(readable, seg(headerSize, fuzzDisk))
	} else {
		status = append([]virtqtest.Seg{seg(headerSize, fuzzDisk)}, status...)
	}
	if _, ok := w.ring.Add(readable, status); !ok {
		t.Fatal("no room in the ring")
	}
	if err := w.ring.Notify(); err != nil {
		t.Fatal(err)
	}
	w.next(t)
	if st := w.arena[at+headerSize+fuzzDisk]; st != statusOK {
		t.Fatalf("status %d", st)
	}
	if typ == tIn && !bytes.Equal(body, data) {
		t.Fatal("the disk is not as the model has it")
	}
}

// FuzzRequests puts requests of any kind and shape into a ring, and has a model of the disk say
// what becomes of them: status, data, used.len, the rest of the guest's memory, and the disk in
// the end.
func FuzzRequests(f *testing.F) {
	request := func(typ, shape byte, words ...uint16) (b []byte) {
		b = []byte{typ, shape}
		for _, w := range words {
			b = binary.LittleEndian.AppendUint16(b, w)
		}
		return b
	}
	const in, out, flush, id, discard, zeroes = 0, 1, 2, 3, 4, 5
	const sectors = 0x8000
	// The shapes: buffers of data to read from, and four times those to write to.
	seeds := [][]byte{
		request(in, 1<<2, 3, sectors|2),
		request(out, 1|fuzzWait, 3, sectors|2, 0x11, 0x22),
		request(in, 3<<2, 0, sectors|1, sectors|2, sectors|3),
		request(out, 3|fuzzIndirect, 12, sectors|1, 256, 256, 0x7777),
		request(in, 1<<2|fuzzWait|fuzzIndirect, 12, sectors|2),
		request(flush, 0, 0),
		request(id, 1<<2, 0, 20),
		request(id, 1<<2, 0, 19),
		request(discard, 1, 0, 16, 3, 8, 0),
		request(zeroes, 1|fuzzWait, 0, 32, 3, 8, 256, 8, 0),
		request(zeroes, 1, 0, 16, 3, 0xffff, 0),
		request(discard, 1, 0, 16, 3, 8, 1),
		request(zeroes, 1, 0, 16, 3, 8, 2),
		request(in, 1<<2, fuzzSectors-1, sectors|2),
		request(in, 1<<2, fuzzSectors, sectors|1),
		request(in, 1<<2, 0xffff, sectors|1),
		request(in, 1|1<<2, 0, sectors|1, sectors|1),
		request(in, 1<<2, 0, 100),
		request(out, 1|1<<2, 0, sectors|1, sectors|1),
		request(77, 0, 0),
		request(in, 2|2<<2|fuzzShapeless, 1, 7, 9, sectors|1, 1),
		request(in, 1|1<<2|fuzzShapeless, 1, 12, 8),
		request(out, 1|1<<2|fuzzShapeless, 1, 16+512, 1),
		request(in, 1|fuzzShapeless, 1, 16),
	}
	for _, readOnly := range []bool{false, true} {
		for _, s := range seeds {
			f.Add(readOnly, s)
		}
		f.Add(readOnly, bytes.Join(seeds, nil))
	}
	benches := map[bool]*fuzzBench{false: newFuzzBench(f, false), true: newFuzzBench(f, true)}
	f.Fuzz(func(t *testing.T, readOnly bool, data []byte) {
		w := benches[readOnly]
		w.at = 0
		// requests in flight that change the disk: their order with others is nobody's promise
		changes := 0
		dirty := false
		for in := fuzzBytes(data[:min(len(data), fuzzInput)]); len(in) > 0; {
			typ, shape := in[0], byte(0)
			if len(in) > 1 {
				shape = in[1]
			}
			change := typ == 1 || int(typ) < len(fuzzTypes) && typ >= 4 || typ == tDiscard || typ == tWriteZeroes
			if shape&fuzzWait != 0 || change || changes > 0 {
				w.wait(t)
				changes = 0
			}
			if change {
				changes++
				dirty = true
			}
			head, r, ok := w.add(&in)
			if !ok {
				continue
			}
			if r == nil {
				// Nobody can be told of its end. What came before it is done.
				w.breaks(t)
				break
			}
			w.flight[head] = r
		}
		w.wait(t)
		w.plain(t, tIn, w.disk)
		if dirty && !readOnly {
			clear(w.disk)
			w.plain(t, tOut, w.disk)
		}
		copy(w.arena[:w.at+8], fuzzFilled)
		copy(w.shadow[:w.at+8], fuzzFilled)
	})
}

// breaks has what is in the ring done, up to a chain that is to break it.
func (w *fuzzBench) breaks(t *testing.T) {
	t.Helper()
	if err := w.ring.Notify(); err != nil {
		t.Fatal(err)
	}
	w.reactors.Step()
	if err := sys.WaitReadable(w.ring.ErrFD(), vhostusertest.Timeout); err != nil || !w.ring.Failed() {
		t.Fatalf("a request that cannot be answered does not break the ring: %v", err)
	}
	flight := maps.Clone(w.flight)
	w.restart(t)
	// Those that were in flight may have been answered or not: the ring was broken. From now on
	// they are over.
	for _, r := range flight {
		for _, p := range r.writable {
			copy(w.shadow[p[0]:p[0]+p[1]], w.arena[p[0]:])
		}
	}
}
