package serve

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"time"

	"vdev/devsw"
	"vdev/internal/control"
	"vdev/specfs"
	"vdev/vhostuser"
)

// What a device's state is called beside what its Model says.
const (
	stateOpen    = "open"
	stateOpening = "opening"
	stateFailed  = "failed"
	stateRevoked = "revoked"
)

// Status implements control.Target.
func (d *Device) Status(ctx context.Context) control.Status {
	c := &d.config
	st := control.Status{
		Name: c.Name, PID: os.Getpid(), Version: d.host.Version, Seconds: time.Since(d.host.Start).Seconds(),
		LogLevel: d.host.Process.LogLevel(), Socket: "none", AIO: string(d.host.reactors.Mode()),
		Migratable: c.Migratable, CancelAfter: c.CancelAfter.Seconds(), Rings: []control.Ring{}, Devices: []control.Device{},
	}
	if s := d.up.Load(); s != nil {
		if s.there.Load() { // whoever is told can connect
			st.Socket = c.Socket
		}
		s.status(ctx, &st)
		return st
	}
	in, err := d.notServed()
	st.State, st.Error = stateOpening, err.Error()
	if !errors.Is(err, errSilent) {
		st.State, st.RetryIn = stateFailed, &in
	}
	c.Kind.Describe(&st)
	return st
}

// status adds what is known of a device that is served.
func (s *stack) status(ctx context.Context, st *control.Status) {
	// First: what is told to hang here was fetched from a ring before.
	if m, ok := s.model.(control.Faulty); ok {
		if f, err := m.Faults(); err == nil {
			st.Faults = &f
		}
	}
	model := make(chan func(*control.Status), 1)
	go func() { model <- s.model.Status() }()
	vs := s.backend.Status(ctx)
	st.Waiting = vs.Waiting
	if f := vs.FrontEnd; f != nil {
		st.FrontEnd = frontEnd(f, s.model.FeatureNames())
		for _, r := range f.Rings {
			st.Rings = append(st.Rings, ring(r))
		}
	}
	// It bounds its own wait for the event loops.
	add := <-model
	add(st)
	for _, d := range s.fs.Devices() {
		st.Devices = append(st.Devices, s.deviceStatus(d))
	}
	if st.State == stateOpen && len(s.open()) == 0 {
		st.State = stateRevoked // the rings run, and their requests fail
	}
}

func frontEnd(f *vhostuser.FrontEndStatus, features map[int]string) *control.FrontEnd {
	to := &control.FrontEnd{
		PID: f.PID, UID: f.UID, Seconds: since(f.Since), Features: named(f.Features, features, featureNames),
		Protocol:     control.Bits{Value: fmt.Sprintf("%#x", uint64(f.Protocol)), Names: append([]string{}, f.Protocol.Names()...)},
		DeviceStatus: named(uint64(f.Device), statusNames),
		Regions:      f.Regions, Memory: f.Memory, Inflight: f.Inflight,
	}
	if f.Message != "" {
		to.WaitsFor, to.WaitSeconds = f.Message, since(f.MessageAt)
	}
	return to
}

func ring(r vhostuser.RingStatus) control.Ring {
	to := control.Ring{Index: r.Index, State: string(r.State), Size: r.Size}
	if r.State == vhostuser.RingStopping {
		to.Why = r.Why.String()
	}
	if r.Err != nil {
		to.Error = r.Err.Error()
	}
	to.Resubmitted, to.Suspended = r.Resubmitted, r.Suspended
	if r.Known {
		to.Answered, to.Next, to.Used, to.Pending, to.InFlight = true, r.Next, r.Used, r.Pending, r.InFlight
	}
	return to
}

func (s *stack) deviceStatus(d specfs.DeviceStatus) control.Device {
	to := control.Device{Device: specfsName(d.Mode, d.Dev), Opens: d.Opens, Opening: d.Opening, Closing: d.Closing}
	if d.Mode == devsw.IFBLK {
		to.Driver = s.table.BdevswGetname(int(d.Dev.Major()))
	} else {
		to.Driver = s.table.CdevswGetname(int(d.Dev.Major()))
	}
	for _, o := range d.Operations {
		to.InProgress = append(to.InProgress, control.Operation{What: o.What, Count: o.Count, Seconds: since(o.Since)})
	}
	return to
}

// since gives the age of something in seconds, 0 where its time is not known.
func since(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return time.Since(t).Seconds()
}

// featureNames are the feature bits of rings and transports (virtio 1.3, section 6), and vhost's
// own, without their prefixes. Bits 0 to 23 and from 50 on are the device's own.
var featureNames = map[int]string{
	24: "NOTIFY_ON_EMPTY", 26: "LOG_ALL", 27: "ANY_LAYOUT", 28: "INDIRECT_DESC", 29: "EVENT_IDX", 30: "PROTOCOL_FEATURES",
	32: "VERSION_1", 33: "ACCESS_PLATFORM", 34: "RING_PACKED", 35: "IN_ORDER", 36: "ORDER_PLATFORM", 37: "SR_IOV",
	38: "NOTIFICATION_DATA", 39: "NOTIF_CONFIG_DATA", 40: "RING_RESET",
}

// statusNames are the bits of the device status (virtio 1.3, section 2.1).
var statusNames = map[int]string{
	0: "ACKNOWLEDGE", 1: "DRIVER", 2: "DRIVER_OK", 3: "FEATURES_OK", 6: "DEVICE_NEEDS_RESET", 7: "FAILED",
}

// named gives the bits of v that are set by the names that one of these has for them.
func named(v uint64, names ...map[int]string) control.Bits {
	b := control.Bits{Value: fmt.Sprintf("%#x", v), Names: []string{}}
	for rest := v; rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros64(rest)
		name := fmt.Sprintf("bit %d", bit)
		for _, n := range names {
			if n[bit] != "" {
				name = n[bit]
			}
		}
		b.Names = append(b.Names, name)
	}
	return b
}
