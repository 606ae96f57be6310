package vhostuser

import (
	"errors"

	"vdev/virtq"
)

// Device is a device model behind a Backend. A Backend calls all methods but Process on one
// goroutine, that of the connection, one at a time. The front-end's main loop stands still
// meanwhile, so none of them waits for storage, but for StopDevice, StopQueue and PauseQueue. A
// Device that needs few of them embeds BaseDevice.
type Device interface {
	// Features returns the virtio feature bits that the device offers, those of its rings included
	// (virtq.FeatureVersion1, ...). Bits that are vhost-user's own are not its business.
	Features() uint64
	// NumQueues returns the number of virtqueues, 1 to 256. It does not change.
	NumQueues() int
	// ConfigSize returns the size of the configuration space in bytes, at most MaxConfigSize. It
	// does not change. With 0, VHOST_USER_PROTOCOL_F_CONFIG is not offered.
	ConfigSize() int
	// ReadConfig fills p, which has ConfigSize bytes, with the configuration space, little-endian.
	ReadConfig(p []byte)
	// WriteConfig changes the configuration space from byte off on (SET_CONFIG). off and p lie
	// within it. An error refuses the change, as it must for read-only fields.
	WriteConfig(off int, p []byte) error

	// SessionBegin says that a session begins: a front-end has connected, or begins anew on its
	// connection (SET_OWNER). It comes before all else of the session.
	SessionBegin()
	// SetFeatures tells the features that were negotiated, a subset of Features. No ring runs. It
	// comes again for each negotiation: firmware, boot loader and kernel have one each.
	SetFeatures(features uint64)
	// StartQueue hands over a ring that is started and enabled. After it, Process may be called. An
	// error breaks the ring.
	StartQueue(q *Queue) error
	// Process takes chains from q, at most a budget of its own, and starts or does the requests. It
	// is called on the reactor of q when there may be chains, and again soon if it returned true,
	// or popped any. A Process that leaves chains in the ring on purpose returns false before Pop
	// has returned false. It is called again after Queue.Wake, after a Push, or at the next kick.
	// It must not block.
	Process(q *Queue) (more bool)
	// PauseQueue is called when q was disabled with requests in flight or suspended. Process is not
	// called any more, until ResumeQueue. When PauseQueue returns, nothing of those requests uses
	// guest memory any more: each one was pushed, or is suspended until ResumeQueue, StopQueue or
	// StopDevice. It may wait until how.Deadline, and the front-end waits as long. (Some front-ends
	// pause or reset a device by this alone.) The Backend then publishes what was pushed, and
	// signals it. PauseQueue is not called where the front-end takes the in-flight region along
	// (GET_VRING_BASE_INFLIGHT): the stop that follows cancels at once, and must not be held up.
	PauseQueue(q *Queue, how Stop)
	// ResumeQueue is called when q, which was disabled, is enabled again. Process may be called
	// from then on.
	ResumeQueue(q *Queue)
	// StopDevice ends what StartQueue began, for all rings that run. It is called once for a stop
	// of the device: at the first GET_VRING_BASE when no other ring is enabled, at RESET_DEVICE,
	// and at the end of the session. When it is called, Process is not called any more. When it
	// returns, every chain that was popped has been pushed, suspended or unpopped. It may wait
	// until how.Deadline, and then for what was cancelled, within the device's own bound. The
	// front-end waits as long, unless it has gone (how.Context). The Backend then publishes what
	// was pushed, signals it, and touches the rings no more. rings has at least one ring, in the
	// order of the index, and is the callee's.
	StopDevice(rings []*Queue, how Stop)
	// StopQueue is StopDevice for one ring, while others go on.
	StopQueue(q *Queue, how Stop)
	// SessionEnd says that the session is over, by a disconnect or a new SET_OWNER. All rings have
	// stopped.
	SessionEnd()
}

// ConfigWatcher is a Device that wants to know which part of its configuration space a front-end
// has read.
type ConfigWatcher interface {
	Device
	// ConfigRead says that n bytes from off on are in the answer that is being made to GET_CONFIG,
	// as ReadConfig has just given them.
	ConfigRead(off, n int)
}

// BaseDevice is a Device without Process: one queue, the features of virtq, no configuration space,
// and nothing to do in its life. Embed it, and define what is different.
type BaseDevice struct{}

// Features returns VIRTIO_F_VERSION_1 and the features of split rings that virtq has.
func (BaseDevice) Features() uint64 {
	return virtq.FeatureVersion1 | virtq.FeatureIndirectDesc | virtq.FeatureEventIdx
}

// NumQueues returns 1.
func (BaseDevice) NumQueues() int { return 1 }

// ConfigSize returns 0.
func (BaseDevice) ConfigSize() int { return 0 }

// ReadConfig does nothing.
func (BaseDevice) ReadConfig([]byte) {}

var errReadOnlyConfig = errors.New("the configuration space is read-only")

// WriteConfig refuses.
func (BaseDevice) WriteConfig(int, []byte) error { return errReadOnlyConfig }

// SessionBegin does nothing.
func (BaseDevice) SessionBegin() {}

// SetFeatures does nothing.
func (BaseDevice) SetFeatures(uint64) {}

// StartQueue does nothing.
func (BaseDevice) StartQueue(*Queue) error { return nil }

// PauseQueue does nothing: it is for devices whose Process pushes every chain it pops, or whose
// chains wait for input.
func (BaseDevice) PauseQueue(*Queue, Stop) {}

// ResumeQueue does nothing.
func (BaseDevice) ResumeQueue(*Queue) {}

// StopDevice does nothing: it is for devices whose Process pushes every chain it pops.
func (BaseDevice) StopDevice([]*Queue, Stop) {}

// StopQueue does nothing, as StopDevice.
func (BaseDevice) StopQueue(*Queue, Stop) {}

// SessionEnd does nothing.
func (BaseDevice) SessionEnd() {}
