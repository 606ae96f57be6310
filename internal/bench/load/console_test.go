package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vdev/internal/test/consoletest"
	"vdev/vhostuser"
	"vdev/virtq"
)

// wire is a console with one port, whose other side is a connection. It can do wrong.
type wire struct {
	vhostuser.BaseDevice
	host    net.Conn
	loop    bool // what is written comes back, and there is no host
	console bool // the port is a console
	// harm changes what goes to either side, nil for nothing.
	harm func(b []byte) []byte

	mu      sync.Mutex
	room    *sync.Cond // of mu: there is less in out or in
	queues  map[int]*vhostuser.Queue
	tell    []consoletest.Message
	out, in []byte
	ended   bool
	threads sync.WaitGroup
	chain   virtq.Chain
	buf     []byte
}

// wireRoom is how many bytes a wire takes that the other side has not.
const wireRoom = 1 << 20

func (w *wire) Features() uint64 {
	return w.BaseDevice.Features() | consoletest.FeatureMultiport
}
func (w *wire) NumQueues() int  { return 4 }
func (w *wire) ConfigSize() int { return consoletest.ConfigSize }
func (w *wire) ReadConfig(p []byte) {
	clear(p)
	binary.LittleEndian.PutUint32(p[4:], 1)
}

func (w *wire) StartQueue(q *vhostuser.Queue) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queues[q.Index()] = q
	return nil
}

func (w *wire) StopDevice(rings []*vhostuser.Queue, _ vhostuser.Stop) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, q := range rings {
		delete(w.queues, q.Index())
	}
}

func (w *wire) StopQueue(q *vhostuser.Queue, how vhostuser.Stop) {
	w.StopDevice([]*vhostuser.Queue{q}, how)
}

func (w *wire) Process(q *vhostuser.Queue) (more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.room.Broadcast()
	switch q.Index() {
	case 0:
		for len(w.in) > 0 && q.Pop(&w.chain) {
			n, _ := w.chain.Write(w.in[:min(len(w.in), w.chain.WritableLen())])
			w.in = w.in[n:]
			q.Push(&w.chain, uint32(n))
		}
	case 1:
		to := &w.out
		if w.loop {
			to = &w.in
		}
		for len(*to) < wireRoom && q.Pop(&w.chain) {
			w.buf = w.buf[:0]
			for _, r := range w.chain.Readable {
				w.buf = append(w.buf, r...)
			}
			*to = append(*to, w.harmed(w.buf)...)
			q.Push(&w.chain, 0)
		}
		w.wakeLocked(0)
	case 2:
		for len(w.tell) > 0 && q.Pop(&w.chain) {
			n, _ := w.chain.Write(w.tell[0].Append(nil))
			q.Push(&w.chain, uint32(n))
			w.tell = w.tell[1:]
		}
	case 3:
		for q.Pop(&w.chain) {
			b := make([]byte, 8)
			w.chain.Read(b)
			if consoletest.ParseMessage(b).Event == consoletest.DeviceReady {
				w.tell = []consoletest.Message{{Event: consoletest.PortAdd, Value: 1}, {Event: consoletest.PortName, Value: 1, Rest: "wire"},
					{Event: consoletest.PortOpen, Value: 1}}
				if w.console {
					w.tell[2].Event = consoletest.ConsolePort
				}
				w.wakeLocked(2)
			}
			q.Push(&w.chain, 0)
		}
	}
	return false
}

func (w *wire) wakeLocked(i int) {
	if q := w.queues[i]; q != nil {
		q.Wake()
	}
}

func (w *wire) harmed(b []byte) []byte {
	if w.harm == nil {
		return b
	}
	return w.harm(b)
}

// writes brings output to the host's side, until that or the wire has ended.
func (w *wire) writes() {
	for {
		w.mu.Lock()
		for len(w.out) == 0 && !w.ended {
			w.room.Wait()
		}
		b := w.out
		w.out = nil
		w.wakeLocked(1)
		ended := w.ended
		w.mu.Unlock()
		if _, err := w.host.Write(b); err != nil || ended {
			return
		}
	}
}

// reads takes input.
func (w *wire) reads() {
	b := make([]byte, 64<<10)
	for {
		n, err := w.host.Read(b)
		if err != nil {
			return
		}
		w.mu.Lock()
		for len(w.in) > wireRoom && !w.ended {
			w.room.Wait()
		}
		w.in = append(w.in, w.harmed(b[:n])...)
		w.wakeLocked(0)
		w.mu.Unlock()
	}
}

