package virtq

import (
	"errors"
	"fmt"
)

// Reason is what broke a ring.
type Reason string

// The reasons of a BrokenError. Section numbers are those of virtio 1.2.
const (
	// ReasonAvailIndex: avail.idx is further ahead than the queue has descriptors (2.7.13.3).
	ReasonAvailIndex Reason = "available index jumped"
	// ReasonHeadRange: an entry of the available ring is no index into the descriptor table.
	ReasonHeadRange Reason = "head out of range"
	// ReasonHeadInFlight: a head was made available again before it was used.
	ReasonHeadInFlight Reason = "head is in flight already"
	// ReasonNextRange: a descriptor's next is no index into its table.
	ReasonNextRange Reason = "next out of range"
	// ReasonChainLength: a chain has more descriptors than are allowed, as one with a loop has
	// (2.7.5.3.1).
	ReasonChainLength Reason = "chain too long or looped"
	// ReasonChainBytes: a chain has more than 2^32 bytes (2.7.5.2).
	ReasonChainBytes Reason = "chain of more than 2^32 bytes"
	// ReasonDirection: a device-readable descriptor follows a device-writable one (2.7.4.2).
	ReasonDirection Reason = "readable buffer after a writable one"
	// ReasonAddress: a buffer or an indirect table is not in the guest's memory.
	ReasonAddress Reason = "address not in guest memory"
	// ReasonIndirectFeature: an indirect descriptor without VIRTIO_F_INDIRECT_DESC (2.7.5.3.1).
	ReasonIndirectFeature Reason = "indirect descriptor not negotiated"
	// ReasonIndirectNested: an indirect descriptor inside an indirect table (2.7.5.3.1).
	ReasonIndirectNested Reason = "indirect descriptor in an indirect table"
	// ReasonIndirectNext: both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT (2.7.5.3.1).
	ReasonIndirectNext Reason = "indirect descriptor with next"
	// ReasonIndirectLength: an indirect table of length 0, or not of whole descriptors.
	ReasonIndirectLength Reason = "indirect table of bad length"
	// ReasonRingMemory: after a change of the guest's memory the ring is no longer in it.
	ReasonRingMemory Reason = "ring not in guest memory"
	// ReasonLog: what is written has no place in the dirty log, so that a migration would lose it.
	ReasonLog Reason = "not covered by the dirty log"
	// ReasonDevice: the device model, or the code that owns the Queue, gave the ring up (Break).
	ReasonDevice Reason = "given up by the device"
)

// BrokenError says why a ring is broken. It is made once for a ring, and returned from then on.
type BrokenError struct {
	Reason Reason // what was wrong
	Detail string // the numbers: indices, addresses, lengths; may be empty
	Err    error  // the cause, where there is one beneath
}

// Error gives the reason, and the details and the cause where there are some.
func (e *BrokenError) Error() string {
	s := "virtq: ring broken: " + string(e.Reason)
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause, nil for none.
func (e *BrokenError) Unwrap() error { return e.Err }

// ErrClosed is what a closed Queue returns.
var ErrClosed = errors.New("virtq: queue is closed")

// ConfigError says which part of a Config was refused.
type ConfigError struct {
	Field string // as in Config
	Value uint64 // what is wrong with it: its own value, or that of a number in it
	Err   error  // ErrSize, ErrAlign, ErrMemory or ErrFeature; ErrInflight is wrapped
}

// Error names the field, the value and what is wrong with it.
func (e *ConfigError) Error() string {
	return fmt.Sprintf("virtq: %s %#x: %v", e.Field, e.Value, e.Err)
}

// Unwrap returns Err.
func (e *ConfigError) Unwrap() error { return e.Err }

// What a ConfigError can hold.
var (
	ErrSize    = errors.New("not a power of two from 1 to 32768")
	ErrAlign   = errors.New("misaligned")
	ErrMemory  = errors.New("not in one region of guest memory")
	ErrFeature = errors.New("feature not supported")
)
