package devsw

import (
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestBufSetCancelEndsEachBufOnceOldestFirst(t *testing.T) {
	var (
		s     BufSet
		ended []int
	)
	add := func(i int) (Ticket, bool) {
		return s.Add(&Buf{Bcount: 512, Context: i, Iodone: func(b *Buf) {
			if b.Error != ECANCELED || b.Resid != 512 {
				t.Errorf("buf %d ends with %v, %d left", i, b.Error, b.Resid)
			}
			ended = append(ended, i)
		}})
	}
	var tickets []Ticket
	for i := range 20 {
		ticket, ok := add(i)
		if !ok {
			t.Fatal("Add fails")
		}
		tickets = append(tickets, ticket)
	}
	claimed := s.Claim(tickets[3])
	if claimed == nil || claimed.Context != 3 {
		t.Fatalf("Claim gives %v", claimed)
	}
	s.Cancel()
	var want []int
	for i := range 20 {
		if i != 3 {
			want = append(want, i)
		}
	}
	if !slices.Equal(ended, want) {
		t.Errorf("ended %v, want %v", ended, want)
	}
	for _, ticket := range tickets {
		if s.Claim(ticket) != nil {
			t.Errorf("ticket %d is claimed a second time", ticket)
		}
	}
	if _, ok := add(20); ok || ended[len(ended)-1] != 20 {
		t.Error("a Buf added after Cancel was not ended")
	}
	s.Reset()
	if _, ok := add(21); !ok || s.Len() != 1 {
		t.Error("Add fails after Reset")
	}
}

// A ticket stands for one stay of a Buf: late work on the stay before must not
// end the transfer the Buf is used for now.
func TestBufSetTicketsDoNotOutliveTheirStay(t *testing.T) {
	var s BufSet
	b := &Buf{}
	old, _ := s.Add(b)
	s.Cancel()
	s.Reset()
	b.Rearm()
	now, _ := s.Add(b)
	if s.Claim(old) != nil {
		t.Error("the old ticket claims the new transfer")
	}
	if s.Claim(now) != b {
		t.Error("the new ticket does not claim")
	}
}

func TestBufSetCancelBufEndsTheOneBuf(t *testing.T) {
	var (
		s     BufSet
		ended []*Buf
		bufs  [3]Buf
	)
	for i := range bufs {
		bufs[i] = Buf{Bcount: 512, Iodone: func(b *Buf) { ended = append(ended, b) }}
	}
	first, _ := s.Add(&bufs[0])
	second, _ := s.Add(&bufs[1])
	if !s.CancelBuf(&bufs[1]) || !slices.Equal(ended, []*Buf{&bufs[1]}) || bufs[1].Error != ECANCELED || bufs[1].Resid != 512 {
		t.Errorf("ended %v, with %v", ended, bufs[1].Error)
	}
	if s.CancelBuf(&bufs[1]) || s.CancelBuf(&bufs[2]) || s.Claim(second) != nil || len(ended) != 1 {
		t.Error("a Buf that is not there was cancelled")
	}
	if s.Claim(first) != &bufs[0] || s.CancelBuf(&bufs[0]) {
		t.Error("the other Buf is not the driver's to end")
	}
	if _, ok := s.Add(&bufs[2]); !ok {
		t.Error("the set is cancelled")
	}
}

// TestManyCancelsSearchOnce: what is cancelled after the first one is found without a look at all
// that is in the set.
func TestManyCancelsSearchOnce(t *testing.T) {
	const n = 20
	var s BufSet
	bufs := make([]Buf, n)
	for i := range bufs {
		bufs[i].Iodone = func(*Buf) {}
		s.Add(&bufs[i])
	}
	found := 0
	for i := range bufs {
		if s.CancelBuf(&bufs[i]) {
			found++
		}
		s.bufs = nil // who looks here from now on finds nothing
	}
	if found != n {
		t.Errorf("%d of %d were found", found, n)
	}
}

func TestBufSetModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s BufSet
		in := map[Ticket]*Buf{}
		ends := map[*Buf]int{}
		cancelled := false
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				b := &Buf{Iodone: func(b *Buf) { ends[b]++ }}
				ends[b] = 0
				ticket, ok := s.Add(b)
				if ok == cancelled {
					t.Fatalf("Add gives %v, cancelled %v", ok, cancelled)
				}
				if ok {
					if in[ticket] != nil {
						t.Fatalf("ticket %d is given twice", ticket)
					}
					in[ticket] = b
				}
			},
			"claim": func(t *rapid.T) {
				ticket := Ticket(rapid.Uint64Range(0, uint64(len(ends)+1)).Draw(t, "ticket"))
				b := s.Claim(ticket)
				if b != in[ticket] {
					t.Fatalf("Claim(%d) gives %p, want %p", ticket, b, in[ticket])
				}
				if b != nil {
					delete(in, ticket)
					b.Biodone()
				}
			},
			"cancel": func(*rapid.T) { s.Cancel(); cancelled = true; clear(in) },
			"reset":  func(*rapid.T) { s.Reset(); cancelled = false },
			"": func(t *rapid.T) {
				if s.Len() != len(in) {
					t.Fatalf("Len is %d, want %d", s.Len(), len(in))
				}
				for b, n := range ends {
					want := 1
					for _, c := range in {
						if b == c {
							want = 0
						}
					}
					if n != want {
						t.Fatalf("a Buf has ended %d times, want %d", n, want)
					}
				}
			},
		})
	})
}

func TestBufSetOnManyGoroutines(t *testing.T) {
	var (
		s  BufSet
		wg sync.WaitGroup
	)
	for range 4 {
		wg.Go(func() {
			for range 500 {
				done := make(chan struct{})
				// A second end would panic, a missing one hang.
				b := &Buf{Iodone: func(*Buf) { close(done) }}
				if ticket, ok := s.Add(b); ok {
					go func() {
						if b := s.Claim(ticket); b != nil {
							b.Biodone()
						}
					}()
				}
				<-done
			}
		})
	}
	wg.Go(func() {
		for range 500 {
			s.Cancel()
			s.Reset()
		}
	})
	wg.Wait()
	if n := s.Len(); n != 0 {
		t.Errorf("%d Bufs are left", n)
	}
}
