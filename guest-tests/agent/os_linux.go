package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const openDirect = syscall.O_DIRECT

// serialLine is where the kernel speaks, and the agent with the host where it has no port.
const serialLine = "/dev/ttyS0"

// From <asm/ioctls.h>, <linux/fs.h> and syslog(2); the syscall package does not have them.
const (
	ioctlBLKFLSBUF    = 0x1261
	ioctlBLKDISCARD   = 0x1277
	ioctlBLKZEROOUT   = 0x127f
	syslogReadAll     = 3
	syslogSizeBuffer  = 10
	finitModuleNumber = 313 // amd64, the only guest architecture
)

type haltKind int

const (
	haltPowerOff haltKind = syscall.LINUX_REBOOT_CMD_POWER_OFF
	haltReboot   haltKind = syscall.LINUX_REBOOT_CMD_RESTART
)

func init() {
	commands["discard"] = command{usage: "DISK off=B size=B", words: 1, keys: "off size", run: func(p params) (string, error) { return rangeIoctl(p, ioctlBLKDISCARD) }}
	commands["zero"] = command{usage: "DISK off=B size=B: without writing data, where the disk can", words: 1, keys: "off size", run: func(p params) (string, error) { return rangeIoctl(p, ioctlBLKZEROOUT) }}
	commands["mount"] = command{usage: "DISK DIR [ro]", words: 2, keys: "ro", run: mount}
	commands["umount"] = command{usage: "DIR", words: 1, run: func(p params) (string, error) { return "", syscall.Unmount(p.words[0], 0) }}
	commands["unbind"] = command{usage: "DISK|PORT: takes its driver away; says the device's name", words: 1, run: unbind}
	commands["bind"] = command{usage: "DEVICE: gives it to the driver again", words: 1, run: bind}
	commands["await"] = command{usage: "DISK [gone]: waits until it is there, or is not", words: 1, keys: "gone", run: await}
	commands["hwrng"] = command{usage: "BYTES: reads /dev/hwrng", words: 1, run: hwrng}
	commands["dmesg"] = command{usage: "[errors]: the kernel's log, or what in it tells of trouble", more: true, run: dmesg}
}

// setup makes a Linux userland out of an initramfs: file systems, console, modules.
func setup() (*os.File, error) {
	for _, m := range []struct{ fs, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return os.Stderr, err
		}
		if err := syscall.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil && err != syscall.EBUSY {
			return os.Stderr, fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	// Where the command line has other consoles, too, /dev/console is one of those.
	con, err := os.OpenFile(serialLine, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return os.Stderr, err
	}
	modules, err := os.ReadFile("/modules/order")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return con, err
	}
	for _, m := range strings.Fields(string(modules)) {
		if err := loadModule("/modules/" + m); err != nil && err != syscall.EEXIST {
			return con, fmt.Errorf("module %s: %w", m, err)
		}
	}
	if !wantShell() {
		err = rawConsole(con)
	}
	return con, err
}

func loadModule(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return finitModule(f)
}

func wantShell() bool {
	line, _ := os.ReadFile("/proc/cmdline")
	return strings.Contains(string(line), "vdev.shell")
}

