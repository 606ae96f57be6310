package main

import (
	"os/exec"
	"path/filepath"
	"testing"

	"vdev/internal/dev/qemunbd"
)

func TestAnImageInUseIsNoReasonForAnIncomingGuestNotToBeAwaited(t *testing.T) {
	for _, program := range []string{"qemu-img", "qemu-nbd"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	image := filepath.Join(t.TempDir(), "disk.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", image, "16M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	holder, err := qemunbd.New(qemunbd.Config{File: image, Format: "qcow2"})
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	if _, err := holder.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := serving(t, nil, "blk", "--socket-path", filepath.Join(t.TempDir(), "s"), "--blk-file", image, "--incoming")
	p.waitFor("the image is opened when the guest starts here")
	p.waitFor("bytes=16777216")
}
