package reactor

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
	"vdev/internal/test/hangfs"
)

// within waits for something that is to happen by itself.
func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("it does not happen: %s", what)
	}
}

// TestAPoolTakesNoMoreThreadsThanItIsGiven has far more transfers hang than there may be threads.
func TestAPoolTakesNoMoreThreadsThanItIsGiven(t *testing.T) {
	const most, n = 4, 20
	for _, c := range []struct {
		name  string
		flags devsw.BufFlag
		want  int
	}{
		{"that may block", devsw.BMayBlock, most},
		{"that may not", 0, most / 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs, dir, point := hangfs.New(t, hangfs.Config{Direct: true})
			if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, n*4096), 0o600); err != nil {
				t.Fatal(err)
			}
			// What may not block would be tried in line otherwise.
			f, err := sys.OpenFile(filepath.Join(point, "f"), sys.OpenFlags{Direct: c.flags == 0})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			r := newPoolOf(t, Config{Mode: ModeThreads, MaxStuck: most}).Pick()
			fs.Hold(hangfs.Read)
			defer fs.Release(hangfs.Read)
			d := &result{ch: make(chan struct{}, n)}
			r.Do(func() {
				for i := range int64(n) {
					b := &devsw.Buf{Flags: c.flags, Data: [][]byte{sys.AlignedBuffer(4096, 4096)}, Bcount: 4096}
					r.ReadAt(b, f.Int(), i*4096, d)
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := fs.Await(ctx, hangfs.Read, c.want); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond) // for more threads, if any were made
			if got := fs.Waiting(hangfs.Read); got != c.want {
				t.Errorf("%d of %d are in progress at once, want %d", got, n, c.want)
			}
			fs.Release(hangfs.Read)
			for range n {
				within(t, "the end of a read", d.ch)
			}
		})
	}
}

// someReads are ops of a file of their own that read a block of it, and are not begun.
func someReads(t *testing.T, r *Reactor, n int) (ops []*op, d *result) {
	f := tempFile(t)
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	d = &result{ch: make(chan struct{}, n)}
	r.Do(func() {
		for range n {
			b := &devsw.Buf{Data: [][]byte{make([]byte, 512)}, Bcount: 512}
			o := r.newOp(b, d)
			o.fd, o.off, o.data, o.write, o.sync = int(f.Fd()), 0, b.Data, false, false
			o.place = inEngine
			r.inEngine++
			ops = append(ops, o)
		}
	})
	return ops, d
}

// TestEachFileHasAThread, however many are stuck in the transfers of others.
func TestEachFileHasAThread(t *testing.T) {
	r := newPool(t, ModeThreads).Pick()
	// As if all threads were stuck in the transfers of another file.
	w := newWorkers(3)
	w.running = w.max

	ops, d := someReads(t, r, 1)
	w.put(ops[0])
	within(t, "a transfer of a file without a thread", d.ch)

	// A worker has ended a transfer of a file of which more wait, and takes one of another file, in
	// which it stays.
	mine, d := someReads(t, r, 2)
	other, otherD := someReads(t, r, 1)
	w.mu.Lock()
	l, o := new(lane), new(lane)
	l.busy, o.busy = 1, 1
	w.lanes[d], w.lanes[otherD] = l, o
	w.mu.Unlock()
	w.put(other[0])
	w.put(mine[0])
	got, _ := w.next(l, d)
	if got != other[0] {
		t.Fatal("it was not the other file's turn")
	}
	within(t, "the transfer of the file whose thread has gone", d.ch)
	r.complete(other[0])
	r.complete(mine[1])
	<-otherD.ch
	<-d.ch
	w.mu.Lock()
	w.running -= w.max
	w.mu.Unlock()
	w.stop()
}

// TestFilesTakeTurnsOnThreads: one that has much to transfer does not keep them.
func TestFilesTakeTurnsOnThreads(t *testing.T) {
	r := newPool(t, ModeThreads).Pick()
	w := newWorkers(1)
	w.running = w.max
	a, ad := someReads(t, r, 3)
	b, bd := someReads(t, r, 2)
	w.lanes[ad], w.lanes[bd] = &lane{busy: 1}, &lane{busy: 1}
	for _, o := range append(a, b...) {
		w.put(o)
	}
	w.mu.Lock()
	for i, want := range []*op{a[0], b[0], a[1], b[1], a[2]} {
		if got, _ := w.pick(); got != want {
			t.Errorf("turn %d is another's", i)
		}
	}
	w.mu.Unlock()
	for _, o := range append(a, b...) {
		r.complete(o)
	}
	for range a {
		<-ad.ch
	}
	for range b {
		<-bd.ch
	}
}
