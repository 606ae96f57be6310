package hangfs

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/internal/sys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// content makes n bytes that differ from each other.
func content(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>8)*31 + byte(i) + seed
	}
	return p
}

// fileWith puts data into a new file, which it opens by way of the file system.
func fileWith(t *testing.T, dir, point string, data []byte, fl sys.OpenFlags) (fd *sys.FD, below string) {
	t.Helper()
	below = filepath.Join(dir, "disk.img")
	if err := os.WriteFile(below, data, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := sys.OpenFile(filepath.Join(point, "disk.img"), fl)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return fd, below
}

// await waits for n requests that are held.
func await(t *testing.T, f *FS, k Kind, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := f.Await(ctx, k, n); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsHeldIsCarriedOutWhenItIsReleased(t *testing.T) {
	for name, conf := range map[string]Config{"cached": {}, "direct": {Direct: true}, "writeback": {Writeback: true}} {
		t.Run(name, func(t *testing.T) {
			f, dir, point := New(t, conf)
			old, newer := content(1<<20, 1), content(1<<20, 7)
			fd, below := fileWith(t, dir, point, old, sys.OpenFlags{Write: true})

			f.Hold(Read)
			got := make([]byte, 64<<10)
			read := make(chan syscall.Errno)
			go func() {
				_, errno := sys.Preadv(fd.Int(), [][]byte{got}, 256<<10)
				read <- errno
			}()
			await(t, f, Read, 1)
			select {
			case errno := <-read:
				t.Fatalf("a read that is held has ended: %v", errno)
			default:
			}
			if err := os.WriteFile(below, newer, 0o600); err != nil {
				t.Fatal(err)
			}
			f.Release(Read)
			if errno := <-read; errno != 0 {
				t.Fatal(errno)
			}
			if !bytes.Equal(got, newer[256<<10:][:len(got)]) {
				t.Error("the read does not give what the file had when it was let go")
			}

			f.Hold(Read)
			if err := f.Drop("disk.img"); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, errno := sys.Preadv(fd.Int(), [][]byte{got}, 256<<10)
				read <- errno
			}()
			await(t, f, Read, 1)
			f.Release(Kinds()...)
			if errno := <-read; errno != 0 {
				t.Fatal(errno)
			}

			if !conf.Writeback {
				f.Hold(Write)
				wrote := make(chan syscall.Errno)
				go func() {
					_, errno := sys.Pwritev(fd.Int(), [][]byte{old[:4096]}, 4096, false)
					wrote <- errno
				}()
				await(t, f, Write, 1)
				if now, err := os.ReadFile(below); err != nil || !bytes.Equal(now, newer) {
					t.Errorf("a write that is held has landed (%v)", err)
				}
				f.Release(Write)
				if errno := <-wrote; errno != 0 {
					t.Fatal(errno)
				}
				copy(newer[4096:], old[:4096])
			}

			f.Hold(Fsync)
			synced := make(chan syscall.Errno)
			go func() { synced <- sys.Fdatasync(fd.Int()) }()
			await(t, f, Fsync, 1)
			f.Release(Fsync)
			if errno := <-synced; errno != 0 {
				t.Fatal(errno)
			}
			if now, err := os.ReadFile(below); err != nil || !bytes.Equal(now, newer) {
				t.Errorf("the file is not what was written (%v)", err)
			}
			held := 0
			for _, e := range f.Log() {
				if e.Path != "disk.img" && e.Path != "" {
					t.Errorf("a request for %q", e.Path)
				}
				if e.Held {
					held++
				}
			}
			if held < 2 {
				t.Errorf("the log has %d requests that were held", held)
			}
		})
	}
}

func TestOpensAndClosesAreHeld(t *testing.T) {
	f, dir, point := New(t, Config{})
	fd, _ := fileWith(t, dir, point, content(4096, 1), sys.OpenFlags{})
	f.Hold(Open, Flush)
	opened := make(chan error)
	go func() {
		other, err := sys.OpenFile(filepath.Join(point, "disk.img"), sys.OpenFlags{})
		if err == nil {
			other.Close()
		}
		opened <- err
	}()
	await(t, f, Open, 1)
	closed := make(chan struct{})
	go func() {
		fd.Close()
		close(closed)
	}()
	await(t, f, Flush, 1)
	f.Release(Open)
	await(t, f, Flush, 2)
	f.Release(Flush)
	<-closed
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestManyRequestsAreHeldAtOnce(t *testing.T) {
	f, dir, point := New(t, Config{Direct: true})
	const n = 100
	fd, _ := fileWith(t, dir, point, content(n*4096, 1), sys.OpenFlags{})
	f.Hold(Read)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if n, errno := sys.Preadv(fd.Int(), [][]byte{make([]byte, 4096)}, int64(i)*4096); n != 4096 || errno != 0 {
				t.Errorf("read: %d bytes, %v", n, errno)
			}
		})
	}
	await(t, f, Read, n)
	f.Release(Read)
	wg.Wait()
	if f.Waiting(Read) != 0 {
		t.Errorf("%d are still held", f.Waiting(Read))
	}
}

func TestCloseFailsWhatIsOpen(t *testing.T) {
	dir, point := t.TempDir(), t.TempDir()
	f, err := Mount(dir, point, Config{})
	if err != nil {
		t.Skip(err)
	}
	fd, _ := fileWith(t, dir, point, content(1<<20, 1), sys.OpenFlags{})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, errno := sys.Preadv(fd.Int(), [][]byte{make([]byte, 4096)}, 0); errno == 0 {
		t.Error("a file can be read whose file system has gone")
	}
	if all, err := os.ReadDir(point); err != nil || len(all) != 0 {
		t.Errorf("the folder has %v, %v", all, err)
	}
}

func TestKindsGoByTheirNames(t *testing.T) {
	for k := range kinds {
		if got, err := ParseKind(k.String()); got != k || err != nil {
			t.Errorf("%s is %v, %v", k, got, err)
		}
	}
	if _, err := ParseKind("lock"); err == nil {
		t.Errorf("a kind that there is not: %v", err)
	}
}
