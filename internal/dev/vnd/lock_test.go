package vnd

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
)

// tool finds one of QEMU's programs.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("there is no %s (Debian: qemu-utils)", name)
	}
	return path
}

// run gives what a program says, and whether it was content.
func run(t *testing.T, name string, args ...string) (string, bool) {
	t.Helper()
	out, err := exec.Command(tool(t, name), args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), err == nil
}

// qemuIO has qemu-io open an image, and keep it open until the returned function or the end of the
// test.
func qemuIO(t *testing.T, args ...string) (pid int, quit func()) {
	t.Helper()
	cmd := exec.Command(tool(t, "qemu-io"), args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	quit = sync.OnceFunc(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("qemu-io: %v: %s", err, stderr.String())
		}
	})
	t.Cleanup(quit)
	if _, err := io.WriteString(stdin, "length\n"); err != nil {
		t.Fatal(err)
	}
	// It answers once the image is open.
	for sc := bufio.NewScanner(stdout); sc.Scan(); {
		if strings.Contains(sc.Text(), "MiB") {
			return cmd.Process.Pid, quit
		}
	}
	quit()
	t.Fatalf("qemu-io did not open the image: %s", stderr.String())
	return 0, nil
}

func TestQEMURefusesAnOpenImage(t *testing.T) {
	r := newRig(t)
	path := newFile(t, make([]byte, 1<<20))
	dev := r.create(Config{Path: path})
	// Looking at the image takes no lock.
	if _, err := r.d.Info(0); err != nil {
		t.Fatal(err)
	}
	if out, ok := run(t, "qemu-img", "info", path); !ok {
		t.Fatalf("before the open: %s", out)
	}
	if err := r.tryOpen(dev); err != nil {
		t.Fatal(err)
	}
	defer r.close(dev)
	// What QEMU says to the disk of a running guest, word for word.
	for _, c := range []struct {
		args []string
		says string // "": it works
	}{
		{[]string{"qemu-io", "-f", "raw", "-c", "read 0 512", path}, `Failed to get "write" lock`},
		{[]string{"qemu-img", "resize", "-f", "raw", path, "2M"}, `Failed to get "write" lock`},
		{[]string{"qemu-img", "create", "-f", "raw", path, "1M"}, `Failed to get "write" lock`},
		{[]string{"qemu-img", "convert", "-f", "raw", "-O", "raw", path, path + ".copy"}, `Failed to get shared "write" lock`},
		{[]string{"qemu-img", "info", path}, ""},
	} {
		out, ok := run(t, c.args[0], c.args[1:]...)
		if ok != (c.says == "") || !strings.Contains(out, c.says) {
			t.Errorf("%v: content %v, says %q; want %q", c.args, ok, out, c.says)
		}
	}
	if out, ok := run(t, "qemu-img", "info", "--force-share", path); !ok {
		t.Errorf("sharing by force: %s", out)
	}
	r.close(dev)
	if out, ok := run(t, "qemu-io", "-f", "raw", "-c", "write 0 512", path); !ok {
		t.Errorf("after the close: %s", out)
	}
}

func TestReadersShareAnImageWithQEMU(t *testing.T) {
	r := newRig(t)
	path := newFile(t, make([]byte, 1<<20))
	a, b := r.create(Config{Path: path, ReadOnly: true}), r.create(Config{Path: path, ReadOnly: true})
	writer := r.create(Config{Path: path, LockWait: -1})
	r.open(a)
	r.open(b)
	if out, ok := run(t, "qemu-io", "-r", "-f", "raw", "-c", "read 0 512", path); !ok {
		t.Errorf("a reader: %s", out)
	}
	if out, _ := run(t, "qemu-io", "-f", "raw", "-c", "write 0 512", path); !strings.Contains(out, `Failed to get "write" lock`) {
		t.Errorf("a writer: %s", out)
	}
	var le *LockError
	if err := r.tryOpen(writer); !errors.As(err, &le) || le.Perm != "write" || le.Shared || le.PID != os.Getpid() {
		t.Errorf("a writer of ours: %v", err)
	}
}

