package vhostusertest

import (
	"errors"
	"fmt"
	"io"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
)

// Inflight is an in-flight region as a front-end keeps it, beyond the end of a back-end and of its
// connection.
type Inflight struct {
	vhostuser.Inflight
	fd *sys.FD
}

// NewInflight takes over fd, the file of a region that d describes.
func NewInflight(d vhostuser.Inflight, fd *sys.FD) *Inflight { return &Inflight{d, fd} }

// FD returns the region's file, which stays the Inflight's.
func (i *Inflight) FD() int { return i.fd.Int() }

// Close closes the region's file.
func (i *Inflight) Close() { i.fd.Close() }

// GetInflightFD asks for a new in-flight region for queues of size descriptors each. The caller
// closes it.
func (f *Frontend) GetInflightFD(queues, size int) (*Inflight, error) {
	ask := vhostuser.Inflight{NumQueues: uint16(queues), QueueSize: uint16(size)}
	if err := f.Request(vhostuser.GetInflightFD, 0, ask.Append(nil)); err != nil {
		return nil, fmt.Errorf("%v: %w", vhostuser.GetInflightFD, err)
	}
	p, fds, err := f.receiveFDs(vhostuser.GetInflightFD)
	if err != nil {
		return nil, err
	}
	d, err := vhostuser.ParseInflight(p)
	if err == nil && len(fds) != 1 {
		err = fmt.Errorf("%d descriptors", len(fds))
	}
	if err != nil {
		sys.CloseAll(fds)
		return nil, fmt.Errorf("%v: reply: %w", vhostuser.GetInflightFD, err)
	}
	return NewInflight(d, fds[0]), nil
}

// SetInflightFD gives the back-end a region, before the rings are started.
func (f *Frontend) SetInflightFD(i *Inflight) error {
	return f.Tell(vhostuser.SetInflightFD, i.Append(nil), i.FD())
}

// NewInflight asks for a new region and gives it to the back-end, as QEMU does at the first start
// after a reset.
func (f *Frontend) NewInflight(queues, size int) (*Inflight, error) {
	i, err := f.GetInflightFD(queues, size)
	if err != nil {
		return nil, err
	}
	if err := f.SetInflightFD(i); err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

// receiveFDs reads the reply to req, and the descriptors that come with it, which are the caller's.
func (f *Frontend) receiveFDs(req vhostuser.Request) (payload []byte, fds []*sys.FD, err error) {
	f.conn.SetReadDeadline(time.Now().Add(Timeout))
	b, oob := make([]byte, vhostuser.HeaderSize), make([]byte, sys.RightsSpace(sys.MaxRights))
	n, oobn, _, _, err := f.conn.ReadMsgUnix(b, oob)
	if err == nil {
		fds, err = sys.ParseRights(oob[:oobn])
	}
	if err == nil {
		_, err = io.ReadFull(f.conn, b[n:])
	}
	h := vhostuser.ParseHeader(b)
	if want := vhostuser.FlagVersion | vhostuser.FlagReply; err == nil && (h.Request != uint32(req) || h.Flags != want) {
		err = fmt.Errorf("answered by %v, flags %#x", vhostuser.Request(h.Request), h.Flags)
	}
	if err == nil && h.Size > 1<<16 {
		err = errors.New("message too long")
	}
	if err == nil {
		payload = make([]byte, h.Size)
		_, err = io.ReadFull(f.conn, payload)
	}
	if err != nil {
		sys.CloseAll(fds)
		return nil, nil, fmt.Errorf("%v: %w", req, err)
	}
	return payload, fds, nil
}
