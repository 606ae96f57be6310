package specfs_test

import (
	"context"
	"fmt"
	"time"

	"vdev/devsw"
	"vdev/specfs"
)

// slowdisk is a whole driver: a disk in memory, each of whose transfers takes a
// second, on a goroutine of its own.
type slowdisk struct {
	mem  []byte
	bufs devsw.BufSet // in progress
}

func (d *slowdisk) bdevsw() *devsw.Bdevsw {
	return &devsw.Bdevsw{
		Cancel:   func(devsw.Dev, devsw.Flag, devsw.Mode) error { d.bufs.Cancel(); return nil },
		Close:    func(devsw.Dev, devsw.Flag, devsw.Mode) error { d.bufs.Reset(); return nil },
		Strategy: d.strategy,
		Psize:    func(devsw.Dev) int64 { return int64(len(d.mem)) / devsw.DEVBSIZE },
		Flag:     devsw.DDisk | devsw.DMPSafe,
	}
}

func (d *slowdisk) strategy(b *devsw.Buf) {
	at := b.Blkno * devsw.DEVBSIZE
	if b.Blkno < 0 || b.Bcount < 0 || at > int64(len(d.mem))-b.Bcount {
		b.Fail(devsw.EINVAL)
		return
	}
	ticket, ok := d.bufs.Add(b)
	if !ok {
		return // cancelled, and ended
	}
	time.AfterFunc(time.Second, func() {
		b := d.bufs.Claim(ticket)
		if b == nil {
			return // cancelled meanwhile
		}
		b.Error = b.MoveAt(d.mem[at:at+b.Bcount], 0)
		b.Biodone()
	})
}

// A driver is attached, opened through specfs, and closed with a transfer in
// progress: d_cancel interrupts it, and when Close returns it has ended.
func Example() {
	table := devsw.NewTable()
	disk := &slowdisk{mem: make([]byte, 1<<20)}
	major, _, err := table.Attach("slowdisk", disk.bdevsw(), devsw.NODEVMAJOR, &devsw.Cdevsw{}, devsw.NODEVMAJOR)
	if err != nil {
		fmt.Println(err)
		return
	}
	fs := specfs.New(table, specfs.WithTrace(func(e specfs.Event) { fmt.Println(e.Kind) }))

	node := fs.Node(devsw.IFBLK, devsw.Makedev(uint32(major), 0))
	if err := node.Open(context.Background(), devsw.FREAD|devsw.FWRITE); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(node.Psize(), "blocks")

	b := &devsw.Buf{Op: devsw.BWrite, Blkno: 8, Bcount: 512, Data: [][]byte{make([]byte, 512)}}
	b.Iodone = func(b *devsw.Buf) { fmt.Println("the write ends:", b.Error, "with", b.Resid, "bytes left") }
	node.Strategy(nil, b)

	fmt.Println("close gives", node.Close(devsw.FREAD|devsw.FWRITE))
	// Output:
	// open
	// opened
	// 2048 blocks
	// cancel
	// the write ends: operation canceled with 512 bytes left
	// canceled
	// drain
	// drained
	// close
	// closed
	// close gives <nil>
}