func TestAnImageThatQEMUHasIsRefusedByName(t *testing.T) {
	r := newRig(t)
	path := newFile(t, make([]byte, 1<<20))
	dev := r.create(Config{Path: path, LockWait: -1})
	reader := r.create(Config{Path: path, ReadOnly: true, LockWait: -1})
	pid, quit := qemuIO(t, "-f", "raw", path)

	check := func(what string, err error, shared bool) {
		t.Helper()
		var le *LockError
		if !errors.As(err, &le) || !errors.Is(err, devsw.EBUSY) {
			t.Fatalf("%s: %v, want a LockError", what, err)
		}
		if le.Path != path || le.PID != pid || le.Command != "qemu-io" || le.Perm != "write" || le.Shared != shared {
			t.Errorf("%s: %+v, want pid %d", what, le, pid)
		}
		if !strings.Contains(err.Error(), path+": in use by another process (qemu-io, pid ") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// qemu-io lets others write as long as it is alone in doing so: it is our own wish to be alone
	// that it stands against.
	check("open", r.tryOpen(dev), true)
	check("check", r.d.Check(0), true)
	check("open of a reader", r.tryOpen(reader), true)
	if info, err := r.d.Info(0); err != nil || info.Size != 1<<20 {
		t.Errorf("info: %+v, %v", info, err)
	}
	quit()
	if err := r.d.Check(0); err != nil {
		t.Errorf("check afterwards: %v", err)
	}
	r.open(dev)
	if err := r.d.Check(0); err != nil {
		t.Errorf("check while open: %v", err)
	}
}

func TestTheLocksAreThoseOfQEMUsGuestDisks(t *testing.T) {
	for _, c := range []struct {
		readOnly bool
		want     []int64
	}{
		// As /proc/locks shows for qemu-system-x86_64 -drive file=…,format=raw,if=virtio, without
		// and with readonly=on.
		{false, []int64{100, 101, 201}},
		{true, []int64{100, 201}},
	} {
		r := newRig(t)
		path := newFile(t, nil)
		r.open(r.create(Config{Path: path, ReadOnly: c.readOnly}))
		other, err := sys.OpenFile(path, sys.OpenFlags{})
		if err != nil {
			t.Fatal(err)
		}
		var got []int64
		for at := range int64(300) {
			held, _, err := sys.LockHeld(other.Int(), at, 1)
			if err != nil {
				t.Fatal(err)
			}
			if held {
				got = append(got, at)
			}
		}
		other.Close()
		if !slices.Equal(got, c.want) {
			t.Errorf("read-only %v: bytes %v are locked, want %v", c.readOnly, got, c.want)
		}
	}
}

func TestAnOpenWaitsForItsPredecessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		path := newFile(t, nil)
		first, second := r.create(Config{Path: path}), r.create(Config{Path: path})
		if err := r.tryOpen(first); err != nil {
			t.Fatal(err)
		}
		opened := make(chan error, 1)
		go func() { opened <- r.tryOpen(second) }()
		time.Sleep(DefaultLockWait / 2)
		select {
		case err := <-opened:
			t.Fatalf("did not wait: %v", err)
		default:
		}
		r.close(first)
		if err := <-opened; err != nil {
			t.Errorf("after the predecessor's end: %v", err)
		}
		r.close(second)
	})
}

func TestAnOpenDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		path := newFile(t, nil)
		first, second := r.create(Config{Path: path}), r.create(Config{Path: path, LockWait: time.Minute})
		if err := r.tryOpen(first); err != nil {
			t.Fatal(err)
		}
		defer r.close(first)
		start := time.Now()
		err := r.tryOpen(second)
		var le *LockError
		if !errors.As(err, &le) || !strings.Contains(err.Error(), "in use by this process already") {
			t.Errorf("%v, want a LockError that names this process", err)
		}
		if waited := time.Since(start); waited != time.Minute {
			t.Errorf("waited %v, want a minute", waited)
		}
	})
}

func TestCancelEndsAnOpenThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		path := newFile(t, nil)
		first, second := r.create(Config{Path: path}), r.create(Config{Path: path, LockWait: time.Hour})
		if err := r.tryOpen(first); err != nil {
			t.Fatal(err)
		}
		defer r.close(first)
		opened := make(chan error, 2)
		for range 2 { // the second waits for the first
			go func() { opened <- r.tryOpen(second) }()
		}
		time.Sleep(time.Second)
		start := time.Now()
		if err := r.table.BdevCancel(second, rw, devsw.IFBLK); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-opened; !errors.Is(err, devsw.ECANCELED) {
				t.Errorf("open: %v, want ECANCELED", err)
			}
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("waited another %v", waited)
		}
		// Until d_close no open begins either; after it they do.
		if err := r.tryOpen(second); !errors.Is(err, devsw.ECANCELED) {
			t.Errorf("open before the close: %v, want ECANCELED", err)
		}
		if err := r.table.BdevClose(second, rw, devsw.IFBLK); err != nil {
			t.Fatal(err)
		}
		r.close(first)
		if err := r.tryOpen(second); err != nil {
			t.Errorf("open after the close: %v", err)
		}
		r.close(second)
	})
}

func TestFdinfoIsReadAsTheKernelWritesIt(t *testing.T) {
	const text = "pos:\t0\nflags:\t02100002\nmnt_id:\t27\nino:\t9994298\n" +
		"lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:9994298 100 101\n" +
		"lock:\t2: FLOCK  ADVISORY  WRITE 77 fe:00:9994298 0 EOF\n" +
		"lock:\t3: POSIX  ADVISORY  WRITE 77 fe:00:9994298 300 EOF\n" +
		"lock:\t4: LEASE  ACTIVE    READ 77 fe:00:9994298 0 EOF\n"
	for at, want := range map[int64]bool{99: false, 100: true, 101: true, 102: false, 201: false, 299: false, 300: true, 1 << 40: true} {
		if got := locks([]byte(text), "fe:00:9994298", at); got != want {
			t.Errorf("byte %d: %v, want %v", at, got, want)
		}
		for _, file := range []string{"fe:01:9994298", "fe:00:9994299", ""} {
			if locks([]byte(text), file, at) {
				t.Errorf("byte %d: the lock is taken for one of %q", at, file)
			}
		}
	}
}
