package fault

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"
	"vdev/devsw/line"
	"vdev/specfs"
)

// wire is a faulty line that gives back what it is given, open.
type wire struct {
	t     *testing.T
	d     *LineDriver
	lower *line.Driver
	fs    *specfs.FS
	dev   devsw.Dev
	node  *specfs.Node
	told  [2]atomic.Int32 // how often a knote was activated, by direction
	notes [2]devsw.Knote
}

func newWire(t *testing.T, rules ...string) *wire {
	t.Helper()
	table := devsw.NewTable()
	w := &wire{t: t, fs: specfs.New(table)}
	var err error
	w.lower, err = line.Attach(table, "tty", devsw.NODEVMAJOR)
	must(t, err)
	l := line.New(line.Config{Overflow: line.Wait})
	must(t, l.Add(line.NewLoop(), "loop", line.Main))
	lower, err := w.lower.Create(0, l)
	must(t, err)
	w.d, err = NewLine(table)
	must(t, err)
	w.dev, err = w.d.Create(3, lower, parsed(t, rules...))
	must(t, err)
	w.node = w.fs.Node(devsw.IFCHR, w.dev)
	t.Cleanup(func() {
		must(t, w.d.Detach())
		must(t, w.lower.Detach())
	})
	return w
}

func parsed(t *testing.T, texts ...string) (rules []Rule) {
	t.Helper()
	for _, text := range texts {
		r, err := ParseRule(text)
		must(t, err)
		rules = append(rules, r)
	}
	return rules
}

func (w *wire) open() {
	w.t.Helper()
	must(w.t, w.node.Open(w.t.Context(), rw))
	for i, f := range filters {
		w.notes[i] = devsw.Knote{Filter: f, Activate: func(int64) { w.told[i].Add(1) }}
		must(w.t, w.node.Kqfilter(&w.notes[i]))
	}
}

func (w *wire) close() {
	w.t.Helper()
	for i := range w.notes {
		w.notes[i].Detach()
	}
	must(w.t, w.node.Close(rw))
}

// write writes text, without sleeping but where flag is 0.
func (w *wire) write(text string, flag devsw.Flag) error {
	return w.node.Write(devsw.NewUio(devsw.UIOWrite, []byte(text)), flag)
}

// reads reads what there is.
func (w *wire) reads(flag devsw.Flag) (string, error) {
	b := make([]byte, 100)
	u := devsw.NewUio(devsw.UIORead, b)
	err := w.node.Read(u, flag)
	return string(b[:len(b)-u.Resid]), err
}

func (w *wire) control(cmd devsw.Cmd, data any) {
	w.t.Helper()
	must(w.t, w.d.Control(cmd, data))
}

func (w *wire) state() (s State) {
	w.t.Helper()
	w.control(FAULTGET, &s)
	return s
}

func TestAWriteThatHangsIsTriedAgainWhenItIsReleased(t *testing.T) {
	w := newWire(t, "hang:write:count=1")
	w.open()
	defer w.close()
	for range 2 {
		if err := w.write("abc", devsw.FNONBLOCK); err != devsw.EAGAIN {
			t.Fatalf("a write that hangs: %v", err)
		}
	}
	if is := w.node.Poll(devsw.POLLOUT, nil); is&devsw.POLLOUT != 0 {
		t.Error("there is room for what hangs")
	}
	if s := w.state(); len(s.Held) != 1 || s.Held[0].Op != Write || s.Held[0].N != 3 || !s.Held[0].Hangs || s.Ops[Write] != 1 || s.Rules[0].Hit != 1 {
		t.Errorf("the state is %+v", s)
	}
	if _, err := w.reads(devsw.FNONBLOCK); err != devsw.EAGAIN {
		t.Errorf("something was written: %v", err)
	}
	before, woken := w.told[1].Load(), make(chan struct{})
	if w.node.Poll(devsw.POLLOUT, func() { close(woken) }) != 0 {
		t.Error("it is ready")
	}
	w.control(FAULTRELEASE, nil)
	<-woken
	if w.told[1].Load() == before {
		t.Error("nobody was told that there is room")
	}
	must(t, w.write("abc", devsw.FNONBLOCK))
	if got, err := w.reads(0); got != "abc" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	must(t, w.write("de", devsw.FNONBLOCK)) // the rule has hit once
	if s := w.state(); len(s.Held) != 0 || s.Ops[Write] != 2 {
		t.Errorf("the state is %+v", s)
	}
}

func TestADelayPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, "delay:read:time=1s")
		w.open()
		defer w.close()
		must(t, w.write("abc", 0))
		synctest.Wait()
		if _, err := w.reads(devsw.FNONBLOCK); err != devsw.EAGAIN {
			t.Errorf("a read that is delayed: %v", err)
		}
		before := w.told[0].Load()
		time.Sleep(time.Second)
		synctest.Wait()
		if w.told[0].Load() == before {
			t.Error("nobody was told that the time has passed")
		}
		if got, err := w.reads(devsw.FNONBLOCK); got != "abc" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		must(t, w.write("x", 0))
		begun := time.Now()
		if got, err := w.reads(0); got != "x" || err != nil || time.Since(begun) != time.Second {
			t.Errorf("a read that sleeps gives %q, %v, after %v", got, err, time.Since(begun))
		}
	})
}

func TestACancelEndsWhatHangsOnALine(t *testing.T) {
	w := newWire(t, "hang:write", "hang:read")
	w.open()
	if err := w.write("abc", devsw.FNONBLOCK); err != devsw.EAGAIN {
		t.Fatal(err)
	}
	slept := make(chan error)
	go func() {
		_, err := w.reads(0)
		slept <- err
	}()
	for len(w.state().Held) < 2 {
		time.Sleep(time.Millisecond)
	}
	w.close()
	if err := <-slept; err != devsw.ECANCELED {
		t.Errorf("the read that slept: %v", err)
	}
	if s := w.state(); len(s.Held) != 0 {
		t.Errorf("the state is %+v", s)
	}
	w.control(FAULTCLEAR, nil)
	w.open()
	must(t, w.write("abc", 0))
	if got, err := w.reads(0); got != "abc" || err != nil {
		t.Errorf("after a cancel: %q, %v", got, err)
	}
	w.close()
}

func TestAnOpenOfALineThatHangsCanBeRevoked(t *testing.T) {
	w := newWire(t, "hang:open:count=1")
	opened := make(chan error)
	go func() { opened <- w.node.Open(t.Context(), rw) }()
	for len(w.state().Held) < 1 {
		time.Sleep(time.Millisecond)
	}
	if err := w.d.Destroy(3); !errors.Is(err, devsw.EBUSY) {
		t.Errorf("a unit that is being opened is taken away: %v", err)
	}
	w.fs.RevokeDevice(devsw.IFCHR, w.dev)
	if err := <-opened; err == nil {
		t.Error("an open that was revoked goes well")
	}
	w.node = w.fs.Node(devsw.IFCHR, w.dev)
	w.open()
	must(t, w.write("abc", 0))
	w.close()
}

func TestALineFails(t *testing.T) {
	w := newWire(t, "error:write:errno=ENXIO:count=1", "error:read")
	w.open()
	if err := w.write("abc", devsw.FNONBLOCK); err != devsw.ENXIO {
		t.Errorf("a write: %v", err)
	}
	must(t, w.write("abc", devsw.FNONBLOCK))
	if _, err := w.reads(0); err != devsw.EIO {
		t.Errorf("a read: %v", err)
	}
	w.close()
	// A driver that has no d_cancel: specfs closes, and drains then.
	r := parsed(t, "error:cancel")[0]
	w.control(FAULTCLEAR, nil)
	w.control(FAULTSET, &r)
	if r.ID != 3 {
		t.Errorf("the third rule is %d", r.ID)
	}
	w.open()
	w.close()
	w.open()
	must(t, w.write("d", 0))
	w.close()
	if s := w.state(); s.Rules[0].Hit != 2 {
		t.Errorf("the state is %+v", s)
	}
	one := 1
	if err := w.d.Control(FAULTCLEAR, &one); err != devsw.ENOENT {
		t.Errorf("a rule that is not there is cleared: %v", err)
	}
}

func TestRulesThatALineCannotHave(t *testing.T) {
	for text, want := range map[string]string{
		"short:read":            "knows delay, hang and error",
		"crash:write":           "knows delay, hang and error",
		"hang:flush":            "has the operations read, write, open, close and cancel",
		"hang:read+discard":     "has the operations",
		"hang:write:blocks=0-7": "has no blocks",
	} {
		if err := LineRule(parsed(t, text)[0]); !errors.Is(err, devsw.EINVAL) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, r := range parsed(t, "hang:any", "delay:open+close:time=1s", "error:cancel", "error:read+write:errno=EIO") {
		if err := LineRule(r); err != nil {
			t.Error(err)
		}
	}
}
