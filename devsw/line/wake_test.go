package line

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"vdev/devsw"
)

// knote attaches a knote. What is returned has something when it was activated.
func (r *rig) knote(f devsw.Filter) (activated chan struct{}) {
	r.Helper()
	activated = make(chan struct{}, 1)
	kn := &devsw.Knote{Filter: f, Activate: func(int64) {
		select {
		case activated <- struct{}{}:
		default:
		}
	}}
	must(r, r.node.Kqfilter(kn))
	r.Cleanup(kn.Detach)
	return activated
}

// polled is knote by d_poll.
func (r *rig) polled(e devsw.PollEvents) func() {
	return func() {
		woken := make(chan struct{})
		if r.node.Poll(e, func() { close(woken) }) == 0 { // POLLHUP comes at once
			<-woken
		}
	}
}

// waits gives ways to wait for an event.
func (r *rig) waits(f devsw.Filter, e devsw.PollEvents) map[string]func() {
	activated := r.knote(f)
	return map[string]func(){"knote": func() { <-activated }, "poll": r.polled(e)}
}

// TestAWriteThatIsToldToWaitIsToldOfRoom: whoever is answered EAGAIN and waits is woken, with ends
// that take a little at a time, and that come and go.
func TestAWriteThatIsToldToWaitIsToldOfRoom(t *testing.T) {
	for _, how := range []string{"knote", "poll"} {
		t.Run(how, func(t *testing.T) {
			const total = 256 << 10
			r := newRig(t, Config{Scrollback: 300, Overflow: Wait})
			got := make(chan []byte)
			go func() {
				var shown []byte
				for n := 0; len(shown) < total; n++ {
					s := newScreen(0)
					if r.Add(s, "", Main) != nil {
						break
					}
					for range 50 {
						s.allow(1 + n%977)
					}
					s.Remove()
					<-s.Done()
					shown = append(shown, s.shown.Bytes()...)
				}
				got <- shown
			}()
			wait := r.waits(devsw.EVFILTWrite, devsw.POLLOUT)[how]
			want := stream(0, total)
			for sent := 0; sent < total; {
				n, err := r.put(bytes.Clone(want[sent:min(total, sent+123)]))
				if sent += n; err == devsw.EAGAIN {
					wait()
				} else {
					must(t, err)
				}
			}
			if shown := <-got; !bytes.Equal(shown, want) {
				t.Errorf("%d bytes are shown, not those that were written", len(shown))
			}
		})
	}
}

// TestAReadThatFindsNothingIsToldOfInput: the same for d_read, with several ends that put something
// now and then, and that come and go. What each has put comes in order, and whole.
func TestAReadThatFindsNothingIsToldOfInput(t *testing.T) {
	for _, how := range []string{"knote", "poll", "sleep"} {
		t.Run(how, func(t *testing.T) {
			const writers, each = 3, 20_000
			r := newRig(t, Config{})
			must(t, r.Add(NewNull(), "keeps the line up", Main))
			var wg sync.WaitGroup
			for i := range writers {
				wg.Go(func() {
					for n := 0; n < each; {
						s := newScreen(all)
						s.q = NewQueue(7, s.Ready)
						if r.Add(s, "", Main) != nil {
							return
						}
						for last := min(each, n+100); n < last; n++ {
							s.q.Put([]byte{byte(i)<<6 | byte(n%61)})
						}
						s.q.CloseWrite()
						if n%200 == 0 {
							s.Hangup()
						}
						<-s.Done()
					}
				})
			}
			wait := r.waits(devsw.EVFILTRead, devsw.POLLIN)[how]
			flag := nb
			if how == "sleep" {
				flag = rw
			}
			var next [writers]int
			for n := 0; n < writers*each; {
				p := make([]byte, 1+n%10)
				u := devsw.NewUio(devsw.UIORead, p)
				err := r.node.Read(u, flag)
				switch {
				case err == devsw.EAGAIN:
					wait()
				case err != nil:
					t.Fatal(err)
				}
				got := p[:len(p)-u.Resid]
				for _, b := range got {
					if i := b >> 6; int(b&63) != next[i]%61 {
						t.Fatalf("writer %d: %d comes, want %d", i, b&63, next[i]%61)
					}
					next[b>>6]++
				}
				n += len(got)
			}
			for r.node.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), nb) == nil {
			}
			go func() { // some may wait for a read to find that nothing comes from them
				for r.node.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), rw) == nil {
				}
			}()
			wg.Wait()
		})
	}
}