// serve serves the wire, and returns it as a target.
func (w *wire) serve(t *testing.T) Target {
	t.Helper()
	w.queues, w.room = map[int]*vhostuser.Queue{}, sync.NewCond(&w.mu)
	target := Target{Name: "wire", Socket: filepath.Join(t.TempDir(), "s")}
	name := HostLoop
	if !w.loop {
		name = filepath.Join(t.TempDir(), "h")
		ln, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if target.Host, err = OpenHost(name); err != nil {
			t.Fatal(err)
		}
		if w.host, err = ln.Accept(); err != nil {
			t.Fatal(err)
		}
		w.threads.Go(w.reads)
		w.threads.Go(w.writes)
	} else {
		var err error
		if target.Host, err = OpenHost(name); err != nil {
			t.Fatal(err)
		}
	}
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{Mode: vhostuser.ModeThreads})
	if err != nil {
		t.Fatal(err)
	}
	backend, err := vhostuser.New(vhostuser.Config{Device: w, Reactors: reactors, OneReactor: true})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := vhostuser.Listen(target.Socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- backend.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		reactors.Close()
		w.mu.Lock()
		w.ended = true
		w.room.Broadcast()
		w.mu.Unlock()
		if w.host != nil {
			w.host.Close()
		}
		w.threads.Wait()
		if err := target.Host.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return target
}

func consoleJob(pattern Pattern, size int64) Job {
	return Job{Pattern: pattern, BlockSize: size, Depth: 16, Warmup: 5 * time.Millisecond, Length: 30 * time.Millisecond, Seed: 7}
}

