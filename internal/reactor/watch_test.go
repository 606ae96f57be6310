package reactor

import (
	"testing"

	"vdev/internal/sys"
)

// watched takes what is in an eventfd.
type watched struct {
	fd    int
	polls chan bool // a value for each Poll that found something
	end   bool      // on the reactor: the next Poll is the last
	over  chan struct{}
}

func (w *watched) Poll() (worked, over bool) {
	if n, err := sys.EventfdRead(w.fd); err == nil && n > 0 {
		worked = true
		w.polls <- true
	}
	return worked, w.end
}

func (w *watched) Sleep() {}
func (w *watched) Over()  { close(w.over) }

func TestWatchedIsPolledWhenItsDescriptorIsReadableUntilItIsOver(t *testing.T) {
	for _, mode := range []Mode{ModeURing, ModeThreads} {
		t.Run(string(mode), func(t *testing.T) {
			p, err := NewPool(Config{Mode: mode})
			if err != nil {
				t.Skipf("the host has no such reactors: %v", err)
			}
			defer p.Close()
			fd, err := sys.NewEventfd()
			if err != nil {
				t.Fatal(err)
			}
			defer fd.Close()
			w := &watched{fd: fd.Int(), polls: make(chan bool, 16), over: make(chan struct{})}
			r := p.Pick()
			wake := r.Watch(fd.Int(), w)
			for range 3 {
				if err := sys.EventfdWrite(fd.Int()); err != nil {
					t.Fatal(err)
				}
				<-w.polls
			}
			r.Do(func() { w.end = true })
			wake()
			<-w.over
			wake() // nothing is left to wake
			if err := sys.EventfdWrite(fd.Int()); err != nil {
				t.Fatal(err)
			}
			r.Do(func() {})
			if len(w.polls) != 0 {
				t.Error("it is polled after its end")
			}
		})
	}
}
