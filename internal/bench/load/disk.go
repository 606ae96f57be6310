package load

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// Of a block device (virtio 1.2, section 5.2).
const (
	featReadOnly = 1 << 5 // VIRTIO_BLK_F_RO
	featBlkSize  = 1 << 6 // VIRTIO_BLK_F_BLK_SIZE
	// VIRTIO_BLK_F_FLUSH: without it each write would have to be stable when it completes
	featFlush = 1 << 9
	featMQ    = 1 << 12 // VIRTIO_BLK_F_MQ

	configSize   = 36 // up to the end of num_queues
	offBlkSize   = 20
	offNumQueues = 34

	typeIn, typeOut = 0, 1 // VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
	statusOK        = 0    // VIRTIO_BLK_S_OK
	sectorSize      = 512
	headerSize      = 16
)

// disk is a connection to a back-end of a disk, with what that offers; later with guest memory and
// queues.
type disk struct {
	link

	features  uint64 // those that are used
	size      int64  // bytes
	block     int64  // logical blocks, bytes
	maxQueues int

	nonce  uint64 // what Job.Verify tells this run's data by
	mem    *virtqtest.Mem
	queues []*queue
}

// with connects to the back-end at socket, and hangs up when do has returned or ctx has ended.
func with(ctx context.Context, socket string, do func(d *disk) error) error {
	return explained(ctx, socket, func() error {
		d, err := dial(ctx, socket)
		if err != nil {
			return err
		}
		defer d.close()
		return do(d)
	})
}

// dial connects to the back-end at socket, and asks what it offers. When ctx ends, it hangs up.
func dial(ctx context.Context, socket string) (*disk, error) {
	d := &disk{nonce: rand.Uint64()}
	if err := d.connect(ctx, socket, d.stalled); err != nil {
		return nil, err
	}
	if err := d.ask(); err != nil {
		d.close()
		return nil, perhaps(err)
	}
	return d, nil
}

// ask asks what the back-end offers, and who it is.
func (d *disk) ask() error {
	offered, err := d.f.Handshake(vhostusertest.AllProtocolFeatures)
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	d.pid = serverOf(d.f.Conn()) // who has answered has accepted
	if offered&virtq.FeatureVersion1 == 0 {
		return errors.New("the back-end does not offer VIRTIO_F_VERSION_1")
	}
	d.features = offered & (vhostuser.FProtocolFeatures | virtq.FeatureVersion1 | virtq.FeatureEventIdx | virtq.FeatureIndirectDesc |
		featReadOnly | featBlkSize | featFlush | featMQ)
	if err := d.f.SetFeatures(d.features); err != nil {
		return err
	}
	conf, err := d.f.GetConfig(0, configSize)
	if err != nil {
		return fmt.Errorf("configuration space: %w", err)
	}
	d.size, d.block, d.maxQueues = int64(binary.LittleEndian.Uint64(conf))*sectorSize, sectorSize, 1
	if d.features&featMQ != 0 {
		d.maxQueues = int(binary.LittleEndian.Uint16(conf[offNumQueues:]))
	}
	if d.features&featBlkSize != 0 {
		d.block = int64(binary.LittleEndian.Uint32(conf[offBlkSize:]))
	}
	return nil
}

// used is how many bytes of the disk j uses.
func (d *disk) used(j *Job) int64 { return cmp.Or(j.Size, d.size) }

// fits returns an error where the back-end's disk is none for j, or there is too little memory.
func (d *disk) fits(j *Job) error {
	used := d.used(j)
	switch {
	case used > d.size:
		return fmt.Errorf("%d bytes are to be used, and the disk has %d", used, d.size)
	case d.features&featReadOnly != 0 && (j.Pattern.Writes() || j.Verify):
		return errors.New("the disk is read-only")
	case j.Queues > d.maxQueues:
		return fmt.Errorf("%d queues are wanted, and the back-end has %d", j.Queues, d.maxQueues)
	case d.block > 0 && j.BlockSize%d.block != 0:
		return fmt.Errorf("block size %d: the disk has blocks of %d", j.BlockSize, d.block)
	case d.size < j.BlockSize:
		return fmt.Errorf("block size %d: the disk has only %d bytes", j.BlockSize, d.size)
	case used < j.BlockSize:
		return fmt.Errorf("block size %d: only %d bytes of the disk are to be used", j.BlockSize, used)
	case used/j.BlockSize < int64(j.Queues):
		return fmt.Errorf("%d bytes have no %d blocks of %d, one for each queue", used, j.Queues, j.BlockSize)
	case j.Verify && j.Pattern.Writes() && used/j.BlockSize/int64(j.Queues) < int64(j.Depth):
		return fmt.Errorf("%d bytes have no %d blocks of %d for each of %d queues: to verify what is written, each request in flight needs a block of its own",
			used, j.Depth, j.BlockSize, j.Queues)
	}
	meminfo, _ := os.ReadFile("/proc/meminfo")
	return d.affords(j, available(meminfo))
}

// memory is how many bytes of guest memory j takes, a multiple of 2 MiB.
func (j *Job) memory() uint64 {
	const align = 2 << 20
	slots := uint64(j.Queues) * uint64(j.Depth)
	// Rings, tables, headers and status bytes are well below this.
	room := slots*(uint64(j.BlockSize)+512) + uint64(j.Queues)*(1<<20)
	return (room + align - 1) &^ (align - 1)
}

// affords returns an error where j takes more memory than the so many bytes that are available.
func (d *disk) affords(j *Job, available uint64) error {
	wanted := j.memory()
	if j.Verify {
		wanted += uint64(d.used(j)/j.BlockSize) * ledgerSize
	}
	if wanted > available {
		return fmt.Errorf("%d bytes of memory are wanted for depth %d with %d queues, and %d are available", wanted, j.Depth, j.Queues, available)
	}
	return nil
}

// available is how many bytes of memory can be had without swapping, by what /proc/meminfo says;
// all there could be, where it does not.
func available(meminfo []byte) uint64 {
	for line := range strings.Lines(string(meminfo)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemAvailable:" && f[2] == "kB" {
			if n, err := strconv.ParseUint(f[1], 10, 54); err == nil {
				return n << 10
			}
		}
	}
	return math.MaxUint64
}

// start makes guest memory, and starts the rings in it.
func (d *disk) start(ctx context.Context, j *Job) error {
	if err := d.fits(j); err != nil {
		return err
	}
	var err error
	if d.mem, err = virtqtest.NewMem(virtqtest.Range{Size: j.memory()}); err != nil {
		return err
	}
	if err := d.f.AddMemory(d.mem); err != nil {
		return fmt.Errorf("guest memory: %w", err)
	}
	for i := range j.Queues {
		q, err := newQueue(ctx, d, j, i)
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		d.queues = append(d.queues, q)
	}
	return nil
}

// stop stops the rings.
func (d *disk) stop() error {
	for _, q := range d.queues {
		if err := q.ring.Stop(); err != nil {
			return fmt.Errorf("queue %d: %w", q.index, err)
		}
	}
	return nil
}

// close hangs up, whatever is in progress.
func (d *disk) close() {
	d.hangUp()
	for _, q := range d.queues {
		q.close()
	}
	if d.mem != nil {
		d.mem.Close()
	}
}
