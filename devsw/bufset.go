package devsw

import (
	"slices"
	"sync"
)

// Ticket names one stay of a Buf in a BufSet. No two are the same, and zero is
// none.
type Ticket uint64

// BufSet is the transfers a unit has in progress outside d_strategy, for
// drivers that cannot take them back from where they are: a BufSet decides who
// ends a transfer, d_cancel or the driver, and that one of them does so once.
//
//	d_strategy               Add, keep the ticket, start the work
//	when the work is there   Claim with the ticket; then Data, Resid, Error, Biodone
//	d_cancel                 Cancel
//	CancelBuf                CancelBuf
//	d_close                  Reset
//
// The driver must not touch a Buf (nor its Data) between Add and Claim: it may
// have been cancelled and be in use for something else. For the same reason work
// is known by its ticket and not by its Buf. Claimed transfers are not cancelled
// any more; the driver ends them soon.
//
// The zero BufSet is ready to use, on any goroutine. Its lock is a leaf: no
// Iodone is called under it.
type BufSet struct {
	mu        sync.Mutex
	bufs      map[Ticket]*Buf
	tickets   BufIndex[Ticket]
	last      Ticket
	cancelled bool
}

// Add puts b in the set and gives its ticket. Once the set is cancelled it
// fails: b has then been ended with ECANCELED and is not the driver's any more.
func (s *BufSet) Add(b *Buf) (Ticket, bool) {
	s.mu.Lock()
	if s.cancelled {
		s.mu.Unlock()
		b.Fail(ECANCELED)
		return 0, false
	}
	defer s.mu.Unlock()
	if s.bufs == nil {
		s.bufs = make(map[Ticket]*Buf)
	}
	s.last++
	s.bufs[s.last] = b
	return s.last, true
}

// Claim takes the Buf of this ticket out of the set; it is then the caller's to
// end. It is nil where it was cancelled or claimed before.
func (s *BufSet) Claim(t Ticket) *Buf {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bufs[t]
	delete(s.bufs, t)
	s.tickets.Ended(b)
	return b
}

// Cancel ends every transfer in the set with ECANCELED, nothing transferred,
// the oldest first, and makes Add fail until Reset. It does not wait for those
// that are claimed.
func (s *BufSet) Cancel() {
	s.mu.Lock()
	s.cancelled = true
	tickets := make([]Ticket, 0, len(s.bufs))
	for t := range s.bufs {
		tickets = append(tickets, t)
	}
	s.mu.Unlock()

	slices.Sort(tickets)
	for _, t := range tickets {
		if b := s.Claim(t); b != nil {
			b.Fail(ECANCELED)
		}
	}
}

// CancelBuf ends b with ECANCELED, nothing transferred, if it is in the set, and
// tells whether it was. b is only compared.
func (s *BufSet) CancelBuf(b *Buf) bool {
	if !s.remove(b) {
		return false
	}
	b.Fail(ECANCELED)
	return true
}

func (s *BufSet) remove(b *Buf) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tickets.Find(b, uint64(s.last), func(yield func(*Buf, Ticket) bool) {
		for t, b := range s.bufs {
			if !yield(b, t) {
				return
			}
		}
	})
	delete(s.bufs, t)
	s.tickets.Ended(b)
	return ok
}

// Reset makes Add succeed again. It is d_close that calls it, for the reason
// given at Cv.
func (s *BufSet) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancelled = false
}

// Len is the number of transfers in the set.
func (s *BufSet) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.bufs)
}
