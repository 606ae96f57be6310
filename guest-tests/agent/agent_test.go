//go:build linux

package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"vdev/guest-tests/internal/pattern"
	"vdev/guest-tests/internal/wire"
)

// ask has an agent serve the lines and returns its answers.
func ask(t *testing.T, lines ...string) []wire.Answer {
	t.Helper()
	var out strings.Builder
	a := &agent{console: io.Discard, started: map[string]background{}}
	if err := a.serve(line{strings.NewReader(strings.Join(lines, "\n") + "\n"), &out}); err != nil {
		t.Fatal(err)
	}
	var answers []wire.Answer
	for s := bufio.NewScanner(strings.NewReader(out.String())); s.Scan(); {
		w, found, err := wire.Decode(s.Text())
		if err != nil {
			t.Fatal(err)
		}
		if found {
			answers = append(answers, w)
		}
	}
	if len(answers) == 0 || answers[0].Token != wire.Hello {
		t.Fatalf("answers %+v: want a hello first", answers)
	}
	return answers[1:]
}

// line is both ways of a conversation.
type line struct {
	io.Reader
	io.Writer
}

func TestTheLastAnswerIsRepeatedOnRequest(t *testing.T) {
	got := ask(t, "t1 no-such-command", "t1 again", "t0 again")
	if len(got) != 2 || got[0] != got[1] || got[0].OK {
		t.Errorf("answers %+v; want the same error twice, and nothing for a token that is not the last one", got)
	}
}

func TestACommandInTheBackgroundGivesItsResultWhenAsked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	got := ask(t,
		"a start w write "+file+" size=1M",
		"b start w write "+file+" size=1M",
		"c wait w",
		"d wait w",
		"e verify "+file)
	want := []bool{true, false, true, false, true}
	for i, w := range got {
		if w.OK != want[i] {
			t.Errorf("%s: %+v", w.Token, w)
		}
	}
}

func TestErrorsCarryTheirNumbersName(t *testing.T) {
	got := ask(t, "t read /no/such/file")
	if got[0].OK || !strings.HasSuffix(got[0].Text, "(ENOENT)") {
		t.Errorf("answer %+v", got[0])
	}
}

func TestEveryByteIsTransferredExactlyOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		off := rapid.Int64Range(0, 100).Draw(t, "off") * pattern.BlockSize
		size := rapid.Int64Range(1, 20000).Draw(t, "size") * pattern.BlockSize
		bs := rapid.SampledFrom([]string{"512", "4k", "512-4M", "4k-64k", "1536-3k", "1M"}).Draw(t, "bs")
		workers := rapid.IntRange(1, 9).Draw(t, "workers")
		list, err := cut(off, size, bs, rapid.Uint64().Draw(t, "seed"))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[int64]bool{}
		var sum int64
		for _, part := range share(list, workers, rapid.Bool().Draw(t, "rand"), 1) {
			for _, e := range part {
				if e.len <= 0 || e.len%pattern.BlockSize != 0 || e.off < off || e.off+int64(e.len) > off+size || seen[e.off] {
					t.Fatalf("piece %+v", e)
				}
				seen[e.off] = true
				sum += int64(e.len)
			}
		}
		if sum != size {
			t.Fatalf("%d bytes of %d", sum, size)
		}
	})
}

func TestPiecesKeepToTheirBounds(t *testing.T) {
	list, err := cut(0, 64<<20, "4k-64k", 1)
	if err != nil {
		t.Fatal(err)
	}
	lengths := map[int]int{}
	for _, e := range list[:len(list)-1] {
		if e.len < 4<<10 || e.len > 64<<10 || e.len%(4<<10) != 0 {
			t.Fatalf("a piece of %d bytes", e.len)
		}
		lengths[e.len]++
	}
	if lengths[4<<10] == 0 || lengths[64<<10] == 0 {
		t.Errorf("lengths %v: want both ends of the range", lengths)
	}
	for _, bs := range []string{"0", "100", "4k-512", "x", "1G"} {
		if _, err := cut(0, 1<<20, bs, 1); err == nil {
			t.Errorf("block size %q was taken", bs)
		}
	}
}

func TestADamagedFileIsNotVerified(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if w := ask(t, "t write "+name+" size=256k seed=5 bs=4k workers=3 rand check"); !w[0].OK {
		t.Fatal(w)
	}
	damage := func(at int64) {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		_, err1 := f.ReadAt(b[:], at)
		b[0] ^= 0x80
		_, err2 := f.WriteAt(b[:], at)
		if err := errors.Join(err1, err2, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []string{"verify " + name + " seed=5 workers=3", "verify " + name + " seed=5 bs=512 rand"} {
		if w := ask(t, "t "+c); !w[0].OK {
			t.Errorf("%s: %+v", c, w[0])
		}
	}
	damage(100_000)
	if w := ask(t, "t verify "+name+" seed=5 workers=3"); w[0].OK || !strings.Contains(w[0].Text, "block at byte 99840") {
		t.Errorf("answer %+v; want the damaged block", w[0])
	}
	if w := ask(t, "t zeros "+name); w[0].OK {
		t.Error("a pattern was taken for zeros")
	}
}

func TestAServedConversationEndsWithItsInput(t *testing.T) {
	r, w := io.Pipe()
	done := make(chan error)
	a := &agent{console: io.Discard, started: map[string]background{}}
	go func() { done <- a.serve(line{r, io.Discard}) }()
	io.WriteString(w, "t1 help\n")
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
