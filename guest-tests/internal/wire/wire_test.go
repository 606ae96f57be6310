package wire

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func line(a Answer) string { return strings.Trim(string(Encode(a)), "\n") }

func TestAnAnswerComesBackAsItWasSent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Answer{
			Token: rapid.StringMatching(`[a-z0-9-]{1,20}`).Draw(t, "token"),
			OK:    rapid.Bool().Draw(t, "ok"),
			Text:  rapid.String().Draw(t, "text"),
		}
		want.Last = want.OK && rapid.Bool().Draw(t, "last")
		got, found, err := Decode(line(want))
		if !found || err != nil || got != want {
			t.Fatalf("Decode = %+v, %v, %v; want %+v", got, found, err, want)
		}
	})
}

func TestAFrameIsFoundBehindAKernelMessageOnTheSameLine(t *testing.T) {
	want := Answer{Token: "t1", OK: true, Text: "done"}
	got, found, err := Decode("[    1.0] random: crng" + line(want) + "[ 1.1] x")
	if !found || err != nil || got != want {
		t.Fatalf("Decode = %+v, %v, %v; want %+v", got, found, err, want)
	}
}

func TestADamagedFrameIsNoticedAndNeverBelieved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Answer{Token: "t1", OK: true, Text: rapid.StringN(1, 60, -1).Draw(t, "text")}
		whole := line(want)
		at := rapid.IntRange(0, len(whole)-1).Draw(t, "at")
		damaged := whole[:at] + rapid.SampledFrom([]string{"", "[ 1.0] oops", "\x00"}).Draw(t, "noise") + whole[at+1:]
		got, _, err := Decode(damaged)
		if err == nil && got.Token != "" && got != want {
			t.Fatalf("%q was taken for %+v", damaged, got)
		}
	})
}

func TestBothHalvesOfATornFrameAreNoticed(t *testing.T) {
	whole := line(Answer{Token: "t1", OK: true, Text: "some text"})
	for _, half := range []string{whole[:10], whole[10:]} {
		if _, found, err := Decode(half); !found || !errors.Is(err, ErrTorn) {
			t.Errorf("Decode(%q) = %v, %v; want a torn frame", half, found, err)
		}
	}
}

func TestKernelMessagesAreNotFrames(t *testing.T) {
	for _, s := range []string{"", "[    0.000000] Linux version 6.1 (root@host)", "@", "vda: vda1"} {
		if _, found, err := Decode(s); found || err != nil {
			t.Errorf("Decode(%q) = %v, %v; want neither", s, found, err)
		}
	}
}
