package vhostuser_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// entropy is a virtio entropy device (virtio 1.2, section 5.4): it fills the buffers it is given.
type entropy struct {
	vhostuser.BaseDevice
	chain virtq.Chain
	bytes [4096]byte
}

func (e *entropy) Process(q *vhostuser.Queue) (more bool) {
	// Some bytes of some requests at a time: other rings of the reactor wait meanwhile.
	for range 16 {
		if !q.Pop(&e.chain) {
			return false
		}
		some := e.bytes[:min(len(e.bytes), e.chain.WritableLen())]
		rand.Read(some)
		n, _ := e.chain.Write(some)
		q.Push(&e.chain, uint32(n))
	}
	return true
}

// A whole back-end: qemu-system-x86_64 -chardev socket,id=rng,path=... -device
// vhost-user-rng-pci,chardev=rng, with shared memory.
func Example() {
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer reactors.Close()
	backend, err := vhostuser.New(vhostuser.Config{Device: new(entropy), Reactors: reactors})
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "vhostuser")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "rng.sock")
	listener, err := vhostuser.Listen(path)
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		guest(path)
	}()
	if err := backend.Serve(ctx, listener); err != nil {
		log.Fatal(err)
	}
	// Output: 16 random bytes
}

// guest is what QEMU and a guest do.
func guest(path string) {
	must := func(err error) {
		if err != nil {
			log.Fatal(err)
		}
	}
	front, err := vhostusertest.Dial(path)
	must(err)
	defer front.Close()
	features, err := front.Handshake(vhostusertest.AllProtocolFeatures)
	must(err)
	must(front.SetFeatures(features))
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: 1 << 20})
	must(err)
	defer mem.Close()
	must(front.AddMemory(mem))
	ring, err := front.NewRing(mem, 0, 16)
	must(err)
	defer ring.Close()
	must(ring.Start())
	buf := virtqtest.Seg{Addr: mem.Alloc(16, 1), Len: 16}
	n, err := ring.Do(nil, []virtqtest.Seg{buf})
	must(err)
	if bytes := mem.Bytes(buf.Addr, 16); string(bytes) != string(make([]byte, 16)) {
		fmt.Println(n, "random bytes")
	}
	must(ring.Stop())
}