// shell gives the console to a shell, with the first disk mounted, until it ends or asks for the
// machine to stop. It returns only if it cannot.
func shell(con *os.File) error {
	if out, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		return fmt.Errorf("busybox: %w: %s", err, out)
	}
	if _, err := await(params{words: []string{"vda"}}); err != nil {
		return err
	}
	where := "/dev/vda"
	if _, err := mount(params{words: []string{"vda", "/mnt"}}); err == nil {
		where = "/mnt (/dev/vda)"
	}
	// busybox's poweroff, reboot and halt tell process 1 by these signals.
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM)
	// A console cannot be a controlling terminal; what is behind it can, and with it Ctrl-C works.
	tty, err := openTerminal(setting("vdev.tty", "ttyS0"))
	if err != nil {
		fmt.Fprintln(con, "agent:", err)
		tty = con
	}
	if err := giveSize(tty); err != nil {
		return err
	}
	fmt.Fprintf(tty, "\n%s, its disk served by vdev: %s. poweroff ends it.\n", system(), where)
	sh := exec.Command("/bin/sh", "-l")
	sh.Args[0] = "-sh"
	sh.Dir = "/"
	sh.Env = []string{"PATH=/bin:/sbin", "HOME=/", "TERM=" + setting("vdev.term", "dumb"), "PS1=guest:\\w# "}
	sh.Stdin, sh.Stdout, sh.Stderr = tty, tty, tty
	sh.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := sh.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { sh.Wait(); close(ended) }()
	how := haltPowerOff
	select {
	case s := <-asked:
		if s == syscall.SIGTERM {
			how = haltReboot
		}
		sh.Process.Kill()
		<-ended
	case <-ended:
	}
	syscall.Sync()
	syscall.Unmount("/mnt", 0)
	halt(how)
	return nil
}

// openTerminal waits for a terminal to be there.
func openTerminal(name string) (*os.File, error) {
	quit := make(chan struct{})
	defer time.AfterFunc(10*time.Second, func() { close(quit) }).Stop()
	for {
		f, err := os.OpenFile(device(name), os.O_RDWR|syscall.O_NOCTTY, 0)
		if err == nil {
			return f, nil
		}
		select {
		case <-quit:
			return nil, err
		case <-time.After(again):
		}
	}
}

// giveSize gives the terminal the size of the person's, as the host had it when the machine
// started, unless it knows a size itself. A virtio console is told soon after it is opened.
func giveSize(tty *os.File) error {
	for range 100 {
		if rows, columns, err := size(tty); err != nil || rows > 0 && columns > 0 {
			return err
		}
		if tty.Name() == serialLine {
			break
		}
		time.Sleep(again)
	}
	var rows, columns uint16
	if _, err := fmt.Sscanf(setting("vdev.size", "24x80"), "%dx%d", &rows, &columns); err != nil {
		return err
	}
	return setSize(tty, rows, columns)
}

// setting returns what the host passed by a name on the kernel's command line.
func setting(name, otherwise string) string {
	line, _ := os.ReadFile("/proc/cmdline")
	for w := range strings.FieldsSeq(string(line)) {
		if v, ok := strings.CutPrefix(w, name+"="); ok {
			return v
		}
	}
	return otherwise
}

func system() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return "Linux " + strings.TrimSpace(string(release))
}

func halt(how haltKind) {
	syscall.Sync()
	syscall.Reboot(int(how))
	select {}
}

func syncAll() error { syscall.Sync(); return nil }

func pin(n int) { setAffinity(n % runtime.NumCPU()) }

func alignedBuffer(n int) ([]byte, func(), error) {
	p, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	return p, func() { syscall.Munmap(p) }, err
}

func fileSize(f *os.File) (int64, error) { return f.Seek(0, io.SeekEnd) }

// flushFile puts what was written on stable storage. On a disk it also drops what Linux has cached
// of it, so that the next read asks the device.
func flushFile(f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if st, err := f.Stat(); err != nil || st.Mode()&os.ModeDevice == 0 {
		return err
	}
	return ioctl(f.Fd(), ioctlBLKFLSBUF, 0)
}

