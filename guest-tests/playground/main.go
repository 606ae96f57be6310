// Command playground boots a small guest to play in, on a disk and a console that vdev serves, and
// shows beside it what vdev says of the guest's doings. scripts/run builds and starts it. It leaves
// nothing behind: not the disk, unless one was given, and no process.
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
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vdev/guest-tests/internal/initrd"
	"vdev/guest-tests/internal/netbsd"
	"vdev/guest-tests/internal/vm"
	"vdev/internal/child"
)

const usage = `Boots a guest on a disk that vdev serves; what vdev does for it is shown beside. With QEMU 10.2 or newer vdev serves
the guest's console too.

  scripts/run                   a Linux guest with a shell, its disk at /mnt
  scripts/run --trace           with every message of the vhost-user protocol
  scripts/run --log FILE        vdev's log goes to FILE, the terminal is the guest's alone
  scripts/run --control PATH    with a control socket, and faults on command: go run ./cmd/vdev ctl --socket PATH status;
                                the console's is PATH.console
  scripts/run --image FILE      serve FILE (an ext4 file system) in place of a new disk; what is written stays
  scripts/run --kernel FILE     boot that kernel: NetBSD/amd64, or a Linux with its drivers built in

Type poweroff in the guest, or Ctrl-] on the keyboard, to end.
`

type options struct {
	kernel, image, log string
	control            string
	trace              bool
	console            bool     // the guest has a console of vdev's
	file               *os.File // of log; nil: the log is shown
	bin                string   // folder with vdev and the agents, removed at the end
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
	defer screen.end()
	if o.log != "" {
		if o.file, err = os.Create(o.log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, o.file.Close()) }()
	}
	disk, err := o.startDisk(ctx, dir, screen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.stop()) }()
	machine.Devices = []vm.Device{{Name: "disk", Socket: disk.socket, Transport: vm.Transitional, Queues: 2}}
	var tty *os.File
	var shown sync.WaitGroup // what the guest has written, to its end
	if o.console {
		var console *vdev
		if console, tty, err = o.startConsole(ctx, dir, screen); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, console.stop())
			shown.Wait()
			tty.Close()
		}()
		machine.Devices = append(machine.Devices, vm.Device{Name: "console", Socket: console.socket, Transport: vm.Port, Rings: consoleRings})
	}
	m, err := vm.Start(ctx, machine)
	if err != nil {
		return err
	}
	defer m.Kill()
	return converse(ctx, m, tty, screen, &shown)
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
	if o.console = c.QEMU.AtLeast(10, 2); o.console {
		c.Append += " console=hvc0 vdev.tty=hvc0"
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

// vdev is a back-end as it runs.
type vdev struct {
	socket  string
	cmd     *exec.Cmd
	process *child.Process
}

// startDisk starts the back-end of the disk, and waits until it listens.
func (o *options) startDisk(ctx context.Context, dir string, s *screen) (*vdev, error) {
	args := []string{"--trace", "--blk-file", o.image}
	if o.control != "" {
		// A comma in a name is doubled in the options of a driver.
		args = []string{"--trace", "--driver", "fault,lower=vnd,file=" + strings.ReplaceAll(o.image, ",", ",,"), "--control", o.control}
	}
	return o.start(ctx, filepath.Join(dir, "disk.sock"), s, "blk", args)
}

// consoleRings is how many rings a console with one port has.
const consoleRings = 2

// startConsole starts the back-end of the console, and gives the terminal that the guest's output
// comes from, and its input goes to. The guest has the size of the person's terminal, also when
// that changes.
func (o *options) startConsole(ctx context.Context, dir string, s *screen) (*vdev, *os.File, error) {
	link := filepath.Join(dir, "tty")
	args := []string{"--log-level", "warn", "--port", "driver=pty,path=" + strings.ReplaceAll(link, ",", ",,")}
	if o.trace {
		args = append(args, "--trace")
	}
	if o.control != "" {
		args = append(args, "--control", o.control+".console")
	}
	v, err := o.start(ctx, link+".sock", s, "console", args)
	if err != nil {
		return nil, nil, err
	}
	tty, err := os.OpenFile(link, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, errors.Join(err, v.stop())
	}
	resize := func() {
		if rows, columns, ok := strings.Cut(stty(os.Stdout, "size"), " "); ok {
			stty(tty, "rows", rows, "cols", columns)
		}
	}
	stty(tty, "raw", "-echo")
	resize()
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		for range changed {
			resize()
		}
	}()
	return v, tty, nil
}

// start starts a vdev, and waits until its socket is there. To look whether it takes connections
// would be one.
func (o *options) start(ctx context.Context, socket string, s *screen, device string, args []string) (*vdev, error) {
	v := &vdev{socket: socket}
	v.cmd = exec.Command(filepath.Join(o.bin, "vdev"), append([]string{device, "--socket-path", v.socket}, args...)...)
	var log io.Writer = &logWriter{screen: s, all: o.trace}
	if o.file != nil {
		log = o.file
	}
	v.cmd.Stdout, v.cmd.Stderr = log, log
	var err error
	if v.process, err = child.Start(v.cmd, syscall.SIGKILL); err != nil {
		return nil, err
	}
	for {
		if _, err := os.Stat(v.socket); err == nil {
			return v, nil
		}
		select {
		case <-v.process.Ended():
			return nil, errors.New("vdev has ended before it served anything")
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), v.stop())
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

// converse passes bytes between the person's terminal and the guest until one of them has had
// enough. The guest speaks on its console, or, where it has none, on the serial line. There the
// kernel begins in any case; what it says is shown until it says it on the console too.
func converse(ctx context.Context, m *vm.Machine, console *os.File, s *screen, shown *sync.WaitGroup) error {
	leave := make(chan struct{})
	typed := make(chan []byte)
	prompted := make(chan io.Writer, 2)
	var onConsole atomic.Bool
	serial := make(chan struct{})
	go func() {
		defer close(serial)
		s.showGuest(m.Serial, func() bool { return !onConsole.Load() }, func() { prompted <- m.Serial })
	}()
	if console != nil {
		shown.Go(func() {
			s.showGuest(console, func() bool { onConsole.Store(true); return true }, func() { prompted <- console })
		})
	}
	go func() {
		if s.readKeys(typed) {
			close(leave)
		}
	}()
	// What is typed before the guest listens would be lost.
	go func() {
		guest := <-prompted
		for keys := range typed {
			guest.Write(keys)
		}
		guest.Write([]byte{endOfInput}) // for the shell, which then ends
	}()
	select {
	case <-m.Exited():
		<-serial
		return m.Wait(ctx)
	case <-leave:
	case <-ctx.Done():
	}
	return nil
}
