package blk

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"vdev/devsw"
	"vdev/internal/control"
	"vdev/internal/dev/nbd"
	"vdev/internal/serve"
	"vdev/internal/serve/faulty"
	"vdev/vhostuser"
	"vdev/vhostuser/virtioblk"
)

// model is virtio-blk on storage.
type model struct {
	faulty.Rules
	disk    Disk // with the driver that it was found to have
	parts   serve.Parts
	storage *storage
	info    devsw.DiskInfo // when it was made
	device  *virtioblk.Device
}

var (
	_ serve.Model     = (*model)(nil)
	_ control.Sized   = (*model)(nil)
	_ control.Failing = (*model)(nil)
	_ control.Faulty  = (*model)(nil)
)

// Backend implements serve.Model.
func (m *model) Backend() vhostuser.Config { return vhostuser.Config{Device: m.device} }

// Noun implements serve.Model.
func (m *model) Noun() string { return "disk" }

// About implements serve.Model.
func (m *model) About() []any {
	c := &m.disk.Driver
	about := []any{"driver", c.Name}
	if c.File != "" {
		about = append(about, "file", c.File)
	}
	if c.Faults != nil {
		about = append(about, "fault_rules", len(c.Faults.Rules))
	}
	return append(about, "bytes", m.info.Size, "block_size", m.info.SectorSize, "read_only", m.info.ReadOnly)
}

// featureNames are the feature bits of a virtio block device (virtio 1.3, section 5.2.3).
var featureNames = map[int]string{
	1: "SIZE_MAX", 2: "SEG_MAX", 4: "GEOMETRY", 5: "RO", 6: "BLK_SIZE", 9: "FLUSH", 10: "TOPOLOGY", 11: "CONFIG_WCE", 12: "MQ",
	13: "DISCARD", 14: "WRITE_ZEROES", 15: "LIFETIME", 16: "SECURE_ERASE", 17: "ZONED",
}

// FeatureNames implements serve.Model.
func (m *model) FeatureNames() map[int]string { return featureNames }

// Status implements serve.Model.
func (m *model) Status() func(*control.Status) {
	s := m.device.Status()
	return func(st *control.Status) { m.addStatus(st, &s) }
}

func (m *model) addStatus(st *control.Status, s *virtioblk.Status) {
	m.disk.Describe(st)
	d := st.Disk
	d.Bytes, d.BlockSize, d.ReadOnly, d.Warnings = s.Disk.Size, s.Disk.SectorSize, s.Disk.ReadOnly, m.storage.warnings()
	if m.disk.Driver.Faults != nil {
		d.Driver = "fault on " + d.Driver
	}
	if f := s.Failures; f.Count > 0 {
		d.Failed = &control.Failed{Requests: f.Count, Last: f.Last.String(), Seconds: time.Since(f.At).Seconds()}
	}
	if e := s.Lost.FlushError; e != 0 {
		d.FailedFlush = e.Error()
	}
	d.Unflushed = s.Lost.Unflushed
	if st.FrontEnd != nil && !s.Disk.ReadOnly {
		d.Cache, d.StableWrites = s.Cache, s.Stable
	}
	st.State, st.Fenced = string(s.State), s.Fenced
	if s.Err != nil {
		st.Error = s.Err.Error()
	}
	if !s.CancelAt.IsZero() {
		in := time.Until(s.CancelAt).Seconds()
		st.CancelIn = &in
	}
	for i := range st.Rings {
		st.Rings[i].Oldest = s.Oldest[i].Seconds()
	}
}

// Moving implements serve.Model. Without its in-flight region a guest takes nothing along of what
// is known to be lost.
func (m *model) Moving(inflight bool) {
	if e := m.device.Failure(); e != 0 && !inflight {
		m.parts.Log.Vital.Warn("the guest is being moved: where it goes nobody will know that a flush has failed, and that writes are lost "+
			"(with inflight-migration=on of QEMU 11.1 vdev is told)", "error", e)
	}
}

// WaitClosed implements serve.Model.
func (m *model) WaitClosed(ctx context.Context) error { return m.device.WaitClosed(ctx) }

// Close implements serve.Model.
func (m *model) Close() error {
	m.device.Close()
	return m.storage.detach()
}

// Reload implements serve.Model: it is the size that may have changed.
func (m *model) Reload() {
	if _, err := m.resize(); err != nil {
		m.parts.Log.Asked.Error("the disk's size could not be read again", "cause", err)
	}
}

// Resize implements control.Sized: it looks at the disk's size again, and has the front-end told
// where it has changed.
func (m *model) Resize(ctx context.Context) (control.Size, error) {
	return waited(ctx, m, "resize", m.resize)
}

func (m *model) resize() (size control.Size, err error) {
	// An open driver goes by the size it knows. ENXIO: it is being closed, and will look when it is
	// opened next. ENOTTY: its disks do not change.
	err = devsw.ENXIO
	if node := m.parts.FS.Lookup(devsw.IFBLK, m.storage.dev); node != nil {
		err = node.Ioctl(devsw.DIOCGROW, nil, devsw.FREAD)
	}
	if errors.Is(err, devsw.ENXIO) {
		// EBUSY: it is being opened, and looks.
		if err = m.storage.reread(); errors.Is(err, devsw.EBUSY) {
			err = nil
		}
	}
	if err != nil && !errors.Is(err, devsw.ENOTTY) {
		return size, err
	}
	if size.Changed, err = m.device.Resize(); err != nil {
		return size, err
	}
	info, err := m.storage.info()
	if err != nil {
		return size, err
	}
	size.Bytes = info.Size
	m.parts.Log.Asked.Info("the disk's size was read again", "bytes", size.Bytes, "changed", size.Changed)
	if size.Changed {
		m.parts.ConfigChanged()
	}
	return size, nil
}

// ClearFailure implements control.Failing.
func (m *model) ClearFailure(ctx context.Context) (c control.Cleared, err error) {
	cleared, err := waited(ctx, m, "clear-failure", m.device.ClearFailure)
	if err != nil {
		return c, err
	}
	c.LostUnflushed = cleared.Unflushed
	if e := cleared.FlushError; e != 0 {
		c.FailedFlush = e.Error()
	}
	if cleared != (devsw.DiskState{}) {
		m.parts.Log.Asked.Warn("what was lost is forgotten", "failed_flush", c.FailedFlush, "unflushed", c.LostUnflushed)
	}
	return c, nil
}

// waited does a command that may wait for storage, and gives what it gives. Where ctx ends before,
// the command goes on alone.
func waited[T any](ctx context.Context, m *model, what string, do func() (T, error)) (T, error) {
	result := make(chan T, 1)
	err := m.parts.Commands.Wait(ctx, func() error {
		return m.parts.Commands.Do(what, func() error {
			v, err := do()
			result <- v
			return err
		})
	})
	if err != nil {
		var none T
		return none, err
	}
	return <-result, nil
}

// tellServer puts into the log what the server behind a disk has done: that it is gone, with nil
// that it is back, and of a loss.
func tellServer(log *slog.Logger, err error) {
	var lost *nbd.LostError
	switch {
	case errors.As(err, &lost) && lost.Split:
		log.Error("the disk's server shows another disk by each connection", "error", err)
	case errors.As(err, &lost) && lost.Perhaps:
		log.Warn("the disk's server may have lost writes", "error", err)
	case errors.As(err, &lost):
		log.Error("the disk's server has lost writes", "error", err)
	case err != nil:
		log.Warn("the disk's server is gone", "error", err)
	default:
		log.Info("the disk's server is back")
	}
}
