package main

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// queuedWriter writes from a goroutine of its own, so that whoever logs never waits for who reads
// the log: a pager that stands still on the other side of stderr must not hold up a message that
// QEMU waits for. When its queue is full, writes are lost, and their number is written once there
// is room.
type queuedWriter struct {
	w     io.Writer
	queue chan []byte
	lost  atomic.Int64
	quit  chan struct{} // closed: write what is queued and end
	ended chan struct{} // closed by the goroutine
	once  sync.Once

	order sync.Mutex // see inOrder
}

// inOrder calls write with the time, for lines that tell when something happened: they come in the
// order of their times, whoever writes them. It is held for as long as it takes to queue a line.
func (q *queuedWriter) inOrder(write func(at time.Time)) {
	q.order.Lock()
	defer q.order.Unlock()
	write(time.Now())
}

// queueLength is how many lines may wait to be written.
const queueLength = 4096

// newQueuedWriter starts the goroutine that writes to w. Close ends it.
func newQueuedWriter(w io.Writer) *queuedWriter {
	q := &queuedWriter{w: w, queue: make(chan []byte, queueLength), quit: make(chan struct{}), ended: make(chan struct{})}
	go q.run()
	return q
}

// crowded tells that so much waits to be written that what matters least should be left out (and
// counted by skip).
func (q *queuedWriter) crowded() bool { return len(q.queue) > queueLength/2 }

// skip counts a line that was left out.
func (q *queuedWriter) skip() { q.lost.Add(1) }

// Write queues a copy of p and does not fail. Any goroutine.
func (q *queuedWriter) Write(p []byte) (int, error) {
	select {
	case q.queue <- append([]byte(nil), p...):
	default:
		q.lost.Add(1)
	}
	return len(p), nil
}

// Close writes what is still queued, but waits for that no longer than patience. What is written
// afterwards may be lost.
func (q *queuedWriter) Close(patience time.Duration) {
	q.once.Do(func() { close(q.quit) })
	select {
	case <-q.ended:
	case <-time.After(patience):
	}
}

func (q *queuedWriter) run() {
	defer close(q.ended)
	for {
		select {
		case p := <-q.queue:
			q.write(p)
		case <-q.quit:
			for {
				select {
				case p := <-q.queue:
					q.write(p)
				default:
					q.tellLost()
					return
				}
			}
		}
	}
}

// write writes one line. An error of the log has nowhere to be told.
func (q *queuedWriter) write(p []byte) {
	_, _ = q.w.Write(p)
	q.tellLost()
}

func (q *queuedWriter) tellLost() {
	if n := q.lost.Swap(0); n > 0 {
		_, _ = fmt.Fprintf(q.w, "(%d lines are missing here: they came faster than they could be written)\n", n)
	}
}

// newLogger returns the program's logger, which writes to w.
func newLogger(w io.Writer, level slog.Leveler, asJSON bool) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if asJSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
