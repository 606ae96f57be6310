// Command playground boots a small guest to play in, on a disk that vdev serves, and shows beside
// it what vdev says of the guest's doings. scripts/run builds and starts it. It leaves nothing
// behind: not the disk, unless one was given, and no process.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"vdev/guest-tests/internal/initrd"
	"vdev/guest-tests/internal/netbsd"
	"vdev/guest-tests/internal/vm"
	"vdev/internal/child"
)

const usage = `Boots a guest on a disk that vdev serves; what vdev does for it is shown beside.

  scripts/run                   a Linux guest with a shell, its disk at /mnt
  scripts/run --trace           with every message of the vhost-user protocol
  scripts/run --log FILE        vdev's log goes to FILE, the terminal is the guest's alone
  scripts/run --control PATH    with a control socket, and faults on command: go run ./cmd/vdev ctl --socket PATH status
  scripts/run --image FILE      serve FILE (an ext4 file system) in place of a new disk; what is written stays
  scripts/run --kernel FILE     boot that kernel: NetBSD/amd64, or a Linux with its drivers built in

Type poweroff in the guest, or Ctrl-] on the keyboard, to end.
`

type options struct {
	kernel, image, log string
	control            string
	trace              bool
	bin                string // folder with vdev and the agents, removed at the end
}

func main() {
	var o options
	flag.StringVar(&o.kernel, "kernel", "", "")
	flag.StringVar(&o.image, "image", "", "")
	flag.StringVar(&o.log, "log", "", "")
	flag.StringVar(&o.control, "control", "", "")
	flag.BoolVar(&o.trace, "trace", false, "")
	flag.StringVar(&o.bin, "bin", "", "")
	flag.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flag.Parse()
	if flag.NArg() > 0 || o.bin == "" {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := play(ctx, o)
	os.RemoveAll(o.bin)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted:
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}

func play(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "vdev-run")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	q, err := vm.FindQEMU("")
	if err != nil {
		return err
	}
	machine := vm.Config{QEMU: q, Dir: dir, CPUs: 2, RawSerial: true, DiskCode: true}
	if err := o.guest(dir, &machine); err != nil {
		return err
	}

	screen := newScreen()
	// The terminal is in order again before anybody reads an error.
	defer screen.restore()
	backend, err := o.startVdev(dir, screen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.stop()) }()
	machine.Disks = []vm.Disk{{Name: "disk", Socket: backend.socket, Transport: vm.Transitional, Queues: 2}}
	if err := backend.listening(ctx); err != nil {
		return err
	}
	m, err := vm.Start(ctx, machine)
	if err != nil {
		return err
	}
	defer m.Kill()
	defer screen.end()
	return converse(ctx, m, screen)
}

// guest chooses what to boot and makes the disk for it.
func (o *options) guest(dir string, c *vm.Config) error {
	kind, err := kernelKind(o.kernel)
	if err != nil {
		return err
	}
	if o.kernel != "" {
		// QEMU works in another folder.
		if o.kernel, err = filepath.Abs(o.kernel); err != nil {
			return err
		}
	}
	if kind == "NetBSD" {
		c.Kernel, c.Append = o.kernel, vm.NetBSDAppend
		o.image = filepath.Join(dir, "root.img")
		return netbsd.MakeRoot(o.image, filepath.Join(o.bin, "agent-netbsd"), true)
	}
	linux, err := vm.LinuxDir()
	if err != nil {
		return err
	}
	data, err := initrd.Build(linux, filepath.Join(o.bin, "agent"))
	if err != nil {
		return err
	}
	c.Initrd = filepath.Join(dir, "initramfs")
	if err := os.WriteFile(c.Initrd, data, 0o644); err != nil {
		return err
	}
	c.Kernel = filepath.Join(linux, "vmlinuz")
	if o.kernel != "" {
		c.Kernel = o.kernel
	}
	term := os.Getenv("TERM")
	if term == "" {
		term = "dumb"
	}
	c.Append = vm.LinuxAppend + " vdev.shell vdev.term=" + term
	if size := stty(os.Stdout, "size"); size != "" && size != "0 0" {
		c.Append += " vdev.size=" + strings.ReplaceAll(size, " ", "x")
	}
	if o.image != "" {
		return nil
	}
	o.image = filepath.Join(dir, "disk.img")
	return makeDisk(o.image)
}

