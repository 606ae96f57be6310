package nbd

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"vdev/devsw"
)

// diary is a server that keeps to the protocol, and notes what it writes: for each block the
// numbers that were written there, in order. It takes its time, by chance, does several things at
// once, and drops connections, having carried out or forgotten what came by them.
type diary struct {
	mu     sync.Mutex
	blocks map[uint64][]uint64
	drops  bool
}

// serve serves one connection until the client, or chance, ends it.
func (s *diary) serve(c *fakeConn) {
	defer c.Close()
	var doing sync.WaitGroup
	defer doing.Wait() // before the close
	var sending sync.Mutex
	for {
		q, err := c.readRequest()
		if err != nil || q.cmd == cmdDisc {
			return
		}
		var data []byte
		if q.cmd == cmdWrite {
			data = make([]byte, q.n)
			if _, err := io.ReadFull(c, data); err != nil {
				return
			}
		}
		if s.drops && rand.IntN(40) == 0 {
			return // this one is forgotten, and the answers to others may be lost
		}
		doing.Go(func() {
			time.Sleep(time.Duration(rand.IntN(1500)) * time.Microsecond)
			var reply []byte
			if q.cmd == cmdWrite {
				s.mu.Lock()
				s.blocks[q.off] = append(s.blocks[q.off], binary.BigEndian.Uint64(data))
				s.mu.Unlock()
				reply = c.ok(q.cookie)
			} else {
				p := make([]byte, q.n)
				for i := range p {
					p[i] = 0xaa
				}
				reply = c.read(q, p)
			}
			sending.Lock()
			defer sending.Unlock()
			c.send(reply)
		})
	}
}

// TestNoOldWriteLandsAfterANewerOne has writers give up writes in every way, and looks at what the
// server has seen.
func TestNoOldWriteLandsAfterANewerOne(t *testing.T) {
	for name, drops := range map[string]bool{"server stays": false, "server drops connections": true} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, structuredMode)
			f.exp.flags |= canMultiConn
			s := &diary{blocks: map[uint64][]uint64{}, drops: drops}
			var serving sync.WaitGroup
			stop := make(chan struct{})
			serving.Go(func() {
				for {
					select {
					case c := <-f.conns:
						serving.Go(func() { s.serve(c) })
					case <-stop:
						return
					}
				}
			})
			t.Cleanup(func() { close(stop); serving.Wait() })
			r := newRig(t)
			dev := r.create(Config{URI: f.uri(), Connections: 3, ReconnectDelay: time.Minute})
			if err := r.table.BdevOpen(dev, rw, devsw.IFBLK); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.close(dev) })

			// Operations of a device that is being closed have ended before d_close: that is
			// specfs's part, and is done with open here.
			var open sync.RWMutex
			var writers sync.WaitGroup
			for w := range 4 {
				writers.Go(func() {
					size := []int{512, 64 << 10}[w%2]
					off := int64(w) * (128 << 10)
					data, read := make([]byte, size), make([]byte, 512)
					for n := range uint64(150) {
						open.RLock()
						binary.BigEndian.PutUint64(data, n+1)
						done := make(chan struct{}, 2)
						iodone := func(*devsw.Buf) { done <- struct{}{} }
						wb := &devsw.Buf{Op: devsw.BWrite, Dev: dev, Blkno: off / 512, Data: [][]byte{data}, Bcount: int64(size), Iodone: iodone, AIO: aio()}
						rb := &devsw.Buf{Op: devsw.BRead, Dev: dev, Blkno: 1024, Data: [][]byte{read}, Bcount: 512, Iodone: iodone, AIO: aio()}
						r.table.BdevStrategy(wb)
						r.table.BdevStrategy(rb)
						switch rand.IntN(3) {
						case 0:
							_ = r.table.BdevCancelBuf(wb)
						case 1:
							time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
							_ = r.table.BdevCancelBuf(wb)
							_ = r.table.BdevCancelBuf(rb)
						}
						<-done
						<-done
						for _, b := range []*devsw.Buf{wb, rb} {
							if b.Error != 0 && b.Error != devsw.ECANCELED {
								t.Errorf("a %v ends with %v", b.Op, b.Error)
							}
						}
						if rb.Error == 0 && read[0] != 0xaa {
							t.Error("a read that went well has read nothing")
						}
						clear(read)
						clear(data)
						open.RUnlock()
					}
				})
			}
			closer := make(chan struct{})
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				for {
					select {
					case <-closer:
						return
					case <-time.After(time.Duration(5+rand.IntN(20)) * time.Millisecond):
					}
					r.cancel(dev)
					open.Lock()
					r.close(dev)
					if err := r.table.BdevOpen(dev, rw, devsw.IFBLK); err != nil {
						t.Errorf("open: %v", err)
					}
					open.Unlock()
				}
			}()
			writers.Wait()
			close(closer)
			<-closed
			r.close(dev)
			if err := r.table.BdevOpen(dev, rw, devsw.IFBLK); err != nil { // all has landed by then
				t.Fatal(err)
			}

			s.mu.Lock()
			defer s.mu.Unlock()
			landed := 0
			for off, numbers := range s.blocks {
				for i, n := range numbers {
					landed++
					if i > 0 && n < numbers[i-1] {
						t.Errorf("at byte %d write %d lands after write %d", off, n, numbers[i-1])
					}
				}
			}
			t.Logf("%d writes have landed", landed)
		})
	}
}
