package vhostuser

// decision is how the requests of one ring end in a stop.
type decision struct {
	wait    bool // they may complete, for Config.CancelAfter; otherwise they are cancelled at once
	revoke  bool // the device is revoked, and not closed: nobody waits for it
	suspend bool // what comes back cancelled is suspended; otherwise it completes with an error
}

// policy decides about the requests of a ring that is stopped or disabled.
//
// region says that the ring has a part in an in-flight region. travels says that the front-end
// negotiated GET_VRING_BASE_INFLIGHT, and so takes the region wherever the guest goes. migratable
// says that the guest can be saved, or go to another host, at all. hungUp says that the front-end
// has gone. It may go while the Device waits, so what is decided after a wait is asked for anew.
//
// The specification wants requests completed when GET_VRING_BASE is answered. What is suspended
// instead must reach whoever serves the ring next: either the region travels, or the guest stays
// here and its front-end brings the region again. RESET_DEVICE drops the region, and the guest has
// forgotten what is in it.
func policy(reason StopReason, region, travels, migratable, hungUp bool) decision {
	switch reason {
	case StopReset:
		return decision{revoke: true}
	case StopDisconnect:
		return decision{revoke: true, suspend: region}
	}
	travels = travels && region
	return decision{
		wait:    !travels && !hungUp,
		suspend: region && (travels || !migratable || hungUp),
	}
}
