package sys

import (
	"math"
	"testing"
	"time"
)

// The kernel counts a timeout in milliseconds, in 32 bits.
func TestAWaitThatIsTooLongToCountIsStillAWait(t *testing.T) {
	for _, timeout := range []time.Duration{1 << 32 * time.Millisecond, math.MaxInt64} {
		e, err := NewEpoll()
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		fd, err := NewEventfd()
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		if err := e.Add(fd.Int(), 1); err != nil {
			t.Fatal(err)
		}
		tags := make(chan uint64, 1)
		ended := make(chan error)
		go func() { ended <- e.Wait(timeout, func(tag uint64) { tags <- tag }) }()
		select {
		case <-ended:
			t.Fatalf("a wait for %v is over at once", timeout)
		case <-time.After(5 * time.Millisecond):
		}
		if err := EventfdWrite(fd.Int()); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil || len(tags) != 1 {
			t.Errorf("%v, and %d descriptors were woken", err, len(tags))
		}
	}
}