func rangeIoctl(p params, cmd uintptr) (string, error) {
	off, err := p.number("off", 0)
	if err != nil {
		return "", err
	}
	size, err := p.number("size", 0)
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(device(p.words[0]), os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return "", ioctlRange(f.Fd(), cmd, [2]uint64{uint64(off), uint64(size)})
}

func mount(p params) (string, error) {
	if err := os.MkdirAll(p.words[1], 0o755); err != nil {
		return "", err
	}
	var flags uintptr
	if p.flag("ro") {
		flags = syscall.MS_RDONLY
	}
	return "", syscall.Mount(device(p.words[0]), p.words[1], "ext4", flags, "")
}

// disks describes every virtio disk in a line.
func disks() (string, error) {
	names, err := filepath.Glob("/sys/block/vd*")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, d := range names {
		attr := func(name string) string {
			v, err := os.ReadFile(filepath.Join(d, name))
			if err != nil {
				return "?"
			}
			return strings.TrimSpace(string(v))
		}
		queues, _ := filepath.Glob(d + "/mq/*")
		fmt.Fprintf(&b, "%s sectors=%s serial=%s block=%s physical=%s queues=%d ro=%s cache=%s discard=%s zeroes=%s features=%s\n",
			filepath.Base(d), attr("size"), attr("serial"), attr("queue/logical_block_size"), attr("queue/physical_block_size"), len(queues), attr("ro"),
			strings.ReplaceAll(attr("queue/write_cache"), " ", "-"), attr("queue/discard_max_bytes"), attr("queue/write_zeroes_max_bytes"), features(attr("device/features")))
	}
	return b.String(), nil
}

// features lists the bits that are set: sysfs gives them as a string of digits, bit 0 first.
func features(digits string) string {
	var set []string
	for i, d := range digits {
		if d == '1' {
			set = append(set, fmt.Sprint(i))
		}
	}
	return strings.Join(set, ",")
}

func unbind(p params) (string, error) {
	entry := "/sys/block/" + p.words[0]
	if port := findPort(p.words[0]); port != "" {
		entry = port
	}
	dev, err := filepath.EvalSymlinks(entry + "/device")
	if err != nil {
		return "", err
	}
	name := filepath.Base(dev)
	return name, os.WriteFile(dev+"/driver/unbind", []byte(name), 0)
}

func bind(p params) (string, error) {
	// The kernel asks each driver whether the device is one of its.
	return "", os.WriteFile("/sys/bus/virtio/drivers_probe", []byte(p.words[0]), 0)
}

// await polls: devtmpfs tells nobody of changes who has no netlink socket. A node may be there
// before the disk behind it can be opened.
func await(p params) (string, error) {
	path := device(p.words[0])
	for range 6000 {
		there := false
		f, err := os.Open(path)
		if err == nil {
			there = true
			f.Close()
		} else if p.flag("gone") {
			there = !errors.Is(err, os.ErrNotExist)
		}
		if there != p.flag("gone") {
			return "", nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "", fmt.Errorf("%s: still waiting after a minute", path)
}

func hwrng(p params) (string, error) {
	n, err := number(p.words[0])
	if err != nil {
		return "", err
	}
	source, err := os.ReadFile("/sys/class/misc/hw_random/rng_current")
	if err != nil {
		return "", err
	}
	f, err := os.Open("/dev/hwrng")
	if err != nil {
		return "", err
	}
	defer f.Close()
	data := make([]byte, n)
	if _, err := io.ReadFull(f, data); err != nil {
		return "", err
	}
	var seen [256]bool
	distinct := 0
	for _, c := range data {
		if !seen[c] {
			seen[c] = true
			distinct++
		}
	}
	return fmt.Sprintf("%d bytes of %d values from %s", n, distinct, bytes.TrimSpace(source)), nil
}

// trouble is what a kernel says when a disk let it down.
var trouble = regexp.MustCompile(`I/O error|EXT4-fs (error|warning)|critical .* error|hung_task|blocked for more|lost async page|BUG:|WARNING:|Call Trace|JBD2: .*err|Aborting journal`)

func dmesg(p params) (string, error) {
	size, err := syscall.Klogctl(syslogSizeBuffer, nil)
	if err != nil {
		return "", err
	}
	buf := make([]byte, size)
	n, err := syscall.Klogctl(syslogReadAll, buf)
	if err != nil || len(p.words) == 0 {
		return string(buf[:max(n, 0)]), err
	}
	var b strings.Builder
	for lines := bufio.NewScanner(bytes.NewReader(buf[:n])); lines.Scan(); {
		if trouble.MatchString(lines.Text()) {
			fmt.Fprintln(&b, lines.Text())
		}
	}
	return b.String(), nil
}
