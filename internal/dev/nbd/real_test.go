package nbd

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vdev/devsw"
)

// TestRealServersAreUnderstood looks at what servers say of themselves, and writes and reads on
// their disks with it.
func TestRealServersAreUnderstood(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts many servers")
	}
	if contexts != nil {
		t.Skip("they are as they were")
	}
	const mib = 1 << 20
	type want struct {
		speaks         string
		min, pref, max int64
		has, lacks     uint16 // transmission flags
	}
	check := func(name, uri string, w want) {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			dev := r.create(Config{URI: uri, ReconnectDelay: 20 * time.Second})
			r.softc(dev).patience = 100 * time.Millisecond // some take one client at a time
			exp := r.softc(dev).known.Load()
			speaks := "simple"
			switch {
			case exp.extended:
				speaks = "extended"
			case exp.structured:
				speaks = "structured"
			}
			got := want{speaks, exp.minBlock, exp.prefBlock, exp.maxBlock, exp.flags & w.has, exp.flags & w.lacks}
			if w.lacks = 0; got != w {
				t.Errorf("the server is %+v, want %+v", got, w)
			}
			d := r.open(dev)
			data, zero, read := pattern(64<<10, 1), make([]byte, 64<<10), make([]byte, 64<<10)
			for _, off := range []int64{512, testSize - 64<<10} {
				d.Transfer(devsw.BWrite, 0, off, data)
				if b := d.Transfer(devsw.BRead, 0, off, read); b.Error != 0 || !bytes.Equal(read, data) {
					t.Errorf("at %d it reads something else, %v", off, b.Error)
				}
			}
			if err := r.flush(dev); err != nil {
				t.Errorf("flush: %v", err)
			}
			zr := devsw.ZeroRange{Pos: 512, N: 64 << 10, Unmap: true}
			if err := r.table.BdevIoctl(dev, devsw.DIOCWRITEZEROES, &zr, rw); err != nil {
				t.Errorf("zeroes: %v", err)
			}
			if b := d.Transfer(devsw.BRead, 0, 512, read); b.Error != 0 || !bytes.Equal(read, zero) {
				t.Errorf("there are no zeroes, %v", b.Error)
			}
			if err := r.table.BdevDiscard(dev, 0, testSize); err != nil && exp.has(sendTrim) {
				t.Errorf("discard: %v", err)
			}
		})
	}
	sock := func() string { return filepath.Join(t.TempDir(), "nbd") }

	const usual = sendFlush | sendFUA | sendTrim | sendWriteZeroes
	const secret = "secret,id=s,data=abc"
	luks := made(t, "luks", "--object", secret, "-o", "key-secret=s,iter-time=10")
	for version, program := range qemuNBDs() {
		speaks := "structured"
		if version == "11.1" {
			speaks = "extended"
		}
		qemu := func(what string, w want, args ...string) {
			path := sock()
			args = append(slices.Concat(program[1:], []string{"--socket=" + path, "--persistent"}), args...)
			check("qemu-nbd "+version+" "+what, start(t, path, program[0], args...).uri(), w)
		}
		qemu("raw", want{speaks, 1, 4096, 32 * mib, usual | canMultiConn | sendFastZero, 0},
			"--format=raw", "--shared=8", image(t))
		sectors := want{speaks, 512, 4096, 32 * mib, usual, canMultiConn}
		qemu("vhdx", sectors, "--format=vhdx", made(t, "vhdx"))
		qemu("luks", sectors, "--object", secret, "--image-opts",
			"driver=luks,key-secret=s,file.driver=file,file.filename="+luks)
	}

	kit := nbdkit(t, "file", image(t))
	check("nbdkit file", kit.uri(), want{
		"structured", 1, 0, 32 * mib, usual | canMultiConn, sendFastZero,
	})
	small := nbdkit(t, "--filter=blocksize-policy", "memory", "size=1M", "blocksize-error-policy=error",
		"blocksize-minimum=512", "blocksize-preferred=8K", "blocksize-maximum=16K")
	check("nbdkit, small blocks", small.uri(), want{"structured", 512, 8192, 16 << 10, sendFlush | canMultiConn, 0})

	uri := nbdServer(t, "[plain]\nexportname = DIR/disk\nfilesize = 1048576\n"+
		"[flushes]\nexportname = DIR/disk\nfilesize = 1048576\nflush = true\nfua = true\ntrim = true\n"+
		"[cow]\nexportname = DIR/disk\nfilesize = 1048576\ncopyonwrite = true\n")
	check("nbd-server", uri("plain"), want{"simple", 1, 0, 32 * mib, canMultiConn, sendFlush | sendFUA})
	check("nbd-server, flush", uri("flushes"), want{"simple", 1, 0, 32 * mib, canMultiConn | sendFlush | sendFUA | sendTrim, 0})
	// It takes one client, which is vdev's look at the start, and refuses others by its policy.
	one := nbdServer(t, "[one]\nexportname = DIR/disk\nfilesize = 1048576\nmaxconnections = 1\n")
	check("nbd-server, one connection", one("one"), want{"simple", 1, 0, 32 * mib, canMultiConn, 0})
	check("nbd-server, copyonwrite", uri("cow"), want{"simple", 1, 0, 32 * mib, 0, canMultiConn})
}

// made makes an image of testSize bytes.
func made(t *testing.T, format string, args ...string) string {
	t.Helper()
	program, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("there is no qemu-img (Debian: qemu-utils)")
	}
	file := filepath.Join(t.TempDir(), "disk."+format)
	args = append(append([]string{"create", "-q", "-f", format}, args...), file, "1M")
	for tries := 1; ; tries++ {
		out, err := exec.Command(program, args...).CombinedOutput()
		if err == nil {
			return file
		}
		// For luks it measures how fast it is, and fails where others had the processor meanwhile.
		if tries == 100 || !strings.Contains(string(out), "Unable to get accurate CPU usage") {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
	}
}

// TestServerOfLargeBlocksNamesTheFlag, with which its disk can be used.
func TestServerOfLargeBlocksNamesTheFlag(t *testing.T) {
	s := nbdkit(t, "--filter=blocksize-policy", "memory", "size=1M", "blocksize-error-policy=error",
		"blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=32M")
	r := newRig(t)
	_, err := r.d.Create(r.units, Config{URI: s.uri()})
	if !errors.Is(err, devsw.EINVAL) || !strings.Contains(err.Error(), "--logical-block-size 4096") {
		t.Errorf("with sectors of 512 bytes: %v", err)
	}
	d := r.open(r.create(Config{URI: s.uri(), SectorSize: 4096}))
	d.Sector = 4096
	if b := d.Transfer(devsw.BWrite, 0, 4096, pattern(4096, 1)); b.Error != 0 {
		t.Error(b.Error)
	}
}
