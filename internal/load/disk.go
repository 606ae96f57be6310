package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// Of a block device (virtio 1.2, section 5.2).
const (
	featReadOnly = 1 << 5  // VIRTIO_BLK_F_RO
	featBlkSize  = 1 << 6  // VIRTIO_BLK_F_BLK_SIZE
	featFlush    = 1 << 9  // VIRTIO_BLK_F_FLUSH: without it each write would have to be stable when it completes
	featMQ       = 1 << 12 // VIRTIO_BLK_F_MQ

	configSize   = 36 // up to the end of num_queues
	offBlkSize   = 20
	offNumQueues = 34

	typeIn, typeOut = 0, 1 // VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
	statusOK        = 0    // VIRTIO_BLK_S_OK
	sectorSize      = 512
	headerSize      = 16
)

// disk is a connection to a back-end, with guest memory and its queues.
type disk struct {
	f      *vhostusertest.Frontend
	mem    *virtqtest.Mem
	queues []*queue
	pid    int         // of the back-end
	stay   func() bool // keeps the end of the context from hanging up
}

// connect connects to the back-end at socket, and makes its rings ready for j. When ctx ends, it hangs up.
func connect(ctx context.Context, socket string, j *Job) (_ *disk, err error) {
	f, err := vhostusertest.Dial(socket)
	if err != nil {
		return nil, err
	}
	d := &disk{f: f, stay: context.AfterFunc(ctx, func() { f.Conn().Close() })}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	peer, err := sys.PeerOf(f.Conn())
	if err != nil {
		return nil, err
	}
	d.pid = peer.PID
	offered, err := f.Handshake(vhostusertest.AllProtocolFeatures)
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	if offered&virtq.FeatureVersion1 == 0 {
		return nil, errors.New("the back-end does not offer VIRTIO_F_VERSION_1")
	}
	features := offered & (vhostuser.FProtocolFeatures | virtq.FeatureVersion1 | virtq.FeatureEventIdx | virtq.FeatureIndirectDesc |
		featReadOnly | featBlkSize | featFlush | featMQ)
	if err := f.SetFeatures(features); err != nil {
		return nil, err
	}
	conf, err := f.GetConfig(0, configSize)
	if err != nil {
		return nil, fmt.Errorf("configuration space: %w", err)
	}
	size, queues, block := int64(binary.LittleEndian.Uint64(conf))*sectorSize, 1, int64(sectorSize)
	if features&featMQ != 0 {
		queues = int(binary.LittleEndian.Uint16(conf[offNumQueues:]))
	}
	if features&featBlkSize != 0 {
		block = int64(binary.LittleEndian.Uint32(conf[offBlkSize:]))
	}
	if j.Size > 0 {
		if j.Size > size {
			return nil, fmt.Errorf("%d bytes are to be used, and the disk has %d", j.Size, size)
		}
		size = j.Size
	}
	switch {
	case features&featReadOnly != 0 && (j.Pattern.Writes() || j.Verify):
		return nil, errors.New("the disk is read-only")
	case j.Queues > queues:
		return nil, fmt.Errorf("%d queues are wanted, and the back-end has %d", j.Queues, queues)
	case block > 0 && j.BlockSize%block != 0:
		return nil, fmt.Errorf("block size %d: the disk has blocks of %d", j.BlockSize, block)
	case size/j.BlockSize < int64(j.Queues):
		return nil, fmt.Errorf("%d bytes have no %d blocks of %d, one for each queue", size, j.Queues, j.BlockSize)
	}
	return d, d.start(j, features, size)
}

// perhaps says what may be the cause where a back-end cannot be connected to.
func perhaps(err error) string {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return " (does it serve another front-end?)"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return " (it has hung up: does it serve another front-end, or is it no vhost-user back-end?)"
	}
	return ""
}

// start makes guest memory, and starts the rings in it.
func (d *disk) start(j *Job, features uint64, size int64) (err error) {
	const regionAlign = 2 << 20
	slots := uint64(j.Queues) * uint64(j.Depth)
	// Rings, tables, headers and status bytes are well below this.
	room := slots*(uint64(j.BlockSize)+512) + uint64(j.Queues)*(1<<20)
	if d.mem, err = virtqtest.NewMem(virtqtest.Range{GuestPhys: 0, Size: (room + regionAlign - 1) &^ (regionAlign - 1)}); err != nil {
		return err
	}
	if err := d.f.AddMemory(d.mem); err != nil {
		return fmt.Errorf("guest memory: %w", err)
	}
	for i := range j.Queues {
		q, err := newQueue(d, j, i, features, size)
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		d.queues = append(d.queues, q)
	}
	return nil
}

// stop stops the rings.
func (d *disk) stop() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.ring.Stop())
	}
	return errors.Join(errs...)
}

// close hangs up, whatever is in progress.
func (d *disk) close() {
	d.stay()
	d.f.Close()
	for _, q := range d.queues {
		q.close()
	}
	if d.mem != nil {
		d.mem.Close()
	}
}
