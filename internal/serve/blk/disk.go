// Package blk is what a served device is that is a disk: one of the drivers of disks, perhaps with
// qemu-nbd as its server or faults upon it, behind virtio-blk. It is a serve.Kind.
//
//	Disk     what somebody has described: the serve.Kind
//	storage  a driver with its unit, and what is special about it
//	model    virtio-blk on storage: the serve.Model, and what the control socket can ask of a disk
package blk

import (
	"cmp"
	"log/slog"

	"vdev/internal/control"
	"vdev/internal/dev/vnd"
	"vdev/internal/spec"
)

// Disk is a disk that is to be served.
type Disk struct {
	spec.Disk
	Failures *vnd.Failures // where it is kept that a flush has failed
}

// Name implements serve.Kind.
func (d Disk) Name() string { return "blk" }

// Title implements serve.Kind.
func (d Disk) Title() string { return cmp.Or(d.Driver.File, d.Driver.Name) }

// About implements serve.Kind.
func (d Disk) About() (about []any) {
	if file := cmp.Or(d.Driver.File, d.Driver.NBD.URI); file != "" {
		about = append(about, "file", file)
	}
	return about
}

// Queues implements serve.Kind.
func (d Disk) Queues() int { return d.NumQueues }

// Describe implements serve.Kind.
func (d Disk) Describe(st *control.Status) {
	st.Disk = &control.Disk{Driver: d.Driver.Name, File: d.Driver.File, Serial: d.Serial, BlockSize: d.BlockSize}
}

// NewFailures makes what keeps in the folder dir that a flush has failed, for the disks of a
// process. log is told when it cannot.
func NewFailures(dir string, log *slog.Logger) *vnd.Failures {
	f := vnd.NewFailures(dir, func(err error) {
		log.Error("the next vdev will not know that a flush has failed: it could not be recorded (--state-dir)", "cause", err)
	})
	go func() {
		if err := f.Check(); err != nil {
			log.Warn("failed flushes cannot be recorded for the next vdev (--state-dir)", "cause", err)
		}
	}()
	if dir == "" {
		log.Warn("there is no folder to record failed flushes in, for the next vdev: XDG_RUNTIME_DIR is not set, and neither is --state-dir; " +
			"and what a guest has not flushed to an image that is not raw is taken for lost when this " +
			"vdev is killed: every request fails until the guest resets")
	}
	return f
}
