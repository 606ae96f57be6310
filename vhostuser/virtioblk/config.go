package virtioblk

import (
	"encoding/binary"
	"math/bits"

	"vdev/devsw"
)

// Feature bits of a block device and of its rings (virtio specification, sections 5.2.3 and 6).
const (
	fSegMax      = 1 << 2  // VIRTIO_BLK_F_SEG_MAX
	fRO          = 1 << 5  // VIRTIO_BLK_F_RO
	fBlkSize     = 1 << 6  // VIRTIO_BLK_F_BLK_SIZE
	fFlush       = 1 << 9  // VIRTIO_BLK_F_FLUSH
	fTopology    = 1 << 10 // VIRTIO_BLK_F_TOPOLOGY
	fConfigWCE   = 1 << 11 // VIRTIO_BLK_F_CONFIG_WCE
	fMQ          = 1 << 12 // VIRTIO_BLK_F_MQ
	fDiscard     = 1 << 13 // VIRTIO_BLK_F_DISCARD
	fWriteZeroes = 1 << 14 // VIRTIO_BLK_F_WRITE_ZEROES
	fIndirect    = 1 << 28 // VIRTIO_F_RING_INDIRECT_DESC
	fEventIdx    = 1 << 29 // VIRTIO_F_RING_EVENT_IDX
	fVersion1    = 1 << 32 // VIRTIO_F_VERSION_1
)

// Request types and status values (section 5.2.6).
const (
	tIn          = 0  // VIRTIO_BLK_T_IN
	tOut         = 1  // VIRTIO_BLK_T_OUT
	tFlush       = 4  // VIRTIO_BLK_T_FLUSH
	tGetID       = 8  // VIRTIO_BLK_T_GET_ID
	tDiscard     = 11 // VIRTIO_BLK_T_DISCARD
	tWriteZeroes = 13 // VIRTIO_BLK_T_WRITE_ZEROES

	statusOK     = 0 // VIRTIO_BLK_S_OK
	statusIOErr  = 1 // VIRTIO_BLK_S_IOERR
	statusUnsupp = 2 // VIRTIO_BLK_S_UNSUPP
)

const (
	sectorSize = 512 // the unit of the protocol, whatever the logical block size is
	headerSize = 16  // type, reserved, sector
	rangeSize  = 16  // struct virtio_blk_discard_write_zeroes
	idSize     = 20  // VIRTIO_BLK_ID_BYTES

	configSize    = 60 // struct virtio_blk_config up to the end of write_zeroes
	writebackOff  = 32 // of the field writeback in it
	physicalBlock = 4096

	// DefaultSegMax is how many buffers a request may have besides header and status (seg_max),
	// where Config.SegMax is 0: what fits a ring of 128 descriptors, QEMU's default.
	DefaultSegMax = 126
	// MaxSegMax is the largest Config.SegMax. It fits the largest ring that QEMU makes.
	MaxSegMax = 1022
	// maxRanges is how many ranges a request may have (max_discard_seg, max_write_zeroes_seg).
	maxRanges = 64
	// maxRangeSectors are the sectors of one range (max_discard_sectors,
	// max_write_zeroes_sectors), so that a whole disk takes few requests: 2 GiB, as much as QEMU's
	// block layer has in one. What does it does it in pieces.
	maxRangeSectors = 1 << 22
)

// fillConfig writes struct virtio_blk_config (section 5.2.4) for a disk into p, which has
// configSize bytes. All fields are little-endian; on the hosts vdev runs on that is a legacy guest
// driver's order too.
func fillConfig(p []byte, info devsw.DiskInfo, queues, segMax int, writeback bool) {
	le := binary.LittleEndian
	clear(p)
	block := info.SectorSize
	le.PutUint64(p[0:], uint64(info.Size/sectorSize))
	le.PutUint32(p[12:], uint32(segMax))
	le.PutUint32(p[20:], block)
	physical := max(uint32(physicalBlock), block)
	p[24] = uint8(bits.TrailingZeros32(physical / block))
	le.PutUint16(p[26:], uint16(physical/block)) // min_io_size, in logical blocks
	le.PutUint32(p[28:], info.OptIOSize/block)   // opt_io_size, in logical blocks
	if writeback {
		p[writebackOff] = 1
	}
	le.PutUint16(p[34:], uint16(queues))
	if info.Discard {
		le.PutUint32(p[36:], maxRangeSectors)
		le.PutUint32(p[40:], maxRanges)
		le.PutUint32(p[44:], max(info.DiscardAlign, block)/sectorSize)
	}
	if info.WriteZeroes {
		le.PutUint32(p[48:], maxRangeSectors)
		le.PutUint32(p[52:], maxRanges)
		if info.Discard {
			p[56] = 1 // write_zeroes_may_unmap
		}
	}
}

// features is what the device offers for a disk.
func features(info devsw.DiskInfo, queues int) uint64 {
	f := uint64(fVersion1 | fIndirect | fEventIdx | fSegMax | fBlkSize | fFlush | fTopology | fConfigWCE)
	if queues > 1 {
		f |= fMQ
	}
	if info.ReadOnly {
		return f | fRO
	}
	if info.Discard {
		f |= fDiscard
	}
	if info.WriteZeroes {
		f |= fWriteZeroes
	}
	return f
}
