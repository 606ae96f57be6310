package main

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// stuckWriter takes nothing before it is opened.
type stuckWriter struct {
	open chan struct{}

	mu   sync.Mutex
	text strings.Builder
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	<-w.open
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

func (w *stuckWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

func TestQueuedWriterKeepsOrderAndContent(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := &stuckWriter{open: make(chan struct{})}
	close(w.open)
	q := newQueuedWriter(w)
	line := make([]byte, 0, 16)
	var want strings.Builder
	for i := range 1000 {
		line = fmt.Appendf(line[:0], "line %d\n", i) // used again: Write must have copied it
		want.Write(line)
		if _, err := q.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	q.Close(time.Minute)
	if w.String() != want.String() {
		t.Errorf("what was written differs: %d bytes, want %d", len(w.String()), want.Len())
	}
}

func TestQueuedWriterNeverWaitsForItsReader(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		w := &stuckWriter{open: make(chan struct{})}
		q := newQueuedWriter(w)
		const more = 100
		fmt.Fprintln(q, "the first")
		synctest.Wait() // the goroutine has it, and is stuck
		for i := range queueLength + more {
			fmt.Fprintln(q, i)
		}
		if !q.crowded() {
			t.Error("a full queue is not crowded")
		}
		q.skip()
		before := time.Now()
		q.Close(3 * time.Second)
		if waited := time.Since(before); waited != 3*time.Second {
			t.Errorf("Close waited %v for a reader that stands still, want its patience of 3s", waited)
		}

		close(w.open)
		synctest.Wait()
		lines := strings.Split(strings.TrimSpace(w.String()), "\n")
		if want := fmt.Sprintf("(%d lines are missing here: ", more+1); len(lines) < 2 || !strings.HasPrefix(lines[1], want) {
			t.Errorf("after the first line comes %q, want %q", lines[1:2], want)
		}
		if got, want := lines[len(lines)-1], fmt.Sprint(queueLength-1); got != want {
			t.Errorf("the last line is %q, want %q", got, want)
		}
	})
}

// TestLinesThatTellWhenComeOneAfterTheOther: a line that takes its time earlier is queued earlier.
func TestLinesThatTellWhenComeOneAfterTheOther(t *testing.T) {
	w := &stuckWriter{open: make(chan struct{})}
	close(w.open)
	q := newQueuedWriter(w)
	defer q.Close(time.Minute)
	var first, second time.Time
	in, release, done := make(chan struct{}), make(chan struct{}), make(chan struct{}, 2)
	go q.inOrder(func(at time.Time) {
		first = at
		close(in)
		<-release
		done <- struct{}{}
	})
	<-in
	go q.inOrder(func(at time.Time) {
		second = at
		done <- struct{}{}
	})
	time.Sleep(20 * time.Millisecond) // for the second one, if it did not wait
	if len(done) != 0 {
		t.Error("a line was written in the midst of another one")
	}
	before := time.Now()
	close(release)
	<-done
	<-done
	if second.Before(before) || first.After(before) {
		t.Errorf("the lines have the times %v and %v, around %v", first, second, before)
	}
}
