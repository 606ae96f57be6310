package line

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"vdev/devsw"
	"vdev/specfs"
)

const (
	rw = devsw.FREAD | devsw.FWRITE
	nb = rw | devsw.FNONBLOCK
)

// rig is a Line that is open.
type rig struct {
	testing.TB
	*Line
	table  *devsw.Table
	driver *Driver
	dev    devsw.Dev
	node   *specfs.Node
}

func newRig(t testing.TB, conf Config) *rig {
	t.Helper()
	table := devsw.NewTable()
	d, err := Attach(table, "line", devsw.NODEVMAJOR)
	must(t, err)
	r := &rig{TB: t, Line: New(conf), table: table, driver: d}
	r.dev, err = d.Create(0, r.Line)
	must(t, err)
	r.node = specfs.New(table).Node(devsw.IFCHR, r.dev)
	must(t, r.node.Open(t.Context(), rw))
	t.Cleanup(func() {
		if err := r.node.Close(rw); !errors.Is(err, devsw.EBADF) { // a test may have closed it
			must(t, err)
		}
		must(t, d.Detach())
		must(t, r.Wait(context.Background()))
	})
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// put writes without waiting, and returns what was taken.
func (r *rig) put(p []byte) (int, error) {
	u := devsw.NewUio(devsw.UIOWrite, p)
	err := r.node.Write(u, nb)
	return len(p) - u.Resid, err
}

// write writes all of it, or waits.
func (r *rig) write(s string) {
	r.Helper()
	must(r, r.node.Write(devsw.NewUio(devsw.UIOWrite, []byte(s)), rw))
}

// get reads n bytes at most, without waiting.
func (r *rig) get(n int) (string, error) {
	p := make([]byte, n)
	u := devsw.NewUio(devsw.UIORead, p)
	err := r.node.Read(u, nb)
	return string(p[:n-u.Resid]), err
}

// screen is an End that shows what it gets. It takes as much as it is allowed to.
type screen struct {
	Base
	q *Queue

	mu     sync.Mutex
	cond   sync.Cond
	shown  bytes.Buffer
	credit int // bytes that Writev may take
	busy   bool
	closed bool
}

const all = 1 << 40

func newScreen(credit int) *screen {
	s := &screen{credit: credit}
	s.cond.L = &s.mu
	s.q = NewQueue(0, s.Ready)
	return s
}

func (s *screen) Writev(p [][]byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = true
	s.cond.Broadcast()
	defer func() { s.busy = false }()
	for s.credit == 0 && !s.closed {
		s.cond.Wait()
	}
	if s.closed {
		return 0, io.ErrClosedPipe
	}
	for _, b := range p {
		b = b[:min(len(b), s.credit)]
		s.shown.Write(b)
		s.credit -= len(b)
		n += len(b)
	}
	s.cond.Broadcast()
	return n, nil
}

func (s *screen) Readv(p [][]byte) (int, error) { return s.q.Readv(p) }

func (s *screen) Close() {
	s.q.Close()
	s.stop()
}

// stop has its Writev fail.
func (s *screen) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.cond.Broadcast()
}

// allow lets it take n bytes more.
func (s *screen) allow(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credit += n
	s.cond.Broadcast()
}

// blocked waits until it is in a Writev that it may take nothing of.
func (s *screen) blocked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.busy || s.credit > 0 {
		s.cond.Wait()
	}
}

// shows waits until it has shown n bytes, and returns what it shows.
func (s *screen) shows(n int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.shown.Len() < n {
		s.cond.Wait()
	}
	return s.shown.String()
}

// add adds a screen.
func (r *rig) add(name string, role Role, credit int) *screen {
	r.Helper()
	s := newScreen(credit)
	must(r, r.Add(s, name, role))
	return s
}

func (r *rig) shows(s *screen, want string) {
	r.Helper()
	if got := s.shows(len(want)); got != want {
		r.Fatalf("%q is shown, want %q", got, want)
	}
}