func TestACancelWakesWhoSleepsAndAnOpenGoesOn(t *testing.T) {
	r := newRig(t, Config{Scrollback: 5, Overflow: Wait})
	r.write("01234")
	s := newScreen(0)
	must(t, r.Add(s, "terminal", Main))
	s.blocked()
	ends := make(chan error, 2)
	u := devsw.NewUio(devsw.UIORead, make([]byte, 1))
	go func() { ends <- r.node.Read(u, rw) }()
	go func() { ends <- r.node.Write(devsw.NewUio(devsw.UIOWrite, []byte("5678")), rw) }()
	must(t, r.driver.cancel(r.dev, rw, devsw.IFCHR))
	for range 2 {
		is(t, "what sleeps", <-ends, devsw.ECANCELED)
	}
	_, err := r.put([]byte("x"))
	is(t, "a write after a cancel", err, devsw.ECANCELED)
	_, err = r.get(1)
	is(t, "a read after a cancel", err, devsw.ECANCELED)
	is(t, "an open after a cancel", r.driver.open(r.dev, rw, devsw.IFCHR), devsw.ECANCELED)
	must(t, r.node.Close(rw))
	for range 2 {
		must(t, r.driver.close(r.dev, rw, devsw.IFCHR))
	}
	must(t, r.node.Open(t.Context(), rw))
	s.q.Put([]byte("in"))
	if got, err := r.get(2); got != "in" || err != nil {
		t.Errorf("%q, %v is read", got, err)
	}
	s.allow(all)
	r.write("56")
	r.shows(s, "0123456")
}

func TestTheNewestTerminalHasTheSizeOfTheWindow(t *testing.T) {
	size := func(r *rig) string {
		var s devsw.Winsize
		if err := r.node.Ioctl(devsw.TIOCGWINSZ, &s, rw); err != nil {
			is(t, "the size", err, devsw.ENOTTY)
			return "none"
		}
		return fmt.Sprintf("%dx%d", s.Col, s.Row)
	}
	for fixed, last := range map[devsw.Winsize]string{{}: "100x40", {Row: 25, Col: 90}: "90x25"} {
		r := newRig(t, Config{Size: fixed})
		changed := r.knote(devsw.EVFILTLine)
		<-changed // it is there when the knote is attached
		want := func(what, want string) {
			t.Helper()
			<-changed
			if got := size(r); got != want {
				t.Errorf("%s: the size is %s, want %s", what, got, want)
			}
		}
		if got := size(r); fixed == (devsw.Winsize{}) && got != "none" {
			t.Errorf("at first it is %s", got)
		}
		a, b := newScreen(all), newScreen(all)
		a.SetSize(devsw.Winsize{Row: 40, Col: 100})
		must(t, r.Add(a, "a", Main))
		want("with one", "100x40")
		b.SetSize(devsw.Winsize{Row: 50})
		must(t, r.Add(b, "b", Watcher))
		want("with one more, which has none", "100x40")
		b.SetSize(devsw.Winsize{Row: 50, Col: 132})
		want("with one more", "132x50")
		b.SetSize(devsw.Winsize{})
		want("which has none any more", "100x40")
		b.SetSize(devsw.Winsize{Row: 50, Col: 132})
		want("and one again", "132x50")
		a.SetSize(devsw.Winsize{Row: 41, Col: 101})
		if got := size(r); got != "132x50" {
			t.Errorf("the older one decides: %s", got)
		}
		a.SetSize(devsw.Winsize{Row: 40, Col: 100})
		b.Remove()
		want("without the newer one", "100x40")
		a.Remove()
		want("without any", last)
		is(t, "a size for something else", r.node.Ioctl(devsw.TIOCGWINSZ, new(int), rw), devsw.EINVAL)
		is(t, "another command", r.node.Ioctl(devsw.DIOCGROW, nil, rw), devsw.ENOTTY)
	}
}

// TestWhoHasGoneHasNoSize, though what he has typed is not read yet.
func TestWhoHasGoneHasNoSize(t *testing.T) {
	r := newRig(t, Config{})
	a, b := r.add("a", Main, all), r.add("b", Main, all)
	a.SetSize(devsw.Winsize{Row: 40, Col: 100})
	b.SetSize(devsw.Winsize{Row: 50, Col: 132})
	b.q.Put([]byte("unread"))
	b.Hangup()
	if st := r.Status(); st.Size != (devsw.Winsize{Row: 40, Col: 100}) {
		t.Errorf("the size is %+v", st.Size)
	}
}

