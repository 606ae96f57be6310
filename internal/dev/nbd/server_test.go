package nbd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"vdev/devsw"
)

const testSize = 1 << 20

func checkModel(t *testing.T, uri string, connections int) {
	r := newRig(t)
	d := r.open(r.create(Config{URI: uri, Connections: connections}))
	d.Want = make([]byte, testSize)
	d.Undefined = true
	rapid.Check(t, d.Check)
}

func TestDiskOfNbdkitIsWhatWasWritten(t *testing.T) {
	for _, n := range []int{1, 4} {
		s := nbdkit(t, "memory", "size=1M")
		checkModel(t, s.uri(), n)
	}
}

func TestDiskOfQemuNBDIsWhatWasWritten(t *testing.T) {
	found := qemuNBDs()
	if len(found) == 0 {
		t.Skip("there is no qemu-nbd (Debian: qemu-utils)")
	}
	for name, program := range found {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			img, sock := filepath.Join(dir, "img"), filepath.Join(dir, "nbd")
			if err := os.WriteFile(img, make([]byte, testSize), 0o600); err != nil {
				t.Fatal(err)
			}
			args := append(program[1:], "--socket="+sock, "--format=raw", "--persistent", "--shared=8", "--discard=unmap", img)
			s := start(t, sock, program[0], args...)
			checkModel(t, s.uri(), 4)
		})
	}
}

func TestWriteIsGivenUpAtOnceAndTheNextOpenWaitsForTheServer(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for a server that hangs")
	}
	s := nbdkit(t, "--filter=delay", "memory", "size=1M", "delay-write=1500ms")
	r := newRig(t)
	dev := r.create(Config{URI: s.uri()})
	d := r.open(dev)
	old := bytes.Repeat([]byte{1}, 64<<10)
	b, done := d.Buf(devsw.BWrite, 0, 0, old)
	d.Issue(b)
	time.Sleep(100 * time.Millisecond) // the server has it: what follows holds either way
	r.cancel(dev)
	d.Wait(done)
	if b.Error != devsw.ECANCELED || b.Resid != b.Bcount {
		t.Fatalf("a cancelled write ends with error %v, resid %d", b.Error, b.Resid)
	}
	clear(old) // it is ours again
	r.close(dev)

	d = r.open(dev)
	if b := d.Transfer(devsw.BWrite, 0, 0, bytes.Repeat([]byte{2}, 64<<10)); b.Error != 0 {
		t.Fatal(b.Error)
	}
	time.Sleep(2 * time.Second) // whatever was still on its way
	got := make([]byte, 64<<10)
	if b := d.Transfer(devsw.BRead, 0, 0, got); b.Error != 0 {
		t.Fatal(b.Error)
	}
	if !bytes.Equal(got, bytes.Repeat([]byte{2}, 64<<10)) {
		t.Fatal("a write that was given up has landed after a newer one")
	}
}

func TestRequestsSurviveAServerThatIsKilledAndComesBack(t *testing.T) {
	dir := t.TempDir()
	img, sock := filepath.Join(dir, "img"), filepath.Join(dir, "nbd")
	if err := os.WriteFile(img, make([]byte, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	s := nbdkitAt(t, sock, "file", img)
	r := newRig(t)
	d := r.open(r.create(Config{URI: s.uri(), ReconnectDelay: 30 * time.Second}))
	for i := range 3 {
		s.kill()
		want := bytes.Repeat([]byte{byte(i + 1)}, 100<<10)
		b, done := d.Buf(devsw.BWrite, devsw.BMediaFUA, int64(i)*(128<<10), want)
		d.Issue(b)
		s = nbdkitAt(t, sock, "file", img)
		d.Wait(done)
		got := make([]byte, len(want))
		if rb := d.Transfer(devsw.BRead, 0, int64(i)*(128<<10), got); b.Error != 0 || rb.Error != 0 || !bytes.Equal(got, want) {
			t.Fatalf("round %d: write %v, read %v, the same: %v", i, b.Error, rb.Error, bytes.Equal(got, want))
		}
	}
}

func TestRequestsFailWhenTheServerStaysAway(t *testing.T) {
	for _, delay := range []time.Duration{0, 50 * time.Millisecond} {
		s := nbdkit(t, "memory", "size=1M")
		r := newRig(t)
		d := r.open(r.create(Config{URI: s.uri(), ReconnectDelay: delay}))
		s.kill()
		for range 2 {
			if b := d.Transfer(devsw.BRead, 0, 0, make([]byte, 4096)); b.Error != devsw.EIO {
				t.Errorf("delay %v: a read without a server ends with %v", delay, b.Error)
			}
		}
	}
}

func TestErrorsOfTheServerArrive(t *testing.T) {
	s := nbdkit(t, "--filter=error", "memory", "size=1M", "error-pwrite=ENOSPC", "error-pwrite-rate=1", "error-pread=EPERM", "error-pread-rate=1")
	r := newRig(t)
	d := r.open(r.create(Config{URI: s.uri()}))
	if b := d.Transfer(devsw.BWrite, 0, 0, make([]byte, 4096)); b.Error != devsw.ENOSPC || b.Resid != 4096 {
		t.Errorf("write: %v, resid %d", b.Error, b.Resid)
	}
	if b := d.Transfer(devsw.BRead, 0, 0, make([]byte, 256<<10)); b.Error != devsw.EPERM {
		t.Errorf("read: %v", b.Error)
	}
}

func TestReadOnlyExportIsAReadOnlyDisk(t *testing.T) {
	s := nbdkit(t, "--readonly", "memory", "size=1M")
	r := newRig(t)
	dev := r.create(Config{URI: s.uri()})
	if err := r.table.BdevOpen(dev, rw, devsw.IFBLK); !errors.Is(err, devsw.EROFS) {
		t.Errorf("open for writing: %v", err)
	}
	if err := r.table.BdevOpen(dev, devsw.FREAD, devsw.IFBLK); err != nil {
		t.Fatal(err)
	}
	defer r.close(dev)
	if info, err := r.d.Info(0); err != nil || !info.ReadOnly || info.Discard || info.WriteZeroes {
		t.Errorf("info: %+v, %v", info, err)
	}
}

func TestHandshakeErrorsAreClear(t *testing.T) {
	s := nbdkit(t, "--filter=exportname", "memory", "size=1M", "exportname-strict=true", "exportname=good", "default-export=good")
	r := newRig(t)
	_, err := r.d.Create(0, Config{URI: "nbd+unix:///bad?socket=" + s.path})
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Errorf("an export that is not there: %v", err)
	}
	t.Log(err)
	_, err = r.d.Create(0, Config{URI: "nbd+unix:///?socket=" + s.path + "-not"})
	if !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a socket that is not there: %v", err)
	}
	t.Log(err)
	_, err = r.d.Create(0, Config{URI: "nbds+unix:///good?tls-hostname=x&socket=" + s.path})
	if !errors.As(err, &refused) {
		t.Errorf("TLS that is not there: %v", err)
	}
	t.Log(err)
}