func TestWhoAttachesSeesWhatWasBeforeAndThenWhatComes(t *testing.T) {
	r := newRig(t, Config{Scrollback: 10})
	r.write("0123456789abcd")
	s := r.add("late", Main, all)
	r.shows(s, "456789abcd")
	r.write("ef")
	r.shows(s, "456789abcdef")
	w := r.add("log", Watcher, all)
	r.shows(w, "6789abcdef")
	r.write("gh")
	r.shows(s, "456789abcdefgh")
	r.shows(w, "6789abcdefgh")
	if st := r.Status(); st.Dropped != 4 || st.Written != 18 || st.Kept != 10 {
		t.Errorf("status %+v", st)
	}
}

func TestAConsoleTakesEverythingWhoeverListens(t *testing.T) {
	r := newRig(t, Config{Scrollback: 1000})
	s := r.add("stuck", Main, 3)
	r.write("abc")
	r.shows(s, "abc")
	r.write("def")
	s.blocked()
	for range 100 {
		if n, err := r.put(make([]byte, 999)); n != 999 || err != nil {
			t.Fatalf("%d bytes taken, %v", n, err)
		}
	}
	if n, err := r.put(make([]byte, 5000)); n != 5000 || err != nil {
		t.Fatalf("%d bytes taken, %v", n, err)
	}
	r.write("end")
	s.allow(all)
	s.shows(3 + 3 + 1000)
	st := r.Status()
	e := st.Ends[0]
	if want := int64(100*999 + 5000 + 3 - 1000); e.Lost != want || e.Sent != 1006 || st.Written != 3+3+100*999+5000+3 {
		t.Errorf("lost %d, want %d: %+v", e.Lost, want, st)
	}
}

func TestADataLineLosesNothing(t *testing.T) {
	r := newRig(t, Config{Scrollback: 8, Overflow: Wait})
	if n, err := r.put([]byte("0123456789")); n != 8 || err != nil {
		t.Fatalf("%d bytes taken, %v", n, err)
	}
	_, err := r.put([]byte("89"))
	is(t, "a write to a full line", err, devsw.EAGAIN)
	w := r.add("watcher", Watcher, all)
	r.shows(w, "01234567")
	_, err = r.put([]byte("89"))
	is(t, "a write to a full line with a watcher", err, devsw.EAGAIN)
	s := r.add("first", Main, 3)
	r.shows(s, "012")
	s.blocked()
	s.Remove()
	<-s.Done()
	if n, err := r.put([]byte("89abcdef")); n != 3 || err != nil {
		t.Fatalf("%d bytes taken, %v", n, err)
	}
	s = r.add("second", Main, all)
	r.shows(s, "3456789a")
	if st := r.Status(); st.Dropped != 0 || st.Written != 11 {
		t.Errorf("status %+v", st)
	}
	must(t, r.Drain(t.Context()))
	if st := r.Status(); st.Waiting != 0 || st.Kept != 0 {
		t.Errorf("what was taken is kept: %+v", st)
	}
}

func TestALoopGivesBackWhatIsWritten(t *testing.T) {
	r := newRig(t, Config{Overflow: Wait, Scrollback: 64 << 10})
	must(t, r.Add(NewLoop(), "loop", Main))
	want := make([]byte, 1<<20)
	for i := range want {
		want[i] = byte(i * 7 >> 3)
	}
	done := make(chan error)
	go func() { done <- r.node.Write(devsw.NewUio(devsw.UIOWrite, bytes.Clone(want)), rw) }()
	got := make([]byte, len(want))
	for n := 0; n < len(got); {
		u := devsw.NewUio(devsw.UIORead, got[n:min(n+5000, len(got))])
		was := u.Resid
		must(t, r.node.Read(u, rw))
		n += was - u.Resid
	}
	must(t, <-done)
	if !bytes.Equal(got, want) {
		t.Error("it gives back something else")
	}
}

func TestANullTakesEverything(t *testing.T) {
	r := newRig(t, Config{Overflow: Wait, Scrollback: 10})
	must(t, r.Add(NewNull(), "null", Main))
	r.write(string(make([]byte, 1000)))
	_, err := r.get(10)
	is(t, "a read", err, devsw.EAGAIN)
}
