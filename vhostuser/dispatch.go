package vhostuser

import (
	"errors"

	"vdev/internal/sys"
)

// spec is what a front-end message must look like, and what is done with it.
type spec struct {
	request        Request
	payload        payload
	minFDs, maxFDs int
	feature        ProtocolFeatures // must have been negotiated; 0 for none
	replies        bool             // has a reply of its own, and so is never acknowledged
	reply          payload          // the form of that reply
	// handle does it, and returns the reply's payload if there is one. It takes the descriptors it
	// keeps; the others are closed after it.
	handle func(*session, *message) ([]byte, error)
}

// specs has every message that is served. The order of the checks is: feature, size, descriptors;
// the rest is the handler's.
//
// GET_QUEUE_NUM is not bound to MQ: the specification asks only that MQ was offered, as it is but
// where the Config declines it. SET_BACKEND_REQ_FD is not bound to bit 30 of SET_FEATURES, which
// comes later.
var specs = [...]spec{
	{request: GetFeatures, replies: true, reply: payloadU64, handle: (*session).getFeatures},
	{request: SetFeatures, payload: payloadU64, handle: (*session).setFeatures},
	{request: GetProtocolFeatures, replies: true, reply: payloadU64, handle: (*session).getProtocolFeatures},
	{request: SetProtocolFeatures, payload: payloadU64, handle: (*session).setProtocolFeatures},
	{request: SetOwner, handle: (*session).setOwner},
	{request: ResetOwner, handle: (*session).resetOwner},
	{request: GetQueueNum, replies: true, reply: payloadU64, handle: (*session).getQueueNum},
	{request: SetMemTable, payload: payloadTable, minFDs: 1, maxFDs: maxTableRegions, handle: (*session).setMemTable},
	{request: GetMaxMemSlots, feature: ProtocolConfigureMemSlots, replies: true, reply: payloadU64,
		handle: (*session).getMaxMemSlots},
	{request: AddMemReg, payload: payloadRegion, minFDs: 1, maxFDs: 1, feature: ProtocolConfigureMemSlots,
		handle: (*session).addMemReg},
	// A descriptor that comes with REM_MEM_REG is closed unused ("for compatibility with existing
	// incorrect implementations").
	{request: RemMemReg, payload: payloadRegion, maxFDs: 1, feature: ProtocolConfigureMemSlots,
		handle: (*session).remMemReg},
	{request: SetVringNum, payload: payloadState, handle: (*session).setVringNum},
	{request: SetVringAddr, payload: payloadAddr, handle: (*session).setVringAddr},
	{request: SetVringBase, payload: payloadState, handle: (*session).setVringBase},
	{request: GetVringBase, payload: payloadState, replies: true, reply: payloadState, handle: (*session).getVringBase},
	{request: SetVringKick, payload: payloadVringFD, maxFDs: 1, handle: (*session).setVringKick},
	{request: SetVringCall, payload: payloadVringFD, maxFDs: 1, handle: (*session).setVringCall},
	{request: SetVringErr, payload: payloadVringFD, maxFDs: 1, handle: (*session).setVringErr},
	{request: SetVringEnable, payload: payloadState, handle: (*session).setVringEnable},
	{request: SetBackendReqFD, minFDs: 1, maxFDs: 1, feature: ProtocolBackendReq, handle: (*session).setBackendReqFD},
	{request: GetConfig, payload: payloadConfig, feature: ProtocolConfig, replies: true, reply: payloadConfig,
		handle: (*session).getConfig},
	{request: SetConfig, payload: payloadConfig, feature: ProtocolConfig, handle: (*session).setConfig},
	{request: SetLogBase, payload: payloadLog, minFDs: 1, maxFDs: 1, feature: ProtocolLogSHMFD, replies: true, reply: payloadU64,
		handle: (*session).setLogBase},
	{request: SetLogFD, minFDs: 1, maxFDs: 1, handle: (*session).setLogFD},
	{request: GetInflightFD, payload: payloadInflight, feature: ProtocolInflightSHMFD, replies: true, reply: payloadInflight,
		handle: (*session).getInflightFD},
	{request: SetInflightFD, payload: payloadInflight, minFDs: 1, maxFDs: 1, feature: ProtocolInflightSHMFD,
		handle: (*session).setInflightFD},
	{request: SetStatus, payload: payloadU64, feature: ProtocolStatus, handle: (*session).setStatus},
	{request: GetStatus, feature: ProtocolStatus, replies: true, reply: payloadU64, handle: (*session).getStatus},
	{request: ResetDevice, feature: ProtocolResetDevice, handle: (*session).resetDevice},
}

