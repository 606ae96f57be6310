// Command rng is a virtio entropy device (virtio 1.3, section 5.4) on vdev's public packages, in a
// Go module of its own: what a project that is not vdev needs to write a vhost-user device. It
// serves one guest after the other:
//
//	rng /run/rng.sock
//	qemu-system-x86_64 ... -chardev socket,id=rng,path=/run/rng.sock \
//	    -device vhost-user-rng-pci,chardev=rng
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"vdev/vhostuser"
	"vdev/virtq"
)

// rng is the device. What it does not define, one queue and no configuration space, is
// BaseDevice's.
type rng struct {
	vhostuser.BaseDevice
	chain virtq.Chain
	bytes [4096]byte
}

// Process fills the buffers that the guest offers, some at a time, so that other queues of the
// reactor have their turn. A guest takes fewer bytes than it asked for.
func (r *rng) Process(q *vhostuser.Queue) (more bool) {
	for range 16 {
		if !q.Pop(&r.chain) {
			return false
		}
		some := r.bytes[:min(len(r.bytes), r.chain.WritableLen())]
		_, _ = rand.Read(some) // never fails
		n, _ := r.chain.Write(some)
		q.Push(&r.chain, uint32(n))
	}
	return true
}

func serve(ctx context.Context, path string) error {
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{})
	if err != nil {
		return err
	}
	defer reactors.Close()
	backend, err := vhostuser.New(vhostuser.Config{
		Device: &rng{}, Reactors: reactors,
		// Process answers each request before it takes the next one.
		Decline: vhostuser.ProtocolInflightSHMFD,
	})
	if err != nil {
		return err
	}
	listener, err := vhostuser.Listen(path)
	if err != nil {
		return err
	}
	return backend.Serve(ctx, listener)
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: rng SOCKET")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "rng:", err)
		os.Exit(1)
	}
}
