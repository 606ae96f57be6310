package vhostusertest_test

import (
	"errors"
	"testing"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

func TestABackEndThatHasHungUpIsToldOf(t *testing.T) {
	header := vhostuser.Header{Request: uint32(vhostuser.GetFeatures), Flags: vhostuser.FlagVersion | vhostuser.FlagReply, Size: 8}.Append(nil)
	for _, tt := range []struct {
		name    string
		asked   bool   // before it hangs up, and it has not read that: ECONNRESET
		answers []byte // before it hangs up
		then    func(f *vhostusertest.Frontend) error
		want    string
	}{
		{name: "EPIPE", then: func(f *vhostusertest.Frontend) error { return f.Barrier() }, want: "GET_FEATURES: the back-end has hung up"},
		{name: "EOF", then: received, want: "the back-end has hung up"},
		{name: "in a header", answers: header[:5], then: received, want: "the back-end has hung up"},
		{name: "before a payload", answers: header, then: received, want: "the back-end has hung up"},
		{name: "in a payload", answers: append(header[:len(header):len(header)], 1, 2), then: received, want: "the back-end has hung up"},
		{name: "ECONNRESET", asked: true, then: received, want: "the back-end has hung up"},
		{name: "ring", then: started, want: "SET_VRING_ERR: the back-end has hung up"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, back, err := vhostusertest.Pair()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if tt.asked {
				if err := f.Request(vhostuser.GetFeatures, 0, nil); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := back.Write(tt.answers); err != nil {
				t.Fatal(err)
			}
			back.Close()
			if err := tt.then(f); !errors.Is(err, vhostusertest.ErrHungUp) || err.Error() != tt.want {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func received(f *vhostusertest.Frontend) error {
	_, _, err := f.Receive()
	return err
}

func started(f *vhostusertest.Frontend) error {
	m, err := virtqtest.NewMem(virtqtest.Range{Size: 1 << 20})
	if err != nil {
		return err
	}
	defer m.Close()
	r, err := f.NewRing(m, 0, 4)
	if err != nil {
		return err
	}
	defer r.Close()
	return r.Start()
}
