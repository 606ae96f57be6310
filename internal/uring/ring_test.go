package uring

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
	"vdev/internal/test/loopfs"
)

func newRing(t *testing.T, entries, cq uint32) *Ring {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r, err := New(entries, cq)
	if errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EPERM) {
		t.Skipf("the host has no io_uring: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func reap(t *testing.T, r *Ring) CQE {
	t.Helper()
	for {
		if c := r.Peek(); c != nil {
			got := *c
			r.Seen()
			return got
		}
		if err := r.Wait(-1); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteThenReadGivesTheSameBytes(t *testing.T) {
	r := newRing(t, 8, 16)
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := bytes.Repeat([]byte("vdev"), 1024)
	e := r.Get()
	e.Op, e.FD, e.Off, e.UserData = OpWritev, int32(f.Fd()), 512, 7
	e.SetIovecs(Fill(make([]Iovec, 0, 2), [][]byte{want[:100], want[100:]}))
	if c := reap(t, r); c.UserData != 7 || int(c.Res) != len(want) {
		t.Fatalf("write: %+v", c)
	}
	got := make([]byte, len(want))
	e = r.Get()
	e.Op, e.FD, e.Off, e.UserData = OpRead, int32(f.Fd()), 512, 8
	e.SetBuffer(got)
	if c := reap(t, r); c.UserData != 8 || int(c.Res) != len(want) {
		t.Fatalf("read: %+v", c)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the bytes differ")
	}
}

func TestGetIsNilOnlyWhileTheQueueIsFull(t *testing.T) {
	r := newRing(t, 4, 64)
	n := 0
	for r.Get() != nil {
		n++
	}
	if n != 4 || r.Pending() != 4 {
		t.Fatalf("got %d entries, pending %d", n, r.Pending())
	}
	if err := r.Submit(); err != nil {
		t.Fatal(err)
	}
	if r.Pending() != 0 || r.Get() == nil {
		t.Fatal("Submit made no room")
	}
	for range n {
		reap(t, r)
	}
}

func TestWhatIsTakenBackIsNotSubmitted(t *testing.T) {
	r := newRing(t, 4, 64)
	nop := func(userData uint64) {
		e := r.Get()
		e.Op, e.UserData = OpNop, userData
	}
	nop(1)
	if err := r.Submit(); err != nil {
		t.Fatal(err)
	}
	nop(2)
	nop(3)
	if n := r.TakeBack(); n != 2 || r.Pending() != 0 {
		t.Errorf("%d were taken back, %d are pending", n, r.Pending())
	}
	nop(4)
	for _, want := range []uint64{1, 4} {
		if c := reap(t, r); c.UserData != want {
			t.Errorf("%d has completed, want %d", c.UserData, want)
		}
	}
	if err := r.Wait(time.Millisecond); err != nil || r.Peek() != nil {
		t.Errorf("more has completed, %v", err)
	}
}

func TestWaitEndsAtItsTimeout(t *testing.T) {
	r := newRing(t, 4, 8)
	if err := r.Wait(time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if r.Peek() != nil {
		t.Fatal("a completion out of nowhere")
	}
}

func TestCompletionsBeyondTheQueueAreNotLost(t *testing.T) {
	r := newRing(t, 4, 8)
	const n = 64
	for i := range n {
		for {
			if e := r.Get(); e != nil {
				e.Op, e.UserData = OpNop, uint64(i)
				break
			}
			if err := r.Submit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.Submit(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if c := reap(t, r); c.UserData != uint64(i) {
			t.Fatalf("completion %d is %d", i, c.UserData)
		}
	}
}

// TestTheKernelsThreadsAreBounded while all of them are stuck, for requests of both kinds.
func TestTheKernelsThreadsAreBounded(t *testing.T) {
	const most, n = 4, 64
	fs := loopfs.New(t, "ext4")
	r := newRing(t, 2*n, 2*n)
	if err := r.SetWorkers(most); errors.Is(err, syscall.EINVAL) {
		t.Skip("this kernel cannot bound them (before 5.15)")
	} else if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(fs.Dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := bytes.Repeat([]byte("vdev"), 1024)
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	fs.Freeze(t)
	for i := range 2 * n {
		e := r.Get()
		e.Op, e.FD, e.Off = OpWrite, int32(f.Fd()), uint64(i*len(data))
		e.SetBuffer(data)
		if i%2 == 0 {
			e.Flags = SQEAsync
		}
	}
	if err := r.Submit(); err != nil {
		t.Fatal(err)
	}
	workers := func() (n int) {
		for _, tid := range sys.Threads(os.Getpid()) {
			name, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/comm", tid))
			if err == nil && bytes.HasPrefix(name, []byte("iou-wrk")) {
				n++
			}
		}
		return n
	}
	for workers() == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(200 * time.Millisecond) // for more, if any were made
	if n := workers(); n > 2*most {
		t.Errorf("%d threads of the kernel's, want %d at most", n, 2*most)
	}
	fs.Thaw(t)
	for range 2 * n {
		if c := reap(t, r); int(c.Res) != len(data) {
			t.Fatalf("write: %+v", c)
		}
	}
}

func BenchmarkNop(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := New(64, 128)
	if err != nil {
		b.Skip(err)
	}
	defer r.Close()
	b.ReportAllocs()
	for b.Loop() {
		r.Get().Op = OpNop
		r.Submit()
		for r.Peek() != nil {
			r.Seen()
		}
	}
}
