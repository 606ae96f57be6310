package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
)

// period is after how many bytes a stream begins again. It is a prime: whatever is lost, doubled or
// in the wrong place in blocks shows.
const period = 262139

// mark is what tells where a stream begins, or ends.
type mark [16]byte

// flow is what goes one way: a mark, a stream, and another mark. Marks are like no others: what is
// left of another run is passed over.
type flow struct {
	name       string
	bytes      []byte // of the stream, from each place below period maxBuffer of them
	begin, end mark
	// sent is how many bytes the stream has. Whoever sends knows it before the end's mark is sent;
	// -1 until then.
	sent atomic.Int64
}

func newFlow(name string, seed uint64) *flow {
	f := &flow{name: name, bytes: make([]byte, period+maxBuffer)}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	rand.NewChaCha8(key).Read(f.bytes[:period])
	copy(f.bytes[period:], f.bytes)
	for i := period * 2; i < len(f.bytes); i += period {
		copy(f.bytes[i:], f.bytes)
	}
	for _, m := range []*mark{&f.begin, &f.end} {
		for i := range m {
			m[i] = byte(rand.Uint32())
		}
	}
	f.sent.Store(-1)
	return f
}

// source is a place in a flow's stream.
type source struct {
	*flow
	n int64 // bytes before it
}

// next returns the next n bytes, at most maxBuffer.
func (s *source) next(n int) []byte {
	at := s.n % period
	s.n += int64(n)
	return s.bytes[at:][:n:n]
}

// finish says that there is no more, and returns the mark to send.
func (s *source) finish() []byte {
	s.sent.Store(s.n)
	return s.end[:]
}

// sink is where a flow arrives.
type sink struct {
	source
	lossy bool // bytes may be missing

	began bool
	last  []byte // the last bytes that came, as many as a mark has, or fewer
	gap   bool   // bytes are missing
	ended bool
	lost  int64 // bytes, when it has ended
}

// take takes what came. It returns the part of it that is the stream's or the end's mark, which is
// valid as long as b.
func (k *sink) take(b []byte) ([]byte, error) {
	if !k.began {
		k.last = append(k.last, b...)
		i := bytes.Index(k.last, k.begin[:])
		if i < 0 {
			k.last = k.last[max(0, len(k.last)-len(mark{})+1):]
			return nil, nil
		}
		k.began = true
		b = b[len(b)-(len(k.last)-i-len(mark{})):]
		k.last = make([]byte, 0, 2*len(mark{}))
	}
	if k.ended && len(b) > 0 {
		return nil, fmt.Errorf("%d bytes of the %s came after its end", len(b), k.name)
	}
	at, sent := k.n, k.sent.Load()
	for rest := b; len(rest) > 0; {
		part := rest[:min(len(rest), maxBuffer)]
		rest = rest[len(part):]
		want := k.next(len(part))
		if sent >= 0 { // and the end's mark may be in it
			part = part[:max(0, min(int64(len(part)), sent-(k.n-int64(len(part)))))]
		}
		if k.gap || bytes.Equal(part, want[:len(part)]) {
			continue
		}
		if !k.lossy {
			wrong := k.n - int64(len(want))
			for i := range part {
				if part[i] != want[i] {
					wrong += int64(i)
					break
				}
			}
			return nil, fmt.Errorf("byte %d of the %s is not the one that was sent: bytes were lost, doubled or changed", wrong, k.name)
		}
		k.gap = true
	}
	k.remember(b)
	if sent < 0 {
		return b, nil
	}
	all := sent + int64(len(mark{}))
	switch {
	case bytes.Equal(k.last, k.end[:]) && k.n <= all:
		k.ended, k.lost = true, all-k.n
		if k.lost > 0 && !k.lossy {
			return nil, fmt.Errorf("%d of %d bytes of the %s were lost", k.lost, sent, k.name)
		}
	case k.n >= all:
		return nil, fmt.Errorf("%d bytes of the %s were sent, and %d came, from byte %d on", sent, k.name, k.n, at)
	}
	return b, nil
}

// remember keeps the last bytes that came.
func (k *sink) remember(b []byte) {
	n := len(mark{})
	if len(b) >= n {
		k.last = append(k.last[:0], b[len(b)-n:]...)
		return
	}
	k.last = append(k.last, b...)
	if over := len(k.last) - n; over > 0 {
		k.last = k.last[:copy(k.last, k.last[over:])]
	}
}