func TestALineIsHungUpWithoutAMainEnd(t *testing.T) {
	r := newRig(t, Config{Overflow: Wait, Scrollback: 10})
	want := func(what string, want devsw.PollEvents) {
		t.Helper()
		if got := r.node.Poll(devsw.POLLIN|devsw.POLLOUT, nil); got != want {
			t.Errorf("%s: %#x, want %#x", what, got, want)
		}
	}
	want("alone", devsw.POLLOUT|devsw.POLLHUP)
	r.add("log", Watcher, all)
	changed := r.knote(devsw.EVFILTLine)
	<-changed
	s := r.add("terminal", Main, 0)
	<-changed
	r.get(1)
	want("with a terminal", devsw.POLLOUT)
	s.q.Put([]byte("x"))
	want("with input", devsw.POLLIN|devsw.POLLOUT)
	r.put(make([]byte, 10))
	want("full", devsw.POLLIN)
	woken := make(chan struct{})
	if e := r.node.Poll(devsw.POLLOUT, func() { close(woken) }); e != 0 {
		t.Errorf("polled: %#x", e)
	}
	s.stop()
	<-woken
	<-changed
	want("with one that has gone and left input", devsw.POLLIN|devsw.POLLHUP)
	if got, err := r.get(5); got != "x" || err != nil {
		t.Errorf("%q, %v is read", got, err)
	}
	is(t, "a knote for something else", r.node.Kqfilter(&devsw.Knote{Filter: -7}), devsw.EINVAL)
}

func TestInputComesByTurnsAndFirstFromWhoHasGone(t *testing.T) {
	r := newRig(t, Config{})
	a, b, c := r.add("a", Main, all), r.add("b", Main, all), r.add("c", Watcher, all)
	for _, s := range []*screen{a, b, c} {
		s.q.Put([]byte(strings.Repeat(map[*screen]string{a: "a", b: "b", c: "c"}[s], 3)))
	}
	b.q.CloseWrite()
	b.Hangup()
	var got string
	for range 9 {
		s, err := r.get(1)
		must(t, err)
		got += s
	}
	if got != "bbbacacac" {
		t.Errorf("the order is %s", got)
	}
	_, err := r.get(1)
	is(t, "a read at the end", err, devsw.EAGAIN)
	<-b.Done()
	if st := r.Status(); len(st.Ends) != 2 || st.Read != 9 || st.Ends[0].Received != 3 {
		t.Errorf("status %+v", st)
	}
}

// TestWhoHasGoneIsForgottenAtLast: on a console that nobody reads from.
func TestWhoHasGoneIsForgottenAtLast(t *testing.T) {
	for overflow, want := range map[Overflow]int{Drop: maxHungup, Wait: 2 * maxHungup} {
		r := newRig(t, Config{Overflow: overflow})
		for range 2 * maxHungup {
			s := r.add("", Main, all)
			s.q.Put([]byte("unread"))
			s.Hangup()
			s.Hangup()
			s.stop()
		}
		if n := len(r.Status().Ends); n != want {
			t.Errorf("%v: %d ends are there, want %d", overflow, n, want)
		}
	}
}

// hung is an End whose Writev does not return before it is told how many bytes it has taken,
// whatever else is done.
type hung struct {
	Base
	in  chan struct{}
	out chan int
}

func newHung() *hung { return &hung{in: make(chan struct{}), out: make(chan int)} }

func (h *hung) Writev([][]byte) (int, error) {
	close(h.in)
	return <-h.out, io.ErrClosedPipe
}

func (h *hung) Close() {}