// specByRequest finds a spec; nil for a message that is not served.
var specByRequest [64]*spec

func init() {
	for i := range specs {
		specByRequest[specs[i].request] = &specs[i]
	}
}

func findSpec(r Request) *spec {
	if uint64(r) >= uint64(len(specByRequest)) {
		return nil
	}
	return specByRequest[r]
}

var (
	errUnknown    = errors.New("message is not supported")
	errNegotiated = errors.New("protocol feature was not negotiated")
)

// check tells what is wrong with the form of m.
func (sp *spec) check(negotiated ProtocolFeatures, m *message) error {
	if negotiated&sp.feature != sp.feature {
		return errNegotiated
	}
	least, greatest := sp.payload.size()
	if size := uint32(len(m.payload)); size < least || size > greatest {
		if least == greatest {
			return field("size", uint64(size), "%d", least)
		}
		return field("size", uint64(size), "%d to %d", least, greatest)
	}
	if n := len(m.fds); n < sp.minFDs || n > sp.maxFDs {
		if sp.minFDs == sp.maxFDs {
			return field("fds", uint64(n), "%d", sp.minFDs)
		}
		return field("fds", uint64(n), "%d to %d", sp.minFDs, sp.maxFDs)
	}
	return nil
}

// dispatch handles m and answers it. An error ends the connection. A refused message does so unless
//
//   - the front-end asked for an acknowledgement (NEED_REPLY with REPLY_ACK), which then says so;
//   - it is GET_CONFIG, whose reply without a payload says so;
//   - it is a *RingError: what the guest chose badly breaks its ring, and not the device.
func (s *session) dispatch(m *message) error {
	sp := findSpec(m.req)
	s.traceIn(sp, m)
	handled := s.handling(m.req)
	// REPLY_ACK as the front-end knew it when it sent the message.
	ack := m.flags&FlagNeedReply != 0 && s.protocol&ProtocolReplyAck != 0
	if s.homeless && !m.req.aboutMemory() {
		s.breakHomeless()
	}
	var reply []byte
	err := errUnknown
	if sp != nil {
		if err = sp.check(s.protocol, m); err == nil {
			reply, err = sp.handle(s, m)
		}
	}
	// Before the answer: who has that finds what it says.
	handled()
	if s.ctx.Err() != nil {
		// The session has failed meanwhile, or is to end: the answer may no longer be true.
		return nil
	}
	if err != nil {
		err = &ProtocolError{m.req, err}
		s.b.event(Event{Kind: EventFail, Ring: -1, Message: m.req.String(), Err: err})
	}
	switch {
	case sp != nil && sp.replies && (err == nil || m.req == GetConfig):
		return s.reply(m.req, sp.reply, reply, m.reply)
	case ack && (sp == nil || !sp.replies):
		code := uint64(0)
		if err != nil {
			code = 1
		}
		return s.reply(m.req, payloadU64, AppendU64(nil, code), nil)
	}
	if ring := (*RingError)(nil); errors.As(err, &ring) {
		return nil
	}
	return err
}

func (s *session) reply(req Request, form payload, b []byte, fd *sys.FD) error {
	if s.b.trace != nil {
		ring, fields := form.describe(b)
		if fd != nil {
			fields = append(fields, Field{"fds", 1})
		}
		s.b.event(Event{Kind: EventOut, Ring: ring, Message: req.String(), Fields: fields})
	}
	return s.c.reply(req, b, fd)
}

func (s *session) traceIn(sp *spec, m *message) {
	if s.b.trace == nil {
		return
	}
	form := payloadNone
	if sp != nil {
		form = sp.payload
	}
	ring, fields := form.describe(m.payload)
	if m.flags&FlagNeedReply != 0 {
		fields = append(fields, Field{"need_reply", true})
	}
	if len(m.fds) > 0 {
		fields = append(fields, Field{"fds", len(m.fds)})
	}
	s.b.event(Event{Kind: EventIn, Ring: ring, Message: m.req.String(), Fields: fields})
}

// closeFD closes *f, if it is there, and forgets it.
func closeFD(f **sys.FD) {
	if *f != nil {
		(*f).Close()
		*f = nil
	}
}
