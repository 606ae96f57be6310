package disk_test

import (
	"context"
	"fmt"
	"time"

	"vdev/devsw"
	"vdev/devsw/disk"
	"vdev/specfs"
)

// slow keeps its bytes in memory, and takes an hour for each transfer.
type slow struct{ mem []byte }

func (s *slow) Info() (devsw.DiskInfo, error) { return devsw.DiskInfo{Size: int64(len(s.mem))}, nil }

func (s *slow) Open(context.Context, devsw.Flag) error { return nil }

func (s *slow) Close() { fmt.Println("closed") }

func (s *slow) sleep(ctx context.Context) error {
	select {
	case <-time.After(time.Hour):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slow) ReadAt(ctx context.Context, p []byte, off int64) error {
	copy(p, s.mem[off:])
	return s.sleep(ctx)
}

func (s *slow) WriteAt(ctx context.Context, p []byte, off int64) error {
	copy(s.mem[off:], p)
	return s.sleep(ctx)
}

func (s *slow) Flush(context.Context) error { return nil }

// A driver with one disk: a Storage whose functions block. A close cancels the read that is in
// progress, waits for it, and then closes the Storage.
func ExampleNewDisk() {
	table := devsw.NewTable()
	driver, err := disk.Attach(table, "slow", devsw.NODEVMAJOR, devsw.NODEVMAJOR)
	if err != nil {
		panic(err)
	}
	dev, err := driver.Create(0, disk.NewDisk(&slow{mem: make([]byte, 1<<20)}))
	if err != nil {
		panic(err)
	}

	node := specfs.New(table).Node(devsw.IFBLK, dev)
	if err := node.Open(context.Background(), devsw.FREAD|devsw.FWRITE); err != nil {
		panic(err)
	}
	read := devsw.Buf{
		Op: devsw.BRead, Data: [][]byte{make([]byte, 4096)}, Bcount: 4096,
		Iodone: func(b *devsw.Buf) { fmt.Println("the read has ended:", b.Error) },
	}
	node.Strategy(nil, &read)
	if err := node.Close(devsw.FREAD | devsw.FWRITE); err != nil {
		panic(err)
	}
	if err := driver.Detach(); err != nil {
		panic(err)
	}
	// Output:
	// the read has ended: operation canceled
	// closed
}

// remote is a disk whose requests somebody else answers, in any order.
type remote struct{ asked chan request }

type request struct {
	ticket devsw.Ticket
	off, n int64
}

func (r *remote) Info() (devsw.DiskInfo, error) { return devsw.DiskInfo{Size: 1 << 20}, nil }

func (r *remote) Destroy() {}

func (r *remote) Open(context.Context, devsw.Flag) (disk.Medium, error) {
	return &session{Base: disk.NewBase(devsw.DiskInfo{Size: 1 << 20}), asked: r.asked}, nil
}

// session is a remote that is open.
type session struct {
	*disk.Base
	asked chan request
	bufs  devsw.BufSet // those that were not answered
}

// Transfer asks, and does not wait for the answer.
func (s *session) Transfer(b *devsw.Buf, off, n int64) {
	if ticket, ok := s.bufs.Add(b); ok {
		s.asked <- request{ticket, off, n}
	}
}

// answered is called when an answer has come, on any goroutine.
func (s *session) answered(r request, data []byte) {
	b := s.bufs.Claim(r.ticket)
	if b == nil {
		return // it was cancelled: the memory may be in use for something else
	}
	b.Error = b.MoveAt(data, 0)
	b.Resid = b.Bcount - r.n
	b.Biodone()
}

func (s *session) CancelBuf(b *devsw.Buf) { s.bufs.CancelBuf(b) }

func (s *session) Cancel() { s.bufs.Cancel() }

// A driver whose transfers end later, wherever the answers come.
func ExampleMedium() {
	table := devsw.NewTable()
	driver, err := disk.Attach(table, "remote", devsw.NODEVMAJOR, devsw.NODEVMAJOR)
	if err != nil {
		panic(err)
	}
	r := &remote{asked: make(chan request, 2)}
	dev, err := driver.Create(0, r)
	if err != nil {
		panic(err)
	}
	if err := table.BdevOpen(dev, devsw.FREAD, devsw.IFBLK); err != nil {
		panic(err)
	}
	for _, blkno := range []int64{0, 8} {
		table.BdevStrategy(&devsw.Buf{
			Op: devsw.BRead, Dev: dev, Blkno: blkno, Data: [][]byte{make([]byte, 512)}, Bcount: 512,
			Iodone: func(b *devsw.Buf) { fmt.Printf("block %d: %d bytes, error %v\n", b.Blkno, b.Bcount-b.Resid, b.Error) },
		})
	}
	_, medium, err := driver.Unit(0)
	if err != nil {
		panic(err)
	}
	first, late := <-r.asked, <-r.asked
	medium.(*session).answered(first, make([]byte, 512))
	if err := table.BdevCancel(dev, devsw.FREAD, devsw.IFBLK); err != nil {
		panic(err)
	}
	medium.(*session).answered(late, make([]byte, 512))
	if err := table.BdevClose(dev, devsw.FREAD, devsw.IFBLK); err != nil {
		panic(err)
	}
	// Output:
	// block 0: 512 bytes, error errno 0
	// block 8: 0 bytes, error operation canceled
}