// TestTheNextGetsWhatTheLastOneHasNotTaken, also where that is known only when the next is there,
// and where the last one was not the first.
func TestTheNextGetsWhatTheLastOneHasNotTaken(t *testing.T) {
	for _, one := range []string{"the only one", "one of two"} {
		t.Run(one, func(t *testing.T) {
			r := newRig(t, Config{Overflow: Wait})
			var first *screen
			if one != "the only one" {
				first = r.add("first", Main, all)
			}
			h := newHung()
			must(t, r.Add(h, "last", Main))
			if first != nil {
				first.Remove()
			}
			r.write("abcdef")
			<-h.in
			h.Remove()
			s := r.add("next", Main, all)
			r.write("g")
			for waits := false; !waits; runtime.Gosched() {
				r.mu.Lock()
				waits = s.feed == asleep || s.sent > 0
				r.mu.Unlock()
			}
			h.out <- 2
			r.shows(s, "cdefg")
			if st := r.Status(); st.Ends[0].Sent != 5 || st.Ends[0].Lost != 0 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// TestAHangupIsToldToWhoReads, though the End itself has nothing more to tell.
func TestAHangupIsToldToWhoReads(t *testing.T) {
	r := newRig(t, Config{})
	s := r.add("terminal", Main, all)
	_, err := r.get(1)
	is(t, "a read", err, devsw.EAGAIN)
	activated := r.knote(devsw.EVFILTRead)
	s.Hangup()
	<-activated
}

// TestADrainEndsWhenTheLastOneHasTakenAll, though the next one gets nothing then.
func TestADrainEndsWhenTheLastOneHasTakenAll(t *testing.T) {
	for range 200 {
		r := newRig(t, Config{Overflow: Wait})
		h := newHung()
		must(t, r.Add(h, "last", Main))
		r.write("abcdef")
		<-h.in
		h.Remove()
		r.add("next", Main, all)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		drained := make(chan error)
		go func() { drained <- r.Drain(ctx) }()
		for waits := false; !waits; runtime.Gosched() {
			r.mu.Lock()
			waits = r.moved != nil
			r.mu.Unlock()
		}
		h.out <- 6
		must(t, <-drained)
		cancel()
	}
}

func TestADrainDoesNotWaitForWhoHasGone(t *testing.T) {
	r := newRig(t, Config{})
	h := newHung()
	must(t, r.Add(h, "hung", Main))
	r.write("abc")
	<-h.in
	drained := make(chan error)
	go func() { drained <- r.Drain(t.Context()) }()
	for waits := false; !waits; runtime.Gosched() {
		r.mu.Lock()
		waits = r.moved != nil
		r.mu.Unlock()
	}
	h.Remove()
	must(t, <-drained)
	h.out <- 0
}

func TestCloseWaitsForNobody(t *testing.T) {
	r := newRig(t, Config{Scrollback: 4, Overflow: Wait})
	h := newHung()
	must(t, r.Add(h, "hung", Main))
	r.write("abc")
	<-h.in
	ends := make(chan error, 2)
	go func() { ends <- r.node.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), rw) }()
	go func() { ends <- r.node.Write(devsw.NewUio(devsw.UIOWrite, make([]byte, 10)), rw) }()
	now, cancel := context.WithCancel(t.Context())
	cancel()
	is(t, "a drain", r.Drain(now), context.Canceled)
	r.Close()
	r.Close()
	for range 2 {
		is(t, "what sleeps", <-ends, devsw.ENXIO)
	}
	is(t, "a wait", r.Wait(now), context.Canceled)
	must(t, r.Drain(t.Context())) // there is nobody any more
	select {
	case <-h.Done():
		t.Error("it is done, and in a Writev")
	default:
	}
	is(t, "adding one more", r.Add(newScreen(0), "late", Main), devsw.ENXIO)
	if e := r.node.Poll(devsw.POLLIN, nil); e != devsw.POLLERR {
		t.Errorf("poll: %#x", e)
	}
	is(t, "an open", r.driver.open(r.dev, rw, devsw.IFCHR), devsw.ENXIO)
	h.out <- 0
	<-h.Done()
}

func TestAnErrorOfWritevHangsUp(t *testing.T) {
	r := newRig(t, Config{})
	s := r.add("terminal", Main, 2)
	s.q.Put([]byte("typed"))
	r.write("abc")
	s.blocked()
	s.stop()
	changed := r.knote(devsw.EVFILTLine)
	for !r.Status().Ends[0].Hungup {
		<-changed
	}
	if got, err := r.get(9); got != "typed" || err != nil {
		t.Errorf("%q, %v is read", got, err)
	}
	s.q.CloseWrite()
	_, err := r.get(9)
	is(t, "a read at the end", err, devsw.EAGAIN)
	<-s.Done()
}

func TestADriversUnits(t *testing.T) {
	r := newRig(t, Config{})
	if l, err := r.driver.Unit(0); l != r.Line || err != nil {
		t.Errorf("unit 0: %v, %v", l, err)
	}
	for _, n := range []int{-1, 1, 1 << 20} {
		_, err := r.driver.Unit(n)
		is(t, "a unit that is not there", err, devsw.ENXIO)
	}
	_, err := r.driver.Create(0, New(Config{}))
	is(t, "a unit twice", err, devsw.EEXIST)
	is(t, "destroying what is open", r.driver.Destroy(0), devsw.EBUSY)
	is(t, "detaching what is open", r.driver.Detach(), devsw.EBUSY)
	r.write("it goes on")
	must(t, r.node.Close(rw))
	must(t, r.driver.Destroy(0))
	is(t, "adding to what is destroyed", r.Add(newScreen(0), "", Main), devsw.ENXIO)
	is(t, "destroying it again", r.driver.Destroy(0), devsw.ENXIO)
	gone := devsw.Makedev(r.dev.Major(), 7)
	is(t, "opening what is not there", r.driver.open(gone, rw, devsw.IFCHR), devsw.ENXIO)
	is(t, "closing what is not there", r.driver.close(gone, rw, devsw.IFCHR), devsw.ENXIO)
	must(t, r.driver.cancel(gone, rw, devsw.IFCHR))
	if e := r.driver.poll(gone, devsw.POLLIN, nil); e != devsw.POLLERR {
		t.Errorf("poll of what is not there: %#x", e)
	}
	_, err = Attach(r.table, "line", devsw.NODEVMAJOR)
	is(t, "attaching it twice", err, devsw.EEXIST)
}
