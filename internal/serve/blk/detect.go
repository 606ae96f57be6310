package blk

import (
	"fmt"

	"vdev/internal/dev/qemunbd"
	"vdev/internal/spec"
)

// settle decides what serves an image of which only the name was given: the driver vnd where it is
// raw, else qemu. warn is told where that may be a mistake.
func settle(d spec.Driver, warn func(string)) (spec.Driver, error) {
	if d.Name != "qemu" && !d.Detect {
		return d, nil
	}
	if d.QEMU.Format == "" {
		var err error
		var doubt *qemunbd.FormatError
		if d.QEMU.Format, doubt, err = qemunbd.Detect(d.File); err != nil {
			return d, fmt.Errorf("%w (with --format, or file=FILE,format=FORMAT)", err)
		}
		if doubt != nil {
			warn(fmt.Sprintf("%v (with --format %s, or file=FILE,format=%s)", doubt, doubt.Content, doubt.Content))
		}
	}
	if d.Detect {
		d.Name, d.Detect = "qemu", false
		if d.QEMU.Format == qemunbd.Raw && !d.QEMU.Snapshot {
			d.Name = "vnd"
			d.QEMU.Chain = "" // it leads nowhere
		}
	}
	return d, nil
}
