package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/nbd"
	"vdev/internal/qemunbd"
)

// qemuSpec is what the driver qemu was given beside.
type qemuSpec struct {
	format       string // empty: by content
	snapshot     bool
	detectZeroes string
	chain        qemunbd.Chain // empty: the default
	program      string
}

// detectZeroes are the values of the option detect-zeroes.
var detectZeroes = []string{"off", "on", "unmap"}

// formatRE is what the name of a format looks like.
var formatRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

func parseFormat(s string) (string, error) {
	if !formatRE.MatchString(s) {
		return "", fmt.Errorf("format %q: must be one of QEMU's, such as qcow2, vmdk, vdi, vhdx or raw", s)
	}
	return s, nil
}

func parseChain(s string) (qemunbd.Chain, error) {
	if !slices.Contains(qemunbd.Chains, s) {
		return "", fmt.Errorf("backing-chain %q: must be %s", s, oneOf(qemunbd.Chains))
	}
	return qemunbd.Chain(s), nil
}

// qemuReturn is how long requests wait for a qemu-nbd that has died: vdev starts it again itself, which takes as long as it takes to
// open the image.
const qemuReturn = 30 * time.Second

// settle decides what serves an image of which only the name was given: the driver vnd where it is
// raw, else qemu. warn is told where that may be a mistake.
func (d driverSpec) settle(warn func(string)) (driverSpec, error) {
	if d.name != "qemu" && !d.detect {
		return d, nil
	}
	if d.qemu.format == "" {
		var err error
		var doubt *qemunbd.FormatError
		if d.qemu.format, doubt, err = qemunbd.Detect(d.file); err != nil {
			return d, fmt.Errorf("%w (with --format, or file=FILE,format=FORMAT)", err)
		}
		if doubt != nil {
			warn(fmt.Sprintf("%v (with --format %s, or file=FILE,format=%s)", doubt, doubt.Content, doubt.Content))
		}
	}
	if d.detect {
		d.name, d.detect = "qemu", false
		if d.qemu.format == qemunbd.Raw && !d.qemu.snapshot {
			d.name = "vnd"
			d.qemu.chain = "" // it leads nowhere
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
func openImage(ctx context.Context, table *devsw.Table, spec driverSpec, blockSize uint32, inUse func(error), log *slog.Logger) (*openedDisk, error) {
	server, err := qemunbd.New(qemunbd.Config{
		File: spec.file, Format: spec.qemu.format, Program: spec.qemu.program, ReadOnly: spec.readOnly, Direct: spec.direct,
		Discard: !spec.noDiscard, DetectZeroes: spec.qemu.detectZeroes, Snapshot: spec.qemu.snapshot, InUse: inUse,
		Log: func(text string) { log.Warn(text) }, Note: func(text string) { log.Info(text) }, Chain: spec.qemu.chain,
	})
	if err != nil {
		return nil, err
	}
	d, err := makeNBD(ctx, table, nbd.Config{
		URI: server.URI(), Server: server, ReadOnly: spec.readOnly, SectorSize: blockSize, Connections: spec.nbd.connections,
		ReconnectDelay: qemuReturn,
	})
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	d.driver = &withServer{Driver: d.driver.(*nbd.Driver), server: server}
	return d, nil
}
