// Command ramdisk is a disk of somebody else's behind vdev's virtio-blk: a driver of its own
// (ram.go) on package devsw/disk, in a Go module of its own, on public packages alone. What stands
// in the driver is where the bytes are, and that a context ends a wait. That requests in flight are
// cancelled, drained, and the storage then closed, when a guest pauses, resets or loses the disk,
// comes from the packages above it. It serves one guest after the other:
//
//	ramdisk /run/ram.sock
//	qemu-system-x86_64 ... -chardev socket,id=ram,path=/run/ram.sock \
//	    -device vhost-user-blk-pci,chardev=ram
//
// SIGUSR1 makes writes stall, and the next one lets them go on. What happens to the disk is written
// to the standard error.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/devsw/disk"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/virtioblk"
)

const (
	size = 64 << 20
	// cancelAfter is how long a stop waits for requests to complete by themselves.
	cancelAfter = 250 * time.Millisecond
)

// serve serves the storage on a socket, until ctx is done.
func serve(ctx context.Context, path string, r *ram, told *journal) error {
	table := devsw.NewTable()
	driver, err := disk.Attach(table, "ram", devsw.NODEVMAJOR, devsw.NODEVMAJOR)
	if err != nil {
		return err
	}
	defer driver.Detach()
	dev, err := driver.Create(0, disk.NewDisk(r))
	if err != nil {
		return err
	}

	blk, err := virtioblk.New(virtioblk.Config{
		FS:        specfs.New(table, specfs.WithTrace(func(e specfs.Event) { told.note("specfs", e) })),
		Dev:       dev,
		Info:      func() (devsw.DiskInfo, error) { return driver.Info(0) },
		NumQueues: 1,
		Trace:     func(r virtioblk.Request) { told.note("blk", r) },
	})
	if err != nil {
		return err
	}
	defer blk.Close()
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{})
	if err != nil {
		return err
	}
	defer reactors.Close()
	backend, err := vhostuser.New(vhostuser.Config{
		Device: blk, Reactors: reactors,
		// Such a guest cannot be moved to another host, and its memory disk could not, either. So
		// requests that are cancelled stay in the in-flight region, and a paused guest sees no
		// error.
		NotMigratable: true,
		CancelAfter:   cancelAfter,
		Trace:         func(e vhostuser.Event) { told.note("vhost", e) },
	})
	if err != nil {
		return err
	}
	listener, err := vhostuser.Listen(path)
	if err != nil {
		return err
	}
	if err := backend.Serve(ctx, listener); err != nil {
		return err
	}
	return blk.WaitClosed(context.Background())
}

// journal is what has happened, one line each, with the time in seconds.
type journal struct {
	mu    sync.Mutex
	w     io.Writer
	begin time.Time
}

func (j *journal) note(who string, what any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	fmt.Fprintf(j.w, "%12.6f %-7s %v\n", time.Since(j.begin).Seconds(), who, what)
}

// Write has the storage say something.
func (j *journal) Write(p []byte) (int, error) {
	j.note("ram", string(p[:len(p)-1]))
	return len(p), nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: ramdisk SOCKET")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	told := &journal{w: os.Stderr, begin: time.Now()}
	r := newRAM(size, told)
	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, syscall.SIGUSR1)
	go func() {
		for range usr1 {
			r.toggle()
		}
	}()
	if err := serve(ctx, os.Args[1], r, told); err != nil {
		fmt.Fprintln(os.Stderr, "ramdisk:", err)
		os.Exit(1)
	}
}