// kernelKind tells a NetBSD kernel, an ELF file that QEMU boots through PVH, from a Linux bzImage.
func kernelKind(name string) (string, error) {
	if name == "" {
		return "Linux", nil
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 0x206)
	if _, err := io.ReadFull(f, head); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	switch {
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return "NetBSD", nil
	case string(head[0x202:]) == "HdrS":
		return "Linux", nil
	}
	return "", fmt.Errorf("%s is neither an ELF kernel nor a bzImage", name)
}

// makeDisk makes an ext4 file system with a few files.
func makeDisk(image string) error {
	tree := image + ".tree"
	defer os.RemoveAll(tree)
	if err := os.MkdirAll(filepath.Join(tree, "docs"), 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"hello.txt": "hello from the host\n",
		"docs/try": "dd if=/dev/urandom of=/mnt/data bs=1M count=16   write a file\n" +
			"sync                                             one FLUSH\n" +
			"echo 3 >/proc/sys/vm/drop_caches; md5sum /mnt/data   read it from the disk again\n" +
			"rm /mnt/data; fstrim -v /mnt                     DISCARD\n",
	} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	mkfs, err := exec.LookPath("mke2fs")
	if err != nil {
		mkfs = "/sbin/mke2fs"
	}
	// What the guest would initialize by itself, later, would be in the log for no reason to be
	// seen.
	out, err := exec.Command(mkfs, "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0", "-d", tree, image, "256M").CombinedOutput()
	if err != nil {
		return fmt.Errorf("mke2fs: %w\n%s", err, out)
	}
	return nil
}

// vdev is the back-end as it runs.
type vdev struct {
	socket  string
	cmd     *exec.Cmd
	process *child.Process
}

func (o *options) startVdev(dir string, s *screen) (*vdev, error) {
	v := &vdev{socket: filepath.Join(dir, "vdev.sock")}
	disk := []string{"--blk-file", o.image}
	if o.control != "" {
		// A comma in a name is doubled in the options of a driver.
		disk = []string{"--driver", "fault,lower=vnd,file=" + strings.ReplaceAll(o.image, ",", ",,"), "--control", o.control}
	}
	v.cmd = exec.Command(filepath.Join(o.bin, "vdev"), append([]string{"blk", "--socket-path", v.socket, "--trace"}, disk...)...)
	var log io.Writer = &logWriter{screen: s, all: o.trace}
	if o.log != "" {
		f, err := os.Create(o.log)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		log = f
	}
	v.cmd.Stdout, v.cmd.Stderr = log, log
	var err error
	if v.process, err = child.Start(v.cmd, syscall.SIGKILL); err != nil {
		return nil, err
	}
	return v, nil
}

// listening waits until the socket is there. To look whether it takes connections would be one.
func (v *vdev) listening(ctx context.Context) error {
	for {
		if _, err := os.Stat(v.socket); err == nil {
			return nil
		}
		select {
		case <-v.process.Ended():
			return errors.New("vdev has ended before it served anything")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (v *vdev) stop() error {
	v.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-v.process.Ended():
	case <-time.After(10 * time.Second):
		v.cmd.Process.Kill()
		<-v.process.Ended()
		return errors.New("vdev did not end when asked to")
	}
	if err := v.process.Err(); err != nil {
		return fmt.Errorf("vdev: %w", err)
	}
	return nil
}

// converse passes bytes between terminal and guest until one of them has had enough.
func converse(ctx context.Context, m *vm.Machine, s *screen) error {
	leave := make(chan struct{})
	ready := make(chan struct{})
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		s.showGuest(m.Serial, ready)
	}()
	// What is typed before the guest listens would be lost.
	go func() {
		select {
		case <-ready:
			s.passKeys(m.Serial)
		case <-m.Exited():
		}
		close(leave)
	}()
	select {
	case <-m.Exited():
		<-shown
		return m.Wait(ctx)
	case <-leave:
	case <-ctx.Done():
	}
	return nil
}