func TestConsolesAreLoaded(t *testing.T) {
	w := &wire{}
	target := w.serve(t)
	if pid, err := Check(t.Context(), target, []Job{consoleJob(Output, 128), consoleJob(Both, 128)}); err != nil || pid != os.Getpid() {
		t.Fatal(pid, err)
	}
	for _, pattern := range ConsolePatterns {
		for _, size := range []int64{100, 4096, 32 << 10} {
			t.Run(fmt.Sprintf("%s/%d", pattern, size), func(t *testing.T) {
				err := patiently(consoleJob(pattern, size), func(j Job) error {
					results, err := Compare(t.Context(), []Target{target}, j, 1, nil)
					if err != nil {
						return err
					}
					r := results[0][0]
					if r.Requests == 0 || r.Bytes < r.Requests || r.Lost != 0 || r.PID != os.Getpid() || !r.Backend.Known {
						t.Errorf("%+v", r)
					}
					if n := r.Latency.TotalCount(); (n > 0) != (pattern == Echo) || pattern == Echo && uint64(n) != r.Requests {
						t.Errorf("%d latencies of %d requests", n, r.Requests)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

func TestAConsoleThatLoopsIsLoaded(t *testing.T) {
	w := &wire{loop: true, console: true}
	target := w.serve(t)
	for _, pattern := range []Pattern{Both, Echo} {
		err := patiently(consoleJob(pattern, 4096), func(j Job) error {
			_, err := Compare(t.Context(), []Target{target}, j, 2, nil)
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", pattern, err)
		}
	}
	for _, pattern := range []Pattern{Output, Input} {
		if _, err := Check(t.Context(), target, []Job{consoleJob(pattern, 1)}); err == nil {
			t.Errorf("%s is loaded", pattern)
		}
	}
}

// harmAt returns a harm that changes the part in which the so manieth byte is.
func harmAt(at int, change func(b []byte, i int) []byte) func([]byte) []byte {
	n := 0
	return func(b []byte) []byte {
		i := at - n
		n += len(b)
		if i < 0 || i >= len(b) {
			return b
		}
		return change(append([]byte(nil), b...), i)
	}
}

func TestWhatAConsoleLosesIsFound(t *testing.T) {
	harms := map[string]func(b []byte, i int) []byte{
		"lost":           func(b []byte, i int) []byte { return append(b[:i], b[i+1:]...) },
		"all of it lost": func([]byte, int) []byte { return nil },
		"doubled":        func(b []byte, i int) []byte { return append(b, b...) },
		"changed":        func(b []byte, i int) []byte { b[i] ^= 1; return b },
	}
	for name, change := range harms {
		for _, pattern := range []Pattern{Output, Input, Echo} {
			if name == "all of it lost" && pattern == Echo {
				continue // nothing moves any more, which takes its time to find out
			}
			t.Run(name+"/"+string(pattern), func(t *testing.T) {
				w := &wire{harm: harmAt(100000, change)}
				target := w.serve(t)
				j := consoleJob(pattern, 4096)
				j.Length = time.Minute // which it does not come to
				_, err := Compare(t.Context(), []Target{target}, j, 1, nil)
				if err == nil || !strings.Contains(err.Error(), "is not the one that was sent") {
					t.Fatal(err)
				}
			})
		}
	}
}

func TestInputFromNowhereIsFound(t *testing.T) {
	w := &wire{loop: true}
	target := w.serve(t)
	var err error
	if target.Host, err = OpenHost(HostNull); err != nil {
		t.Fatal(err)
	}
	_, err = Compare(t.Context(), []Target{target}, consoleJob(Output, 4096), 1, nil)
	if err == nil || !strings.Contains(err.Error(), "input has come on port 0 that nobody has sent") {
		t.Fatal(err)
	}
}

func TestAPortIsFoundByItsNameOrNumber(t *testing.T) {
	w := &wire{loop: true}
	target := w.serve(t)
	jobs := []Job{consoleJob(Echo, 4096)}
	for _, name := range []string{"", "0", "wire"} {
		target.Port = name
		if _, err := Check(t.Context(), target, jobs); err != nil {
			t.Errorf("port %q: %v", name, err)
		}
	}
}

func TestWhatAConsoleDropsIsCounted(t *testing.T) {
	chunks := 0
	w := &wire{console: true, harm: func(b []byte) []byte {
		if len(b) == 4096 {
			if chunks++; chunks%25 == 0 {
				return b[:1]
			}
		}
		return b
	}}
	target := w.serve(t)
	err := patiently(consoleJob(Output, 4096), func(j Job) error {
		results, err := Compare(t.Context(), []Target{target}, j, 1, nil)
		if err != nil {
			return err
		}
		if r := results[0][0]; r.Requests > 50 && r.Lost == 0 || r.Lost > 1./25 {
			t.Errorf("a share of %v was lost", r.Lost)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAConsoleThatStallsIsFound(t *testing.T) {
	c := &console{host: &Host{name: "h"}}
	now := time.Now()
	for _, step := range []struct {
		after   time.Duration
		change  func()
		stalled bool
	}{
		{0, func() {}, false},
		{time.Hour, func() { c.busy.Store(true) }, true},
		{time.Hour, func() { c.moved.Add(1) }, false},
		{patience - 1, func() {}, false},
		{1, func() {}, true},
		{0, func() { c.busy.Store(false) }, false},
		{time.Hour, func() {}, false},
	} {
		step.change()
		now = now.Add(step.after)
		if err := c.stalled(now); (err != nil) != step.stalled {
			t.Errorf("%+v: %v", step, err)
		}
	}
}

func TestSinksFindTheEnd(t *testing.T) {
	for _, piece := range []int{1, 5, 16, 100, 4096, 3 << 20} {
		f := newFlow("output", 3)
		src := source{flow: f}
		sent := append([]byte("left of another run"), f.begin[:]...)
		for src.n < 1<<20 {
			sent = append(sent, src.next(1000)...)
		}
		sent = append(sent, src.finish()...)
		k := sink{source: source{flow: f}}
		n := 0
		for rest := sent; len(rest) > 0; {
			b := rest[:min(piece, len(rest))]
			rest = rest[len(b):]
			part, err := k.take(b)
			if err != nil {
				t.Fatal(piece, err)
			}
			n += len(part)
			if k.ended != (len(rest) == 0) {
				t.Fatal(piece, "ended:", k.ended)
			}
		}
		if want := int(src.n) + len(mark{}); n != want || k.lost != 0 {
			t.Errorf("%d bytes, want %d, and %d lost", n, want, k.lost)
		}
		if _, err := k.take([]byte{1}); err == nil {
			t.Error("a byte after the end is taken")
		}
	}
}

func TestASinkKnowsOneBlockFromAnother(t *testing.T) {
	f := newFlow("output", 3)
	for _, lost := range []int64{1, 4096, 64 << 10, 1 << 20} {
		for _, n := range []int64{lost, 4 * lost} {
			a, b := source{flow: f}, source{flow: f, n: n}
			if string(a.next(128)) == string(b.next(128)) {
				t.Errorf("bytes 0 and %d are alike", n)
			}
		}
	}
}

func TestConsoleJobsAreChecked(t *testing.T) {
	for _, tt := range []struct {
		change func(j *Job)
		want   string
	}{
		{func(j *Job) { j.BlockSize = 0 }, "buffers of 0 bytes"},
		{func(j *Job) { j.BlockSize = MaxBuffer + 1 }, "buffers of"},
		{func(j *Job) { j.Depth = 0 }, "depth 0"},
		{func(j *Job) { j.Depth = MaxPortDepth + 1 }, "depth 1025"},
		{func(j *Job) { j.Length = 0 }, "length"},
	} {
		j := consoleJob(Output, 128)
		tt.change(&j)
		if err := j.check(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
	j := consoleJob(Output, 128)
	if err := j.check(); err != nil {
		t.Error(err)
	}
	j.Pattern = Read
	if _, err := runConsole(t.Context(), &Target{Host: &Host{}}, j); err == nil {
		t.Error("a disk's pattern is done on a console")
	}
}

func TestHostsAreOpened(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenHost(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := OpenHost(dir); err == nil {
		t.Error("a folder is a host")
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := OpenHost(file)
	if err != nil {
		t.Fatal(err)
	}
	for p, fits := range map[Pattern]bool{Output: true, Input: false, Both: false, Echo: false} {
		if err := h.fits(p); (err == nil) != fits {
			t.Errorf("%s: %v", p, err)
		}
	}
	read := make(chan string)
	go func() {
		b := make([]byte, 16)
		n, _ := h.rw.Read(b)
		read <- string(b[:n])
		n, err := h.rw.Read(b)
		read <- fmt.Sprint(n, err != nil)
	}()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("after")
	f.Close()
	if got := <-read; got != "after" {
		t.Errorf("read %q", got)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if got := <-read; got != "0 true" {
		t.Errorf("a closed file gives %s", got)
	}
}
