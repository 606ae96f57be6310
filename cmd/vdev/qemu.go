package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/nbd"
	"vdev/internal/dev/qemunbd"
	"vdev/internal/spec"
)

// qemuReturn is how long requests wait for a qemu-nbd that has died: vdev starts it again itself, which takes as long as it takes to
// open the image.
const qemuReturn = 30 * time.Second

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

// withServer is a driver whose server is vdev's own.
type withServer struct {
	*nbd.Driver
	server *qemunbd.Server
}

// Detach ends the server, too.
func (w *withServer) Detach() error {
	w.server.End()
	return errors.Join(w.Driver.Detach(), w.server.Close())
}

// openImage makes a disk of an image that qemu-nbd serves. log is told what that says.
func openImage(ctx context.Context, table *devsw.Table, spec spec.Driver, blockSize uint32, records string, inUse func(error),
	log *slog.Logger,
) (*openedDisk, error) {
	server, err := qemunbd.New(qemunbd.Config{
		File: spec.File, Format: spec.QEMU.Format, Program: spec.QEMU.Program, ReadOnly: spec.ReadOnly, Direct: spec.Direct,
		Discard: !spec.NoDiscard, DetectZeroes: spec.QEMU.DetectZeroes, Snapshot: spec.QEMU.Snapshot, InUse: inUse,
		Log: func(text string) { log.Warn(text) }, Note: func(text string) { log.Info(text) }, Chain: spec.QEMU.Chain,
		Records: records,
	})
	if err != nil {
		return nil, err
	}
	d, err := makeNBD(ctx, table, nbd.Config{
		URI: server.URI(), Server: server, ReadOnly: spec.ReadOnly, SectorSize: blockSize, Connections: spec.NBD.Connections,
		ReconnectDelay: qemuReturn,
	})
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	d.driver = &withServer{Driver: d.driver.(*nbd.Driver), server: server}
	return d, nil
}
