package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// unflushable starts an NBD server that offers no flush, with a disk as large as the file size
// says, and returns its URI.
func unflushable(t *testing.T, size string) (uri string) {
	t.Helper()
	nbdkit, err := exec.LookPath("nbdkit")
	if err != nil {
		t.Skip("there is no nbdkit")
	}
	sock := filepath.Join(t.TempDir(), "nbd")
	cmd := exec.Command(nbdkit, "--foreground", "--exit-with-parent", "--unix", sock, "eval",
		"get_size=cat "+size, "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	awaitSocket(t, sock)
	return "nbd+unix:///?socket=" + sock
}

// TestWhatAnNBDServerLacksIsTold at the start and in the status, and its size is asked for again
// while no guest has the disk.
func TestWhatAnNBDServerLacksIsTold(t *testing.T) {
	size := filepath.Join(t.TempDir(), "size")
	resize := func(bytes string) {
		t.Helper()
		if err := os.WriteFile(size, []byte(bytes), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	resize("1048576")
	socket, ctl := sockets(t)
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--driver", "nbd,uri="+unflushable(t, size))
	const lacks = "the server offers no flush (NBD_FLAG_SEND_FLUSH)"
	p.waitFor(lacks)
	if text := p.told(ctl, "status"); !strings.Contains(text, lacks) {
		t.Errorf("the status does not tell:\n%s", text)
	}
	resize("2097152")
	p.told(ctl, "resize")
	if got := p.status(ctl).Disk.Bytes; got != 2<<20 {
		t.Errorf("the disk has %d bytes after it was resized, want %d", got, 2<<20)
	}
	p.endsCleanly()
}
