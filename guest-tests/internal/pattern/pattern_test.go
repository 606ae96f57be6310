package pattern

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestAPatternDoesNotDependOnHowItIsCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		off := rapid.Int64Range(0, 1<<40).Draw(t, "block") * BlockSize
		n := rapid.IntRange(2, 16).Draw(t, "blocks")
		cut := rapid.IntRange(1, n-1).Draw(t, "cut") * BlockSize
		whole := make([]byte, n*BlockSize)
		Fill(whole, seed, off)
		parts := make([]byte, n*BlockSize)
		Fill(parts[cut:], seed, off+int64(cut))
		Fill(parts[:cut], seed, off)
		if !bytes.Equal(whole, parts) {
			t.Fatal("the pattern of the parts is not the pattern of the whole")
		}
		if err := Verify(whole, seed, off); err != nil {
			t.Fatal(err)
		}
	})
}

func TestOneWrongByteIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := make([]byte, 4*BlockSize)
		Fill(p, 1, 0)
		at := rapid.IntRange(0, len(p)-1).Draw(t, "at")
		p[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		var wrong *MismatchError
		if err := Verify(p, 1, 0); !errors.As(err, &wrong) || wrong.Offset != int64(at/BlockSize*BlockSize) {
			t.Fatalf("byte %d is wrong: Verify = %v", at, err)
		}
	})
}

func TestAWrongBlockIsNamed(t *testing.T) {
	block := func(seed uint64, off int64) []byte {
		p := make([]byte, BlockSize)
		Fill(p, seed, off)
		return p
	}
	torn := block(7, 1024)
	copy(torn[256:], block(6, 1024)[256:])
	for _, c := range []struct {
		name string
		p    []byte
		want string
	}{
		{"misplaced", block(7, 4096), "the block for byte 4096 of pattern 7"},
		{"stale", block(6, 1024), "the block for byte 1024 of pattern 6"},
		{"never written", make([]byte, BlockSize), "zeros"},
		{"torn", torn, "the first 256 bytes of the block for byte 1024 of pattern 7"},
		{"foreign", bytes.Repeat([]byte{0xaa}, BlockSize), "something else: aa aa"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := Verify(c.p, 7, 1024); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Verify = %v; want it to name %q", err, c.want)
			}
		})
	}
}
