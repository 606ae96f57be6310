package main

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dial connects as soon as the socket is there.
func dial(t *testing.T, path string, served <-chan error) *vhostusertest.Frontend {
	t.Helper()
	for range time.Tick(time.Millisecond) {
		f, err := vhostusertest.Dial(path)
		if err == nil {
			return f
		}
		select {
		case err := <-served:
			t.Fatalf("serve has ended: %v", err)
		default:
		}
	}
	return nil
}

func TestGuestGetsRandomBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rng.sock")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, path) }()

	f := dial(t, path, served)
	defer f.Close()
	if _, err := f.Handshake(vhostusertest.AllProtocolFeatures); err != nil {
		t.Fatal(err)
	}
	if err := f.SetFeatures(virtq.FeatureVersion1 | vhostuser.FProtocolFeatures); err != nil {
		t.Fatal(err)
	}
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if err := f.AddMemory(mem); err != nil {
		t.Fatal(err)
	}
	ring, err := f.NewRing(mem, 0, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	if err := ring.Start(); err != nil {
		t.Fatal(err)
	}

	// A large buffer gets some of the bytes it has room for.
	for size, want := range map[uint32]uint32{1: 1, 64: 64, 10000: 4096} {
		addr := mem.Alloc(uint64(size), 64)
		written, err := ring.Do(nil, []virtqtest.Seg{{Addr: addr, Len: size}})
		if err != nil || written != want {
			t.Errorf("of a buffer of %d bytes %d were written, %v; want %d", size, written, err, want)
		}
		if got := mem.Bytes(addr, uint64(want)); want > 16 && bytes.Equal(got, make([]byte, want)) {
			t.Errorf("a buffer of %d bytes is still zero", size)
		}
	}

	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve ended with %v", err)
	}
}
