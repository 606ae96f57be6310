package main

import (
	"fmt"
	"math/bits"

	"vdev/internal/control"
	"vdev/vhostuser"
)

// featureNames are the feature bits of a virtio block device and of its rings (virtio 1.3, sections 5.2.3 and 6), and vhost's
// own, without their prefixes.
var featureNames = map[int]string{
	1: "SIZE_MAX", 2: "SEG_MAX", 4: "GEOMETRY", 5: "RO", 6: "BLK_SIZE", 9: "FLUSH", 10: "TOPOLOGY", 11: "CONFIG_WCE", 12: "MQ",
	13: "DISCARD", 14: "WRITE_ZEROES", 15: "LIFETIME", 16: "SECURE_ERASE", 17: "ZONED",
	24: "NOTIFY_ON_EMPTY", 26: "LOG_ALL", 27: "ANY_LAYOUT", 28: "INDIRECT_DESC", 29: "EVENT_IDX", 30: "PROTOCOL_FEATURES",
	32: "VERSION_1", 33: "ACCESS_PLATFORM", 34: "RING_PACKED", 35: "IN_ORDER", 36: "ORDER_PLATFORM", 37: "SR_IOV",
	38: "NOTIFICATION_DATA", 39: "NOTIF_CONFIG_DATA", 40: "RING_RESET",
}

// statusNames are the bits of the device status (virtio 1.3, section 2.1).
var statusNames = map[int]string{
	0: "ACKNOWLEDGE", 1: "DRIVER", 2: "DRIVER_OK", 3: "FEATURES_OK", 6: "DEVICE_NEEDS_RESET", 7: "FAILED",
}

// named gives the bits of v that are set by their names.
func named(v uint64, names map[int]string) control.Bits {
	b := control.Bits{Value: fmt.Sprintf("%#x", v), Names: []string{}}
	for rest := v; rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros64(rest)
		name := names[bit]
		if name == "" {
			name = fmt.Sprintf("bit %d", bit)
		}
		b.Names = append(b.Names, name)
	}
	return b
}

func protocolFeatures(p vhostuser.ProtocolFeatures) control.Bits {
	return control.Bits{Value: fmt.Sprintf("%#x", uint64(p)), Names: append([]string{}, p.Names()...)}
}
