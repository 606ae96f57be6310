package pattern

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func blocks(seed uint64, first, end int) []byte {
	p := make([]byte, (end-first)*BlockSize)
	Fill(p, seed, int64(first)*BlockSize)
	return p
}

func follow(pieces ...[]byte) *Follower {
	var f Follower
	for _, p := range pieces {
		f.Take(p)
	}
	return &f
}

func TestAStreamInOrderIsOneRun(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stream := blocks(7, 0, 20)[rapid.IntRange(0, BlockSize-1).Draw(t, "begins"):]
		var f Follower
		for rest := stream; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			f.Take(rest[:n])
			rest = rest[n:]
		}
		first := uint64(0)
		if len(stream) < 20*BlockSize {
			first = 1
		}
		if want := []Run{{7, first, 20}}; !slices.Equal(f.Runs, want) || f.Skipped != int64(len(stream)%BlockSize) || f.Blocks() != 20-first {
			t.Fatalf("%v of %d bytes", &f, len(stream))
		}
	})
}

func TestWhatIsLostDoubledOrDamagedBeginsARun(t *testing.T) {
	whole := blocks(7, 0, 10)
	damaged := slices.Clone(whole)
	damaged[5*BlockSize+100] ^= 1
	for _, c := range []struct {
		what    string
		f       *Follower
		want    []Run
		skipped int64
	}{
		{"a byte lost", follow(whole[:3*BlockSize+9], whole[3*BlockSize+10:]), []Run{{7, 0, 3}, {7, 4, 10}}, BlockSize - 1},
		{"a byte doubled", follow(whole[:3*BlockSize], whole[3*BlockSize-1:]), []Run{{7, 0, 10}}, 1},
		{"blocks lost", follow(whole[:3*BlockSize], whole[6*BlockSize:]), []Run{{7, 0, 3}, {7, 6, 10}}, 0},
		{"blocks doubled", follow(whole[:6*BlockSize], whole[3*BlockSize:]), []Run{{7, 0, 6}, {7, 3, 10}}, 0},
		{"damaged", follow(damaged), []Run{{7, 0, 5}, {7, 6, 10}}, BlockSize},
		{"another pattern", follow(whole[:4*BlockSize+100], blocks(8, 0, 2)), []Run{{7, 0, 4}, {8, 0, 2}}, 100},
	} {
		if !slices.Equal(c.f.Runs, c.want) || c.f.Skipped != c.skipped {
			t.Errorf("%s: %v, want %v and %d bytes skipped", c.what, c.f, c.want, c.skipped)
		}
	}
}

func TestAStreamWithoutOrderIsNotRememberedInWhole(t *testing.T) {
	var f Follower
	for i := range maxRuns + 5 {
		f.Take(blocks(uint64(i), 3, 4))
	}
	if len(f.Runs) != maxRuns || f.Dropped != 5 {
		t.Errorf("%d runs, and %d more", len(f.Runs), f.Dropped)
	}
}
