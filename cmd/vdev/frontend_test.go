package main

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vdev/internal/control"
	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

// diskFile makes a file that is not in memory.
func diskFile(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if memory, err := sys.IsMemory(int(f.Fd())); memory || err != nil {
		t.Skipf("files for tests lie in memory here (%v)", err)
	}
	return f
}

func TestGuestMemoryOnADiskIsTakenOnlyWhenAskedFor(t *testing.T) {
	file := diskFile(t, 1<<16)
	region := vhostuser.MemoryRegion{Size: 1 << 16, UserAddr: 1 << 46}
	socket := filepath.Join(t.TempDir(), "s")
	p := serving(t, nil, "blk", "--socket-path", socket, "--driver", "null,size=1M")
	if err := connect(t, socket).f.AddMemReg(region, int(file.Fd())); !errors.Is(err, vhostusertest.ErrRefused) {
		t.Errorf("a file on a disk: %v, want a refusal", err)
	}
	p.waitFor("must be a memfd, or a file of tmpfs or hugetlbfs: it is a file")
	p.waitFor("--memory-files any")
	p.endsCleanly()

	p = serving(t, nil, "blk", "--socket-path", socket, "--driver", "null,size=1M", "--memory-files", "any")
	if err := connect(t, socket).f.AddMemReg(region, int(file.Fd())); err != nil {
		t.Errorf("a file on a disk, asked for: %v", err)
	}
	p.endsCleanly()
}

func TestAFrontEndDoesNotFillTheLog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	p := serving(t, nil, "blk", "--socket-path", socket, "--driver", "null,size=1M")
	f := connect(t, socket).f
	for range 2000 {
		if err := f.SetVringNum(0, 0); !errors.Is(err, vhostusertest.ErrRefused) {
			t.Fatal(err)
		}
	}
	f.Close()
	p.waitFor("the front-end has disconnected")
	if text, _ := p.stderr.read(); strings.Count(text, "a message was refused") > 2*lineBurst {
		t.Errorf("%d lines of the log for 2000 messages", strings.Count(text, "a message was refused"))
	}
	p.endsCleanly()
}

func TestAVdevThatEndsLeavesTheSocketsOfANewerOne(t *testing.T) {
	dir := t.TempDir()
	socket, ctl := filepath.Join(dir, "s"), filepath.Join(dir, "ctl")
	args := []string{"blk", "--socket-path", socket, "--control", ctl, "--driver", "null,size=1M"}
	old := serving(t, nil, args...)
	for _, name := range []string{socket, ctl} {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	newer := serving(t, nil, args...)
	old.endsCleanly()
	connect(t, socket).start()
	if _, err := control.NewClient(ctl).Status(t.Context()); err != nil {
		t.Error(err)
	}
	newer.endsCleanly()
	if exists(t, socket) || exists(t, ctl) {
		t.Error("the sockets are still there")
	}
}

func TestAsManyQueuesAreOfferedAsThereCanBe(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	p := serving(t, nil, "blk", "--socket-path", socket, "--driver", "null,size=1M")
	g := connect(t, socket)
	// QEMU wants one for each virtual CPU, and refuses a back-end that has fewer.
	if n, err := g.f.GetQueueNum(); n != 256 || err != nil {
		t.Errorf("%d queues, %v, want 256", n, err)
	}
	g.start()
	p.endsCleanly()
}

func TestASegMaxThatIsChosenReachesTheGuest(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	p := serving(t, nil, "blk", "--socket-path", socket, "--driver", "null,size=1M", "--seg-max", "62")
	config, err := connect(t, socket).f.GetConfig(12, 4)
	if err != nil {
		t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint32(config); got != 62 {
		t.Errorf("seg_max is %d, want 62", got)
	}
	p.endsCleanly()
}

func TestADiskWithoutBytesIsToldOf(t *testing.T) {
	p := serving(t, nil, "blk", "--socket-path", filepath.Join(t.TempDir(), "s"), "--blk-file", image(t, 0))
	p.waitFor("the disk has no bytes")
	p.endsCleanly()
}
