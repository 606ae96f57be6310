package virtioconsole

import (
	"encoding/binary"

	"vdev/devsw"
)

// Feature bits (virtio 1.2, 5.3.3).
const (
	fSize      uint64 = 1 << 0 // VIRTIO_CONSOLE_F_SIZE
	fMultiport uint64 = 1 << 1 // VIRTIO_CONSOLE_F_MULTIPORT
	fEmergency uint64 = 1 << 2 // VIRTIO_CONSOLE_F_EMERG_WRITE
)

// Layout of the configuration space, struct virtio_console_config (virtio 1.2, 5.3.4).
const (
	configCols     = 0 // le16
	configRows     = 2 // le16
	configMaxPorts = 4 // le32, max_nr_ports
	configEmergWr  = 8 // le32, emerg_wr
	configSize     = 12
)

// fillConfig fills p with the configuration space. emerg_wr reads as 0.
func fillConfig(p []byte, size devsw.Winsize, maxPorts int) {
	clear(p)
	binary.LittleEndian.PutUint16(p[configCols:], size.Col)
	binary.LittleEndian.PutUint16(p[configRows:], size.Row)
	binary.LittleEndian.PutUint32(p[configMaxPorts:], uint32(maxPorts))
}
