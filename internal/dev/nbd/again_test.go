package nbd

import (
	"bytes"
	"io"
	"slices"
	"testing"
	"time"

	"vdev/devsw"
)

// TestWriteThatIsToBeStableIsSentAgainToTheServerThatIsToFlushIt: what the one before had answered
// it may have lost.
func TestWriteThatIsToBeStableIsSentAgainToTheServerThatIsToFlushIt(t *testing.T) {
	f := newFake(t, simpleMode)
	f.exp.flags &^= sendFUA
	f.exp.maxBlock = 64 << 10
	r := newRig(t)
	d, c := f.disk(r, Config{ReconnectDelay: time.Minute})
	data := pattern(128<<10, 1)
	b, done := d.begin(devsw.BWrite, devsw.BMediaFUA, 0, data)
	// The first server goes after the first part, the second one in the flush.
	q, _ := c.request(true)
	c.send(c.ok(q.cookie))
	c.request(true)
	for _, goes := range []bool{true, false} {
		c.Close()
		c = f.next()
		var got []byte
		for len(got) < len(data) {
			q, p := c.request(true)
			if q.cmd != cmdWrite || q.off != uint64(len(got)) {
				t.Fatalf("the next server gets %+v", q)
			}
			got = append(got, p...)
			c.send(c.ok(q.cookie))
		}
		if !bytes.Equal(got, data) {
			t.Error("the next server gets something else")
		}
		if q, _ := c.request(true); q.cmd != cmdFlush {
			t.Fatalf("the next server gets %+v", q)
		} else if !goes {
			c.send(c.ok(q.cookie))
		}
	}
	d.Wait(done)
	if b.Error != 0 {
		t.Error(b.Error)
	}
}

// TestAnswerToAWriteThatIsGivenUpInTheMiddleCountsOnce, where a server that is going sends one
// before it has got the payload.
func TestAnswerToAWriteThatIsGivenUpInTheMiddleCountsOnce(t *testing.T) {
	f := newFake(t, simpleMode)
	f.exp.size = 64 << 20
	r := newRig(t)
	d, c := f.disk(r, Config{ReconnectDelay: time.Minute})
	cl := r.softc(d.Dev).last.Load()
	until := func(what string, cond func(c *conn) bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			cl.mu.Lock()
			ok := cond(cl.conns[0])
			cl.mu.Unlock()
			if ok {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("it never comes to %s", what)
			}
		}
	}
	_, read := d.begin(devsw.BRead, 0, 0, make([]byte, 512))
	first, _ := c.request(true)
	var ends []chan struct{}
	for i := range 2048 {
		// Small, so that they are gathered; and several times what socket and buffer have room for.
		_, done := d.begin(devsw.BWrite, 0, int64(i+1)<<14, make([]byte, 12<<10))
		ends = append(ends, done)
	}
	// The sender stands still when the socket is full. Where that is not in the middle of a write,
	// a little more is read.
	inPart := func() (cookie, written int64, buf *devsw.Buf) {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		for _, x := range cl.conns[0].flight {
			if x.cmd == cmdWrite && !x.busy && x.sent > 0 && x.sent < x.n {
				return int64(x.cookie), cl.conns[0].written, x.buf
			}
		}
		return 0, cl.conns[0].written, nil
	}
	var cookie uint64
	var buf *devsw.Buf
	for range 100 {
		_, before, b1 := inPart()
		time.Sleep(10 * time.Millisecond)
		at, after, b2 := inPart()
		if b2 != nil && b1 == b2 && before == after {
			cookie, buf = uint64(at), b2
			break
		}
		if before == after {
			if _, err := io.ReadFull(c, make([]byte, 128<<10)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if buf == nil {
		t.Fatal("no write is sent in part")
	}
	c.send(simpleReply(first.cookie, eShutdown))
	until("the end of the connection", func(c *conn) bool { return c.quit })
	_ = r.table.BdevCancelBuf(buf)
	c.send(simpleReply(cookie, 0))
	until("the answer", func(c *conn) bool { return c.flight[cookie] == nil })
	c.Close()

	c = f.next()
	for range ends {
		q, _ := c.request(true)
		if q.cmd == cmdRead {
			c.send(c.read(q, make([]byte, q.n)))
		} else {
			c.send(c.ok(q.cookie))
		}
	}
	d.Wait(read)
	for _, done := range ends {
		d.Wait(done)
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	slices.SortFunc(cl.free, func(a, b *request) int { return int(a.seq) - int(b.seq) })
	if n := len(cl.free); len(slices.Compact(cl.free)) != n || cl.orphans != 0 {
		t.Errorf("a request has been given back twice; %d are thought to be given up", cl.orphans)
	}
}

// TestDiskThatIsDestroyedWaitsForTheAnswerThatIsOwed: the process that comes next begins the write
// again.
func TestDiskThatIsDestroyedWaitsForTheAnswerThatIsOwed(t *testing.T) {
	f := newFake(t, simpleMode)
	r := newRig(t)
	d, c := f.disk(r, Config{})
	_, done := d.begin(devsw.BWrite, 0, 0, make([]byte, 512))
	q, _ := c.request(true)
	r.close(d.Dev)
	d.Wait(done)
	destroyed := make(chan struct{})
	go func() {
		r.softc(d.Dev).Destroy()
		close(destroyed)
	}()
	time.Sleep(50 * time.Millisecond) // for one that does not wait
	c.send(c.ok(q.cookie))
	if q, err := c.readRequest(); err != nil || q.cmd != cmdDisc {
		t.Errorf("after the answer the server gets %+v, %v; not NBD_CMD_DISC", q, err)
	}
	<-destroyed
}
