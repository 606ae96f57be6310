package vhostuser_test

import (
	"testing"

	"vdev/vhostuser"
)

// TestWhatIsDeclinedCannotBeNegotiated: it is not offered, nor is what needs it, a front-end that
// sets it all the same is refused, and so are the messages that belong to it. All else is as ever,
// and the device is served.
func TestWhatIsDeclinedCannotBeNegotiated(t *testing.T) {
	for name, c := range map[string]struct {
		decline, gone vhostuser.ProtocolFeatures
		noLog         bool
		message       vhostuser.Request // one that is refused then, with this payload
		payload       []byte
	}{
		"nothing": {},
		"INFLIGHT_SHMFD": {
			decline: vhostuser.ProtocolInflightSHMFD,
			gone:    vhostuser.ProtocolInflightSHMFD | vhostuser.ProtocolGetVringBaseInflight,
			message: vhostuser.GetInflightFD,
			payload: vhostuser.Inflight{NumQueues: 1, QueueSize: 8}.Append(nil),
		},
		"GET_VRING_BASE_INFLIGHT": {
			decline: vhostuser.ProtocolGetVringBaseInflight,
			gone:    vhostuser.ProtocolGetVringBaseInflight,
		},
		"CONFIG": {
			decline: vhostuser.ProtocolConfig, gone: vhostuser.ProtocolConfig,
			message: vhostuser.SetConfig, payload: vhostuser.ConfigSpace{Data: []byte{1}}.Append(nil),
		},
		"RESET_DEVICE": {
			decline: vhostuser.ProtocolResetDevice, gone: vhostuser.ProtocolResetDevice, message: vhostuser.ResetDevice,
		},
		"BACKEND_REQ": {
			decline: vhostuser.ProtocolBackendReq,
			gone:    vhostuser.ProtocolBackendReq | vhostuser.ProtocolBackendSendFD,
		},
		"LOG_SHMFD": {decline: vhostuser.ProtocolLogSHMFD, gone: vhostuser.ProtocolLogSHMFD, noLog: true},
		"STATUS and REPLY_ACK": {
			decline: vhostuser.ProtocolStatus | vhostuser.ProtocolReplyAck,
			gone:    vhostuser.ProtocolStatus | vhostuser.ProtocolReplyAck,
			message: vhostuser.SetStatus, payload: vhostuser.AppendU64(nil, 1),
		},
	} {
		t.Run(name, func(t *testing.T) {
			plain := newRig(t, newReverser(1))
			want, err := plain.GetProtocolFeatures()
			plain.must(err)
			features, err := plain.GetFeatures()
			plain.must(err)
			plain.must(plain.hangUp())

			g := newRigConfig(t, newReverser(1), vhostuser.Config{Decline: c.decline})
			got, err := g.GetProtocolFeatures()
			g.must(err)
			if want &^= c.gone; got != want {
				t.Errorf("offered: %v, want %v", got.Names(), want.Names())
			}
			if c.noLog {
				features &^= vhostuser.FLogAll
			}
			if got, err := g.GetFeatures(); err != nil || got != features {
				t.Errorf("features %#x, want %#x, %v", got, features, err)
			}
			g.handshake()
			g.io(g.start(0, 8), 3)
			if c.message != 0 {
				g.must(g.Request(c.message, 0, c.payload))
				wantProtocolError(t, g.wait(), c.message, "protocol feature was not negotiated")
			}
			if c.decline != 0 {
				_ = g.hangUp()
				g.connect()
				g.must(g.Request(vhostuser.SetProtocolFeatures, 0, vhostuser.AppendU64(nil, uint64(want|c.decline))))
				wantProtocolError(t, g.wait(), vhostuser.SetProtocolFeatures, "protocol features")
			}
		})
	}
}
